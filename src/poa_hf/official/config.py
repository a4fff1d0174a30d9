"""The configuration of one of the authors' checkpoints, as far as the shapes of its weights show it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..models.configuration_poa import PoaConfig
from ..models.from_fields import model_config
from .names import parameter_names

# The fields that determine the full size of a family. Where they have the published values, the fields that shapes do
# not show are assumed to have them as well.
_FULL_SIZE = {
    "poa_vit": ("hidden_size", "num_hidden_layers"),
    "poa_swin": ("embed_dim", "depths", "num_heads"),
    "poa_resnet": ("base_width", "depths", "hidden_sizes"),
}
_NOT_IN_SHAPES = {
    "poa_vit": "num_attention_heads, min_hidden_size and min_num_hidden_layers",
    "poa_swin": "image_size, min_embed_dim and min_depths",
    "poa_resnet": "image_size, num_groups, min_base_width and min_depths",
}


def checkpoint_config(
    tensors: Mapping[str, Tensor],
    model_type: str,
    section: Mapping[str, Any] | None = None,
    section_name: str = "the configuration",
) -> PoaConfig:
    """Return the configuration of weights under the authors' names.

    Widths, depths, patches, windows and heads are read from the shapes (`fields_from_shapes`). No weight shows the
    smallest size, the steps, ViT's head size, ResNet's groups, or the image size of Swin and ResNet: these come from
    `section`, or are the published ones if there is none and the full size is the published one.

    Args:
        tensors: The weights of a backbone, with or without heads.
        model_type: The elastic family, such as `poa_vit`.
        section: The `model` section of a configuration file; it may repeat what shapes show.
        section_name: What errors call the section.

    Returns:
        The configuration of the pre-training model.

    Raises:
        ValueError: If `section` is missing where it is needed, contradicts a shape or is of another family, or if a
            parameter that shows a size is missing.
    """
    fields = fields_from_shapes(tensors, model_type)
    backbone = fields.pop("backbone_config")
    section = section or {}
    section_backbone = dict(section.get("backbone_config") or {})
    if (named_type := section_backbone.get("model_type", model_type)) != model_type:
        raise ValueError(
            f"{section_name} has model_type {named_type}, and the checkpoint is a {model_type}: give the configuration "
            "that it was trained with."
        )
    _check_agreement(section, fields, section_name, "model.")
    _check_agreement(section_backbone, backbone, section_name, "model.backbone_config.")
    if not section:
        _check_published(backbone, model_type)
    return model_config(
        {
            **fields,
            **_without_none(section),
            "backbone_config": {"model_type": model_type, **backbone, **_without_none(section_backbone)},
        }
    )


def _check_agreement(
    section: Mapping[str, Any], from_shapes: Mapping[str, Any], section_name: str, prefix: str
) -> None:
    for name, value in section.items():
        if name in from_shapes and value is not None and value != from_shapes[name]:
            raise ValueError(
                f"{section_name} has {prefix}{name} {value} where the checkpoint has {from_shapes[name]}: give the "
                "configuration that it was trained with, or leave the key out."
            )


def _check_published(backbone: Mapping[str, Any], model_type: str) -> None:
    """Raise a ValueError unless the full size is the published one, which decides what shapes do not show."""
    published = model_config({"backbone_config": {"model_type": model_type}}).backbone_config
    different = {name: backbone[name] for name in _FULL_SIZE[model_type] if backbone[name] != getattr(published, name)}
    if different:
        sizes = ", ".join(f"{name} {value}" for name, value in different.items())
        raise ValueError(
            f"The checkpoint has {sizes}, which is not the published {model_type}, and weights do not show "
            f"{_NOT_IN_SHAPES[model_type]}: give them by --config FILE.yaml (if this is a single size that the "
            "authors' extractor wrote, convert the checkpoint that it was cut from)."
        )


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def fields_from_shapes(tensors: Mapping[str, Tensor], model_type: str) -> dict[str, Any]:
    """Return the fields of `PoaConfig` that shapes show, with those of the backbone under `backbone_config`.

    The fields of the heads are absent where the weights have no heads.

    Raises:
        ValueError: If a parameter that shows a size is missing or has an impossible shape.
    """
    shapes = _Shapes(tensors, model_type)
    read = {"poa_vit": _vit_fields, "poa_swin": _swin_fields, "poa_resnet": _resnet_fields}
    return {**_head_fields(shapes), "backbone_config": read[model_type](shapes)}


class _Shapes:
    """The shapes of a checkpoint's parameters, by the names that poa_hf gives them."""

    def __init__(self, tensors: Mapping[str, Tensor], model_type: str):
        self._shapes: dict[str, tuple[str, list[int]]] = {}
        for official_name, tensor in tensors.items():
            names = parameter_names(official_name, model_type) or []
            for name in names:
                shape = list(tensor.shape)
                if shape:
                    shape[0] //= len(names)  # queries, keys and values are stacked
                self._shapes[name] = (official_name, shape)

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def size(self, name: str, axis: int) -> int:
        """Return the size of one axis; raise a ValueError if the parameter is missing or has no such axis."""
        if name not in self._shapes:
            raise ValueError(f"The checkpoint lacks a parameter that shows its size ({name}).")
        official_name, shape = self._shapes[name]
        if not -len(shape) <= axis < len(shape) or shape[axis] < 1:
            raise ValueError(f"{official_name} has the shape {tuple(shape)}, which no checkpoint of this family has.")
        return shape[axis]

    def count(self, pattern: str, noun: str, step: int = 1) -> int:
        """Count the numbers that the pattern captures in names, which must be 0, step, 2 * step, ... without a gap."""
        numbers = {int(match[1]) for name in self._shapes if (match := re.match(pattern, name))}
        expected = {step * index for index in range(len(numbers))}
        if numbers != expected:
            missing = min(expected - numbers)
            raise ValueError(f"The checkpoint lacks {noun} {missing}, although it numbers them up to {max(numbers)}.")
        return len(numbers)

    def square_root(self, count: int, noun: str) -> int:
        side = math.isqrt(count)
        if side * side != count:
            raise ValueError(f"The checkpoint has {count} {noun}, which do not form a square.")
        return side


