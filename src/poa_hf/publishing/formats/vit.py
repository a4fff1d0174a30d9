"""A DINOv2-style ViT as a stock `vit` model, for tools that know no other kind of ViT."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from transformers import Dinov2Model, PreTrainedModel, ViTConfig, ViTModel

from ...models.vit_names import dinov2_name
from ...slicing import without_storage


def as_vit(model: PreTrainedModel, image_size: int | None = None) -> ViTModel:
    """Convert a `Dinov2Model` to a stock `ViTModel` without pooler that computes the same features.

    `vit` has no LayerScale, so its factors are multiplied into the two projections before it, which is exact up to
    rounding. The result is in evaluation mode.

    Args:
        model: The DINOv2-style ViT.
        image_size: Side of the images in pixels, since a `vit` takes images of one size only; by default the model's
            own. For another one the position embeddings are resized as `dinov2` does at each call.

    Raises:
        ValueError: If the model is no `Dinov2Model`, has SwiGLU layers, or its images or patches are not square.
    """
    if not isinstance(model, Dinov2Model):
        raise ValueError(f"Only a Dinov2Model can be converted to a stock vit, not a {type(model).__name__}.")
    config = model.config
    side = config.image_size if image_size is None else image_size
    patch = config.patch_size
    if not isinstance(side, int) or not isinstance(patch, int):
        raise ValueError(f"image_size {side} and patch_size {patch} must be single numbers, the sides of squares.")
    if config.use_swiglu_ffn:
        raise ValueError("A stock vit has no SwiGLU layers: extract this model with --format dinov2.")
    vit_config = ViTConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=int(config.hidden_size * config.mlp_ratio),
        hidden_act=config.hidden_act,
        layer_norm_eps=config.layer_norm_eps,
        image_size=side,
        patch_size=patch,
        num_channels=config.num_channels,
        qkv_bias=config.qkv_bias,
        initializer_range=config.initializer_range,
    )
    source = model.state_dict()
    with without_storage():
        vit = ViTModel(vit_config, add_pooling_layer=False)
    tensors = {name: _vit_tensor(name, source) for name in vit.state_dict()}
    tensors["embeddings.position_embeddings"] = _position_embeddings(model, side, patch)
    vit.load_state_dict(tensors, assign=True)
    return vit.requires_grad_().eval()


def _position_embeddings(model: Dinov2Model, side: int, patch: int) -> Tensor:
    """Return the position embeddings (1, 1 + patches, D) for images and patches of these sides in pixels."""
    patches = (side // patch) ** 2
    tokens = torch.empty(1, 1 + patches, model.config.hidden_size)  # only the shape is read
    with torch.no_grad():
        return model.embeddings.interpolate_pos_encoding(tokens, side, side).clone()


def _vit_tensor(name: str, source: dict[str, Tensor]) -> Tensor:
    """Return the tensor called `name` in a `vit`, made from the DINOv2 weights `source`."""
    name = dinov2_name(name)
    match = re.match(r"(encoder\.layer\.\d+)\.(attention\.o_proj|mlp\.fc2)\.(weight|bias)", name)
    if match is None:
        return source[name]
    layer, projection, kind = match.groups()
    layer_scale = "layer_scale1" if projection == "attention.o_proj" else "layer_scale2"
    scale = source[f"{layer}.{layer_scale}.lambda1"]  # (D,)
    return source[name] * (scale[:, None] if kind == "weight" else scale)
