"""Extraction: a sub-network of the teacher as a stock checkpoint of its own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from transformers import AutoImageProcessor, Dinov2Model, PreTrainedModel, ViTConfig, ViTModel
from transformers import BitImageProcessorPil as ImageProcessor
from transformers.initialization import no_init_weights

from ..data.crops import CropArguments
from ..data.processor import evaluation_processor
from ..elastic import SubNetwork
from ..models.modeling_poa_pretraining import PoaForPreTraining, load_complete
from ..training.checkpoints import checkpoints
from .card import write_card


def resolve_run(run: str | Path) -> Path:
    """The folder with the model of a run: the run's own once it has ended, else its last checkpoint.

    Also takes the folder of any saved `PoaForPreTraining`. ValueError if there is none.
    """
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"{run} does not exist: give the output_dir of a run or one of its checkpoints.")
    for folder in (run, *reversed(checkpoints(run))):
        if (folder / "config.json").exists():
            return folder
    raise ValueError(f"{run} holds no model yet: wait for the run's first checkpoint (save_steps).")


def load_run(run: str | Path) -> PoaForPreTraining:
    """The model of a run or saved folder, in evaluation mode. ValueError if it is not there or not whole."""
    return load_complete(resolve_run(run))


def as_vit(model: Dinov2Model, image_size: int | None = None) -> ViTModel:
    """The same function as a stock `vit` model without pooler, in evaluation mode: LayerScale, which `vit` lacks, is
    multiplied into the projections before it (exact but for rounding).

    A `vit` takes images of one size, by default the model's own; for another one the position embeddings are resized as
    `dinov2` does at each call.
    """
    config = model.config
    image_size = image_size or config.image_size
    if config.use_swiglu_ffn:
        raise ValueError("A stock vit has no SwiGLU: extract this model with --format dinov2.")
    vit_config = ViTConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=int(config.hidden_size * config.mlp_ratio),
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        image_size=image_size,
        patch_size=config.patch_size,
        num_channels=config.num_channels,
        qkv_bias=config.qkv_bias,
        initializer_range=config.initializer_range,
    )
    source = model.state_dict()
    with torch.device("meta"), no_init_weights():
        vit = ViTModel(vit_config, add_pooling_layer=False)
    tensors = {name: _vit_tensor(name, source) for name in vit.state_dict()}
    with torch.no_grad():
        positions = model.embeddings.interpolate_pos_encoding(
            torch.empty(1, (image_size // config.patch_size) ** 2 + 1, config.hidden_size), image_size, image_size
        )
    tensors["embeddings.position_embeddings"] = positions.clone()
    vit.load_state_dict(tensors, assign=True)
    return vit.requires_grad_().eval()


def _vit_tensor(name: str, source: dict[str, torch.Tensor]) -> torch.Tensor:
    name = re.sub(r"^layers\.", "encoder.layer.", name)
    name = name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
    match = re.match(r"(encoder\.layer\.\d+)\.(attention\.o_proj|mlp\.fc2)\.(weight|bias)", name)
    if match is None:
        return source[name]
    scale = source[f"{match[1]}.{'layer_scale1' if 'o_proj' in match[2] else 'layer_scale2'}.lambda1"]
    return source[name] * (scale[:, None] if match[3] == "weight" else scale)


def extract_all(
    model: PoaForPreTraining,
    outputs: dict[Path, SubNetwork],
    format: str = "dinov2",
    processor: ImageProcessor | None = None,
    overwrite: bool = False,
    keep: str | Path | None = None,
) -> Iterator[tuple[Path, int]]:
    """Write the teacher's sub-networks: weights, configuration, image processor and card. Gives each folder and its
    number of parameters as it is done.

    A folder is complete or absent; all are checked before the first is written. One size is cut while the one before
    goes to the disk. Without a processor, the evaluation processor of the model's image size is made.

    Raises:
        ValueError: If a folder exists and `overwrite` is not set, is no extracted model, or holds the run `keep`; for
            an unknown format.
    """
    for output in outputs:
        check_output(output, overwrite, keep)
    processor = processor or _default_processor(model)
    # One thread that only writes: making models in several would upset how transformers switches initialisation off.
    with ThreadPoolExecutor(max_workers=1) as pool:
        writing = None
        for output, sub_network in outputs.items():
            extracted = _extract(model, sub_network, format, processor)
            if writing is not None:
                yield writing.result()
            writing = pool.submit(_write, model, sub_network, extracted, output, format, processor)
        if writing is not None:
            yield writing.result()


def extract_to(model: PoaForPreTraining, sub_network: SubNetwork, output: str | Path, **options) -> tuple[Path, int]:
    """`extract_all` for one size."""
    (result,) = extract_all(model, {Path(output): sub_network}, **options)
    return result


def _extract(model: PoaForPreTraining, sub_network: SubNetwork, format: str, processor: ImageProcessor):
    extracted = model.teacher.extract(sub_network)
    if format == "vit":
        return as_vit(extracted, image_size=processor.crop_size["height"])
    if format != extracted.config.model_type:
        raise ValueError(f"{format!r} is not a format of this model: use {extracted.config.model_type} or vit.")
    return extracted


def _write(
    model: PoaForPreTraining,
    sub_network: SubNetwork,
    extracted: PreTrainedModel,
    output: Path,
    format: str,
    processor: ImageProcessor,
) -> tuple[Path, int]:
    folder = output.absolute()
    aside = folder.with_name(f".unfinished-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    extracted.save_pretrained(aside)
    processor.save_pretrained(aside)
    write_card(aside, model.config, sub_network, format, folder.name, extracted.num_parameters())
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)
    return output, extracted.num_parameters()


def check_output(output: Path, overwrite: bool, keep: str | Path | None = None) -> None:
    """Refuse to replace a folder that is not empty, unless asked to and it is nothing but an extracted model."""
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
    found = {path.name for path in output.iterdir()}
    if found and not overwrite:
        raise ValueError(f"{output} exists: give another --output, or --overwrite to replace it.")
    if found - _EXTRACTED_FILES:
        raise ValueError(f"{output} exists and holds more than an extracted model: give another --output.")


_EXTRACTED_FILES = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}


def run_processor(run: str | Path) -> ImageProcessor | None:
    """The image processor that a run saved beside its model."""
    folder = resolve_run(run)
    return AutoImageProcessor.from_pretrained(folder) if (folder / "preprocessor_config.json").exists() else None


def _default_processor(model: PoaForPreTraining) -> ImageProcessor:
    image_size = model.config.backbone_config.image_size
    crops = CropArguments()
    return evaluation_processor(
        image_size if isinstance(image_size, int) else image_size[0], crops.image_mean, crops.image_std
    )
