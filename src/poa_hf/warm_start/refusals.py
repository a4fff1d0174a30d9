"""Why no elastic family can hold a model, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..formatting import one_line
from ..models.saved_files import CONFIG
from .stock import stock_types

_NO_CLASS_TOKEN = "has no class token, while the patches of every elastic ViT attend to one"
_PRE_NORM = "normalises its tokens before the first block, unlike an elastic ViT"
_CONVOLUTIONS = "is a convolutional network of its own kind, for which docs/new_family.md shows how to write a family"
# What a type of models computes that no elastic family does.
_DIFFERENCES = {
    "ijepa": _NO_CLASS_TOKEN,
    "siglip": _NO_CLASS_TOKEN,
    "siglip_vision_model": _NO_CLASS_TOKEN,
    "siglip2": _NO_CLASS_TOKEN,
    "siglip2_vision_model": _NO_CLASS_TOKEN,
    "aimv2_vision_model": _NO_CLASS_TOKEN,
    "clip": _PRE_NORM,
    "clip_vision_model": _PRE_NORM,
    "swinv2": "has cosine attention and a position bias that a network computes, which the elastic Swin lacks",
    "hiera": "pools its queries between stages, unlike the elastic families",
    "convnext": _CONVOLUTIONS,
    "convnextv2": _CONVOLUTIONS,
    "dinov3_convnext": _CONVOLUTIONS,
    "resnet": "has batch normalisation, while the elastic ResNet (gn_resnet) has group normalisation",
}
_BEIT_TYPES = ("beit", "data2vec-vision")


def unsupported(name: str, fields: Mapping[str, Any]) -> str:
    """Return what keeps a model from becoming the full size of an elastic family, and what to give instead.

    Args:
        name: What to call the model.
        fields: The fields of its config.json.
    """
    advice = f"an elastic model can start from {', '.join(stock_types())}, a run, or a file of the authors'."
    model_type = fields.get("model_type")
    if not model_type:
        reason = ""
        if isinstance(architecture := fields.get("architecture"), str):
            reason = f", as a model of timm ({one_line(architecture, 60)}), whose form for transformers may exist"
        return f"{name} has no model_type in its {CONFIG}{reason}: {advice}"
    difference = _difference_of_beit(fields) if model_type in _BEIT_TYPES else _DIFFERENCES.get(str(model_type))
    kind = f"{name} is a {one_line(model_type, 60)!r} model"
    if not difference:
        return f"{kind}: {advice}"
    return f"{kind}, which {difference}: it can teach one (--foreign_teacher), and {advice}"


def _difference_of_beit(fields: Mapping[str, Any]) -> str:
    """What a BEiT computes that no elastic ViT does; the defaults of its fields are those of transformers."""
    if fields.get("use_relative_position_bias") or fields.get("use_shared_relative_position_bias"):
        return "adds relative position biases to its attention, while an elastic ViT embeds positions in its input"
    if fields.get("use_mean_pooling", True):
        return "ends without a layer normalisation (use_mean_pooling), while every elastic ViT has one"
    return "has keys without biases, while an elastic ViT has biases in queries, keys and values or in none of them"
