"""Extraction: a sub-network of the teacher as a stock checkpoint of its own."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers import BitImageProcessorPil as ImageProcessor

from ..data.processor import evaluation_processor
from ..elastic import SubNetwork
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..runs.atomic import written_folder
from ..runs.facts import RunFacts
from ..runs.layout import CONFIG, EVALUATIONS, PROCESSOR, WEIGHTS
from .card.cards import CARD, PICTURE, write_card
from .formats.format import Artifact, Format, find_format

_EXTRACTED_FILES = {
    *(CONFIG, WEIGHTS, PROCESSOR, EVALUATIONS, CARD, PICTURE),
    *("configuration_gn_resnet.py", "modeling_gn_resnet.py", "model.onnx", "model.onnx.data"),
}


def extract_all(
    model: PoaForPreTraining,
    outputs: dict[Path, SubNetwork],
    format: str | None = None,
    processor: ImageProcessor | None = None,
    overwrite: bool = False,
    facts: RunFacts | None = None,
    **options,
) -> Iterator[tuple[Path, int]]:
    """Write the teacher's sub-networks: weights, configuration, image processor and card. Gives each folder and its
    number of parameters as it is done.

    A folder is complete or absent; all are checked before the first is written. One size is cut while the one before
    goes to the disk. Without a format, it is the family's stock one; without a processor, the evaluation processor of
    the model's image size is made; without the facts of its run, the cards say what the model's configuration tells.
    `options` are the format's, as `onnx_batch`.

    Raises:
        ValueError: If a folder exists and `overwrite` is not set, is no extracted model, or holds the run of `facts`;
            for a format that the family does not have or that cannot hold the model.
    """
    format = find_format(model.teacher.stock_class.config_class.model_type, format, **options)
    facts = facts or RunFacts.of(model)
    for output in outputs:
        check_output(output, overwrite, facts.folder)
    processor = processor or evaluation_processor(model.config.backbone_config.image_size)
    # One thread that only writes: making models in several would upset how transformers switches initialisation off.
    # So the costs, which the cards need, are counted here.
    _ = facts.costs
    with ThreadPoolExecutor(max_workers=1) as pool:
        writing = None
        for output, sub_network in outputs.items():
            artifact = format.convert(model.teacher.extract(sub_network), processor)
            if writing is not None:
                yield writing.result()
            writing = pool.submit(_write, facts, sub_network, artifact, output, format)
        if writing is not None:
            yield writing.result()


def extract_to(model: PoaForPreTraining, sub_network: SubNetwork, output: str | Path, **options) -> tuple[Path, int]:
    """`extract_all` for one size."""
    (result,) = extract_all(model, {Path(output): sub_network}, **options)
    return result


def _write(
    facts: RunFacts, sub_network: SubNetwork, artifact: Artifact, output: Path, format: Format
) -> tuple[Path, int]:
    folder = output.absolute()
    with written_folder(folder) as aside:
        artifact.save(aside)
        write_card(aside, facts, sub_network, format, folder.name, artifact.num_parameters)
    return output, artifact.num_parameters


_PART_OF_THE_WEIGHTS = re.compile(r"^(model-\d{5}-of-\d{5}\.safetensors|model\.safetensors\.index\.json)$")


def check_output(
    output: Path,
    overwrite: bool,
    keep: str | Path | None = None,
    files: Collection[str] = _EXTRACTED_FILES,
    what: str = "an extracted model",
) -> None:
    """Refuse to replace a folder that is not empty, unless asked to and it is nothing but `what`, made of `files`."""
    output = output.absolute()
    if keep is not None and output.resolve() in (Path(keep).resolve(), *Path(keep).resolve().parents):
        raise ValueError(f"{output} holds the run itself: give another --output.")
    for parent in output.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{parent} is a file: give another --output.")
    if not output.exists():
        return
    if not output.is_dir() or output == Path.cwd():
        raise ValueError(f"{output} is a file or the current folder: give another --output.")
    found = {_PART_OF_THE_WEIGHTS.sub("model.safetensors", path.name) for path in output.iterdir()}
    if found and not overwrite:
        raise ValueError(f"{output} exists: give another --output, or --overwrite to replace it.")
    if found - set(files):
        raise ValueError(f"{output} exists and holds more than {what}: give another --output.")
