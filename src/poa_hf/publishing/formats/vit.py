"""DINOv2's blocks as a stock `vit`, for what knows no other."""

from __future__ import annotations

import re

import torch
from transformers import Dinov2Model, ViTConfig, ViTModel

from ...slicing import without_storage


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
    with without_storage():
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
