"""The GroupNorm ResNet in timm's format, for `timm.create_model("hf-hub:...")` or `"local-dir:..."`."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import BitImageProcessorPil, PreTrainedModel

from ...data.processor import usual_processor
from ...models.modeling_gn_resnet import GnResNetModel

# Fields that `model_args` cannot change in timm's `resnet50_gn`.
_FIXED_IN_TIMM = {
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "num_groups": 32,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-5,
}
_STEM = {"embedder.embedder.convolution": "conv1", "embedder.embedder.normalization": "bn1"}
_BLOCK = {
    "layer.0.convolution": "conv1",
    "layer.0.normalization": "bn1",
    "layer.1.convolution": "conv2",
    "layer.1.normalization": "bn2",
    "layer.2.convolution": "conv3",
    "layer.2.normalization": "bn3",
    "shortcut.convolution": "downsample.0",
    "shortcut.normalization": "downsample.1",
}


def as_timm(
    model: PreTrainedModel, processor: BitImageProcessorPil | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the model's tensors under timm's names, and the content of timm's `config.json`.

    Args:
        model: A plain `GnResNetModel`.
        processor: How images are prepared; by default the usual evaluation at the model's image size.

    Raises:
        ValueError: If the model is not a plain `GnResNetModel`, or if timm cannot hold it or its processor.
    """
    if not isinstance(model, GnResNetModel) or model.config.model_type != "gn_resnet":
        raise ValueError(f"timm's format holds a plain GnResNetModel, not a {type(model).__name__}: extract one first.")
    config = model.config
    for name, value in _FIXED_IN_TIMM.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"timm's GroupNorm ResNet has {name} {value}, not {getattr(config, name)}: use the format gn_resnet."
            )
    model_args: dict[str, Any] = {"layers": list(config.depths), "base_width": config.base_width}
    if config.num_channels != 3:
        model_args["in_chans"] = config.num_channels
    timm_config = {
        "architecture": "resnet50_gn",  # the only GroupNorm ResNet that timm names; model_args give the size
        "num_classes": 0,
        "num_features": config.hidden_size,
        "global_pool": "avg",
        "model_args": model_args,
        "pretrained_cfg": {
            "custom_load": False,
            **_data_config(processor or usual_processor(config), config.num_channels),
            "fixed_input_size": False,
            "num_classes": 0,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }
    return {_timm_name(name): tensor for name, tensor in model.state_dict().items()}, timm_config


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


def _timm_name(name: str) -> str:
    """Translate the name of a tensor of `GnResNetModel` into timm's."""
    module, _, leaf = name.rpartition(".")
    match = re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)", module)
    if match is None:
        return f"{_STEM[module]}.{leaf}"
    stage, block, module = match.groups()
    return f"layer{int(stage) + 1}.{block}.{_BLOCK[module]}.{leaf}"


def _data_config(processor: BitImageProcessorPil, num_channels: int) -> dict[str, Any]:
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
            "1/255 and normalises: use the format gn_resnet."
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
        "pool_size": [math.ceil(height / 32), math.ceil(width / 32)],
    }
