"""The configuration of one of the authors' checkpoints: what shapes tell, and what must be said."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from ..models.configuration_poa import PoaConfig
from ..models.from_fields import model_config
from .weights import parameter_names

# What makes the full size of a family. Where these are the published ones, so is what shapes do not tell.
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
    tensors: Mapping[str, Tensor], model_type: str, given: dict | None = None, given_by: str = "the configuration"
) -> PoaConfig:
    """The configuration of weights under the authors' names.

    Widths, depths, patches, windows and heads are read from the shapes (`fields_from_shapes`). The smallest size, the
    steps, ViT's head size, ResNet's groups and the image size of Swin and ResNet are in no weight: they are those of
    `given`, the `model` section of a configuration file, which `given_by` is called; without one, the published ones,
    if the full size is the published one.

    Raises:
        ValueError: If `given` is missing where it is needed, contradicts a shape or is of another family, or a
            parameter that shows a size is missing.
    """
    fields = fields_from_shapes(tensors, model_type)
    backbone = fields.pop("backbone_config")
    given = given or {}
    given_backbone = dict(given.get("backbone_config") or {})
    if (named := given_backbone.get("model_type", model_type)) != model_type:
        raise ValueError(f"{given_by} has model_type {named}, and the checkpoint is a {model_type}: make them alike.")
    for part, prefix, read in ((given, "model.", fields), (given_backbone, "model.backbone_config.", backbone)):
        for name, value in part.items():
            if name in read and value is not None and value != read[name]:
                raise ValueError(
                    f"{given_by} has {prefix}{name} {value} where the checkpoint has {read[name]}: give the "
                    "configuration that it was trained with, or leave the key out."
                )
    if not given:
        published = model_config({"backbone_config": {"model_type": model_type}}).backbone_config
        full = {name: getattr(published, name) for name in _FULL_SIZE[model_type]}
        if found := {name: backbone[name] for name in full if backbone[name] != full[name]}:
            seen = ", ".join(f"{name} {value}" for name, value in found.items())
            raise ValueError(
                f"The checkpoint has {seen}, which is not the published {model_type}, and weights do not show "
                f"{_NOT_IN_SHAPES[model_type]}: give them by --config FILE.yaml (if this is a single size that the "
                "authors' extractor wrote, convert the checkpoint that it was cut from)."
            )
    given_backbone = {name: value for name, value in given_backbone.items() if value is not None}
    given = {name: value for name, value in given.items() if value is not None}
    return model_config(
        {**fields, **given, "backbone_config": {"model_type": model_type, **backbone, **given_backbone}}
    )


def fields_from_shapes(tensors: Mapping[str, Tensor], model_type: str) -> dict:
    """The fields of `PoaConfig` and, under `backbone_config`, of the backbone's configuration that shapes show.

    The heads' are absent where there are no heads. ValueError if a parameter that shows one is missing or odd.
    """
    shapes = _Shapes(tensors, model_type)
    read = {"poa_vit": _vit_fields, "poa_swin": _swin_fields, "poa_resnet": _resnet_fields}
    return {**_head_fields(shapes), "backbone_config": read[model_type](shapes)}


class _Shapes:
    """Sizes of axes by our names of the parameters."""

    def __init__(self, tensors: Mapping[str, Tensor], model_type: str):
        self._shapes = {}
        for official_name, tensor in tensors.items():
            names = parameter_names(official_name, model_type) or ()
            for name in names:
                shape = list(tensor.shape)
                if shape:
                    shape[0] //= len(names)
                self._shapes[name] = (official_name, shape)

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def size(self, name: str, axis: int) -> int:
        official_name, shape = self._shapes.get(name, (None, None))
        if shape is None:
            raise ValueError(f"The checkpoint lacks a parameter that shows its size ({name}).")
        if not -len(shape) <= axis < len(shape) or shape[axis] < 1:
            raise ValueError(f"{official_name} has the shape {tuple(shape)}, which no checkpoint of this family has.")
        return shape[axis]

    def count(self, pattern: str, what: str, step: int = 1) -> int:
        """How many numbers the pattern finds in names, which must be 0, step, 2 * step, ..."""
        found = {int(match[1]) for name in self._shapes if (match := re.match(pattern, name))}
        expected = {step * index for index in range(len(found))}
        if found != expected:
            missing = min(expected - found)
            raise ValueError(f"The checkpoint lacks {what} {missing} of those that it numbers up to {max(found)}.")
        return len(found)

    def square(self, count: int, what: str) -> int:
        side = math.isqrt(count)
        if side * side != count:
            raise ValueError(f"The checkpoint has {count} {what}, which make no square.")
        return side


def _vit_fields(shapes: _Shapes) -> dict:
    patches = "student.embeddings.patch_embeddings.projection.weight"
    width, patch = shapes.size(patches, 0), shapes.size(patches, -1)
    positions = shapes.size("student.embeddings.position_embeddings", 1) - 1  # and one of the class token
    return {
        "hidden_size": width,
        "num_hidden_layers": shapes.count(r"student\.encoder\.layer\.(\d+)\.", "block"),
        "mlp_ratio": _ratio(shapes.size("student.encoder.layer.0.mlp.fc1.weight", 0), width),
        "qkv_bias": "student.encoder.layer.0.attention.q_proj.bias" in shapes,
        "patch_size": patch,
        "image_size": patch * shapes.square(positions, "positions"),
        "num_channels": shapes.size(patches, 1),
    }


def _swin_fields(shapes: _Shapes) -> dict:
    patches = "student.embeddings.patch_embeddings.projection.weight"
    width = shapes.size(patches, 0)
    stages = shapes.count(r"student\.encoder\.layers\.(\d+)\.blocks\.", "stage")
    block = "student.encoder.layers.{}.blocks.0."
    table = block + "attention.relative_position_bias.relative_position_bias_table"
    return {
        "embed_dim": width,
        "depths": [shapes.count(rf"student\.encoder\.layers\.{s}\.blocks\.(\d+)\.", "block") for s in range(stages)],
        "num_heads": [shapes.size(table.format(stage), 1) for stage in range(stages)],
        "window_size": (shapes.square(shapes.size(table.format(0), 0), "offsets in a window") + 1) // 2,
        "mlp_ratio": _ratio(shapes.size(block.format(0) + "mlp.fc1.weight", 0), width),
        "qkv_bias": block.format(0) + "attention.q_proj.bias" in shapes,
        "patch_size": shapes.size(patches, -1),
        "num_channels": shapes.size(patches, 1),
    }


def _resnet_fields(shapes: _Shapes) -> dict:
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


def _head_fields(shapes: _Shapes) -> dict:
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
