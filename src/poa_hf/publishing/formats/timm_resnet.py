"""The GroupNorm ResNet as timm's `resnet50_gn`."""

from __future__ import annotations

import math
import re

from ...models.modeling_gn_resnet import GnResNetModel
from .timm_parts import TimmModel, check_fields

_FIXED = {
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


def resnet_in_timm(model: GnResNetModel, side: int) -> TimmModel:
    """Convert a ResNet for images of `side` pixels; it takes images of any size, as here.

    Raises:
        ValueError: If the stem, the channels, the groups or the activation are not those of `resnet50_gn`.
    """
    config = model.config
    check_fields(config, "GroupNorm ResNet", _FIXED)
    positions = math.ceil(side / 32)
    return TimmModel(
        architecture="resnet50_gn",  # the only GroupNorm ResNet that timm names
        model_args={"layers": list(config.depths), "base_width": config.base_width},
        tensors={_timm_name(name): tensor for name, tensor in model.state_dict().items()},
        num_features=config.hidden_size,
        global_pool="avg",
        pretrained_cfg={
            "fixed_input_size": False,
            "pool_size": [positions, positions],
            "first_conv": "conv1",
            "classifier": "fc",
        },
    )


def _timm_name(name: str) -> str:
    """Translate the name of a tensor of `GnResNetModel` into timm's."""
    module, _, leaf = name.rpartition(".")
    match = re.fullmatch(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(.+)", module)
    if match is None:
        return f"{_STEM[module]}.{leaf}"
    stage, block, module = match.groups()
    return f"layer{int(stage) + 1}.{block}.{_BLOCK[module]}.{leaf}"
