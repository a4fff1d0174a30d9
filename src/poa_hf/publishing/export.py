"""Extraction: write sub-networks of the teacher as stock models."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from transformers import BitImageProcessorPil as ImageProcessor

from ..data.processor import usual_processor
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..runs.atomic import written_folder
from ..runs.layout import CONFIG, EVALUATIONS, PROCESSOR, WEIGHTS
from ..sub_network import SubNetwork
from .card.cards import CARD, PICTURE, write_card
from .card.facts import CardFacts
from .formats.format import Artifact, Format, find_format
from .formats.onnx import OnnxOptions

_EXTRACTED_FILES = {
    *(CONFIG, WEIGHTS, PROCESSOR, EVALUATIONS, CARD, PICTURE, "LICENSE", "LICENSE.md"),
    *("configuration_gn_resnet.py", "modeling_gn_resnet.py", "model.onnx", "model.onnx.data"),
}
_SHARD = re.compile(r"^(model-\d{5}-of-\d{5}\.safetensors|model\.safetensors\.index\.json)$")


def extract_all(
    model: PoaForPreTraining,
    outputs: Mapping[Path, SubNetwork | str],
    format: str | None = None,
    processor: ImageProcessor | None = None,
    overwrite: bool = False,
    facts: CardFacts | None = None,
    onnx_batch: int | None = None,
    onnx_opset: int | None = None,
    onnx_dtype: str | None = None,
) -> Iterator[tuple[Path, int]]:
    """Write sub-networks of the teacher as separate models: weights, configuration, image processor and card.

    All folders are checked before the first is written, and each is complete or absent. While one size is
    written to the disk, the next is extracted.

    Args:
        model: The model that holds all sizes.
        outputs: The sub-network to write into each folder, or its text or name.
        format: The format's name; by default the family's stock one.
        processor: The image processor; by default one for evaluation at the model's image size.
        overwrite: Whether to replace extracted models.
        facts: The facts that the cards state about the run; by default those of the model's configuration.
        onnx_batch: The number of images in each batch of an ONNX model; by default any.
        onnx_opset: The opset of an ONNX model; by default 18.
        onnx_dtype: The type of an ONNX model's weights and computation: `float32` (by default) or `float16`.

    Returns:
        An iterator over each folder and its model's number of parameters. Models are written as it advances.

    Raises:
        ValueError: If a folder exists and `overwrite` is not set, holds anything but an extracted model, or holds the
            run of `facts`; if the family has no such format, or the format cannot hold the model; or if the owner's
            licence is not where `card.yaml` says.
    """
    onnx = OnnxOptions(onnx_batch, onnx_opset, onnx_dtype)
    target = find_format(model.config.backbone_config.stock_config_class.model_type, format, onnx)
    facts = facts or CardFacts.read(model)
    _ = facts.licence_file  # before any work
    sizes = {output: model.config.backbone_config.space.resolve(size) for output, size in outputs.items()}
    for output in sizes:
        check_output(output, overwrite, facts.run.model)
    processor = processor or usual_processor(model.config.backbone_config)
    # One thread that only writes: making models in several would upset how transformers switches initialisation off.
    # For the same reason the costs, which the cards need, are counted before it starts.
    _ = facts.costs
    with ThreadPoolExecutor(max_workers=1) as pool:
        writing: Future[tuple[Path, int]] | None = None
        for output, sub_network in sizes.items():
            artifact = target.convert(model.teacher.extract(sub_network), processor)
            if writing is not None:
                yield writing.result()
            writing = pool.submit(_write, facts, sub_network, artifact, output, target)
        if writing is not None:
            yield writing.result()


def extract_to(
    model: PoaForPreTraining,
    sub_network: SubNetwork | str,
    output: str | Path,
    format: str | None = None,
    processor: ImageProcessor | None = None,
    overwrite: bool = False,
    facts: CardFacts | None = None,
    onnx_batch: int | None = None,
    onnx_opset: int | None = None,
    onnx_dtype: str | None = None,
) -> int:
    """Write one sub-network of the teacher as a separate model, as `poa extract` does, and return its parameter count.

    Arguments and errors are those of `extract_all`.

    Example:
        >>> from pathlib import Path
        >>> from poa_hf import PoaConfig, PoaForPreTraining, PoaViTConfig, SubNetwork
        >>> backbone = PoaViTConfig(
        ...     hidden_size=32, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=16,
        ...     min_num_hidden_layers=1, image_size=32, patch_size=8,
        ... )
        >>> model = PoaForPreTraining(PoaConfig(backbone_config=backbone, num_prototypes=[16]))
        >>> extract_to(model, SubNetwork(16, 1), "poa-small")
        6736
        >>> sorted(path.name for path in Path("poa-small").glob("*.json"))
        ['config.json', 'preprocessor_config.json']
    """
    outputs: dict[Path, SubNetwork | str] = {Path(output).expanduser(): sub_network}
    onnx = (onnx_batch, onnx_opset, onnx_dtype)
    ((_, parameters),) = extract_all(model, outputs, format, processor, overwrite, facts, *onnx)
    return parameters


def check_output(
    output: Path,
    overwrite: bool,
    run: str | Path | None = None,
    replaceable: Collection[str] = _EXTRACTED_FILES,
    content: str = "an extracted model",
) -> None:
    """Check that a folder may be written, before anything is computed.

    Args:
        output: The folder.
        overwrite: Whether a folder that exists may be replaced, if it holds nothing but `replaceable` files.
        run: The folder of a run, which is never replaced.
        replaceable: The names of the files that the folder is made of. Parts of sharded weights count as weights.
        content: What such a folder holds, for messages.

    Raises:
        ValueError: If the folder must not be replaced or cannot be made.
    """
    output = output.absolute()
    if run is not None and output.resolve() in (Path(run).resolve(), *Path(run).resolve().parents):
        raise ValueError(f"{output} holds the run itself: give another --output.")
    for parent in output.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{parent} is a file: give another --output.")
    if not output.exists():
        return
    if not output.is_dir() or output == Path.cwd():
        raise ValueError(f"{output} is a file or the current folder: give another --output.")
    names = {_SHARD.sub(WEIGHTS, path.name) for path in output.iterdir()}
    if names and not overwrite:
        raise ValueError(f"{output} exists: give another --output, or --overwrite to replace it.")
    if names - set(replaceable):
        raise ValueError(f"{output} exists and holds more than {content}: give another --output.")


def _write(
    facts: CardFacts, sub_network: SubNetwork, artifact: Artifact, output: Path, format: Format
) -> tuple[Path, int]:
    """Write one extracted model; its folder appears when it is complete."""
    folder = output.absolute()
    with written_folder(folder) as aside:
        artifact.save(aside)
        hints = artifact.hints(folder.name)
        write_card(aside, facts, sub_network, format, folder.name, artifact.num_parameters, hints=hints)
        if (licence := facts.licence_file) is not None:
            shutil.copyfile(licence, aside / licence.name)
    return output, artifact.num_parameters
