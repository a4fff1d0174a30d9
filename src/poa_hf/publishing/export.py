"""Extraction: a sub-network of the teacher as a stock checkpoint of its own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch
from transformers import AutoImageProcessor, Dinov2Model, PreTrainedModel, ViTConfig, ViTModel
from transformers import BitImageProcessorPil as ImageProcessor
from transformers.initialization import no_init_weights

from ..data.crops import CropArguments
from ..data.processor import evaluation_processor
from ..elastic import SubNetwork
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..training.checkpoints import checkpoints
from .card import write_card


def resolve_run(run: str | Path) -> Path:
    """The folder with the model of a run: the run's own when it has ended, else its last checkpoint.

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
    """The model of a run or saved folder, in evaluation mode."""
    return PoaForPreTraining.from_pretrained(resolve_run(run))


def as_vit(model: Dinov2Model) -> ViTModel:
    """The same function as a stock `vit` model without pooler, in evaluation mode: LayerScale, which `vit` lacks, is
    multiplied into the projections before it (exact but for rounding)."""
    config = model.config
    if config.use_swiglu_ffn:
        raise ValueError("A stock vit has no SwiGLU: extract this model with --format dinov2.")
    vit_config = ViTConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=int(config.hidden_size * config.mlp_ratio),
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_channels=config.num_channels,
        qkv_bias=config.qkv_bias,
        initializer_range=config.initializer_range,
    )
    source = model.state_dict()
    with torch.device("meta"), no_init_weights():
        vit = ViTModel(vit_config, add_pooling_layer=False)
    tensors = {name: _vit_tensor(name, source) for name in vit.state_dict()}
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


def extract_to(
    model: PoaForPreTraining,
    sub_network: SubNetwork,
    output: str | Path,
    format: str = "dinov2",
    processor: ImageProcessor | None = None,
    overwrite: bool = False,
) -> PreTrainedModel:
    """Write the teacher's sub-network to `output`: weights, configuration, image processor and card. Returns the model.

    The folder is complete or absent. Without a processor, the evaluation processor of the model's image size is made.

    Raises:
        ValueError: If `output` exists and `overwrite` is not set, or is no model; for an unknown format.
    """
    output = Path(output)
    check_output(output, overwrite)
    extracted = model.teacher.extract(sub_network)
    if format == "vit":
        extracted = as_vit(extracted)
    elif format != extracted.config.model_type:
        raise ValueError(f"{format!r} is not a format of this model: use {extracted.config.model_type} or vit.")
    aside = output.absolute().with_name(f".unfinished-{output.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    extracted.save_pretrained(aside)
    (processor or _default_processor(model)).save_pretrained(aside)
    write_card(aside, model.config, sub_network, format, output.name, extracted.num_parameters())
    if output.exists():
        shutil.rmtree(output)
    aside.rename(output)
    return extracted


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse to replace a folder that is not empty, unless asked to and it is a model's."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{output} exists: give another --output, or --overwrite to replace it.")
    if not (output / "config.json").exists():
        raise ValueError(f"{output} exists and is not a model: give another --output.")


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