def _vit_fields(shapes: _Shapes) -> dict[str, Any]:
    patches = "student.embeddings.patch_embeddings.projection.weight"
    width, patch = shapes.size(patches, 0), shapes.size(patches, -1)
    positions = shapes.size("student.embeddings.position_embeddings", 1) - 1  # without the class token's
    return {
        "hidden_size": width,
        "num_hidden_layers": shapes.count(r"student\.encoder\.layer\.(\d+)\.", "block"),
        "mlp_ratio": _ratio(shapes.size("student.encoder.layer.0.mlp.fc1.weight", 0), width),
        "qkv_bias": "student.encoder.layer.0.attention.q_proj.bias" in shapes,
        "patch_size": patch,
        "image_size": patch * shapes.square_root(positions, "positions"),
        "num_channels": shapes.size(patches, 1),
    }


def _swin_fields(shapes: _Shapes) -> dict[str, Any]:
    patches = "student.embeddings.patch_embeddings.projection.weight"
    width = shapes.size(patches, 0)
    stages = shapes.count(r"student\.encoder\.layers\.(\d+)\.blocks\.", "stage")
    block = "student.encoder.layers.{}.blocks.0."
    table = block + "attention.relative_position_bias.relative_position_bias_table"
    return {
        "embed_dim": width,
        "depths": [shapes.count(rf"student\.encoder\.layers\.{s}\.blocks\.(\d+)\.", "block") for s in range(stages)],
        "num_heads": [shapes.size(table.format(stage), 1) for stage in range(stages)],
        "window_size": (shapes.square_root(shapes.size(table.format(0), 0), "offsets in a window") + 1) // 2,
        "mlp_ratio": _ratio(shapes.size(block.format(0) + "mlp.fc1.weight", 0), width),
        "qkv_bias": block.format(0) + "attention.q_proj.bias" in shapes,
        "patch_size": shapes.size(patches, -1),
        "num_channels": shapes.size(patches, 1),
    }


def _resnet_fields(shapes: _Shapes) -> dict[str, Any]:
    stem = "student.embedder.embedder.convolution.weight"
    stages = shapes.count(r"student\.encoder\.stages\.(\d+)\.layers\.", "stage")
    block = "student.encoder.stages.{}.layers.0.layer.{}.convolution.weight"
    return {
        "embedding_size": shapes.size(stem, 0),
        "num_channels": shapes.size(stem, 1),
        "hidden_sizes": [shapes.size(block.format(stage, 2), 0) for stage in range(stages)],
        "base_width": shapes.size(block.format(0, 0), 0),
        "depths": [shapes.count(rf"student\.encoder\.stages\.{s}\.layers\.(\d+)\.", "block") for s in range(stages)],
    }


def _head_fields(shapes: _Shapes) -> dict[str, Any]:
    heads = shapes.count(r"student_head\.(\d+)\.", "head")
    if not heads:
        return {}
    prototypes = "student_head.{}.prototypes.weight_v"
    linear_layers = shapes.count(r"student_head\.0\.mlp\.(\d+)\.", "layer", step=2)  # activations between
    return {
        "head_num_layers": linear_layers,
        "head_hidden_size": shapes.size("student_head.0.mlp.0.weight", 0),
        "head_bottleneck_size": shapes.size(prototypes.format(0), 1),
        "num_prototypes": [shapes.size(prototypes.format(head), 0) for head in range(heads)],
    }


def _ratio(wide: int, width: int) -> float | int:
    ratio = wide / width
    return int(ratio) if ratio == int(ratio) else ratio
