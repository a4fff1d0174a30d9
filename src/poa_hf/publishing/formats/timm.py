"""Extracted models in timm's format, for `timm.create_model("hf-hub:...")` or `"local-dir:..."`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    BitImageProcessorPil,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    PreTrainedModel,
    SwinModel,
)

from ...data.processor import usual_processor
from ...models.modeling_gn_resnet import GnResNetModel
from .timm_parts import TimmModel
from .timm_resnet import resnet_in_timm
from .timm_swin import swin_in_timm
from .timm_vit import dinov2_in_timm, dinov3_in_timm

# The models that timm can hold, by their model_type, which those of their elastic subclasses differ in.
_CONVERSIONS: dict[str, tuple[type[PreTrainedModel], Callable[[Any, int], TimmModel]]] = {
    "gn_resnet": (GnResNetModel, resnet_in_timm),
    "dinov2": (Dinov2Model, dinov2_in_timm),
    "dinov2_with_registers": (Dinov2WithRegistersModel, dinov2_in_timm),
    "dinov3_vit": (DINOv3ViTModel, dinov3_in_timm),
    "swin": (SwinModel, swin_in_timm),
}


def as_timm(
    model: PreTrainedModel, processor: BitImageProcessorPil | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the model's tensors under timm's names, and the content of timm's `config.json`.

    Args:
        model: An extracted model: a plain `GnResNetModel`, `Dinov2Model`, `Dinov2WithRegistersModel`, `DINOv3ViTModel`
            or `SwinModel`.
        processor: How images are prepared; by default the usual evaluation at the model's image size.

    Raises:
        ValueError: If the model is not an extracted one, or if timm cannot hold it or its processor.
    """
    config = model.config
    expected, convert = _CONVERSIONS.get(config.model_type, (None, None))
    if expected is None or convert is None or not isinstance(model, expected):
        *others, last = [kind.__name__ for kind, _ in _CONVERSIONS.values()]
        kinds = f"{', '.join(others)} or {last}"
        raise ValueError(f"timm's format holds a plain {kinds}, not a {type(model).__name__}: extract one first.")
    data_config = _data_config(processor or usual_processor(config), config.num_channels, config.model_type)
    converted = convert(model, data_config["input_size"][1])
    channels = {} if config.num_channels == 3 else {"in_chans": config.num_channels}
    timm_config = {
        "architecture": converted.architecture,
        "num_classes": 0,
        "num_features": converted.num_features,
        "global_pool": converted.global_pool,
        "model_args": converted.model_args | channels,
        "pretrained_cfg": {"custom_load": False, **data_config, "num_classes": 0, **converted.pretrained_cfg},
    }
    return converted.tensors, timm_config


def save_as_timm(model: PreTrainedModel, folder: str | Path, processor: BitImageProcessorPil | None = None) -> None:
    """Write timm's `config.json` and `model.safetensors` into a folder, which is made if necessary.

    Arguments and errors are those of `as_timm`.
    """
    tensors, config = as_timm(model, processor)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _data_config(processor: BitImageProcessorPil, num_channels: int, format: str) -> dict[str, Any]:
    """Describe a processor's steps in timm's words; sizes are in pixels.

    Raises:
        ValueError: If timm has no words for the steps.
    """
    short_side = processor.size.get("shortest_edge") if processor.size else None
    height, width = (processor.crop_size or {}).get("height"), (processor.crop_size or {}).get("width")
    steps = processor.do_resize and processor.do_center_crop and processor.do_rescale and processor.do_normalize
    if not steps or not short_side or not height or height != width or processor.rescale_factor != 1 / 255:
        raise ValueError(
            "timm's format needs a processor that resizes the short side, crops a square from the centre, rescales by "
            f"1/255 and normalises: use the format {format}."
        )
    crop_pct = height / short_side
    if math.floor(height / crop_pct) < short_side:  # timm divides again, and rounds down
        crop_pct = math.nextafter(crop_pct, 0)
    return {
        "input_size": [num_channels, height, width],  # (C, H, W)
        "interpolation": Image.Resampling(processor.resample).name.lower(),
        "crop_pct": crop_pct,
        "crop_mode": "center",
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
    }
