"""What the families' forms in timm have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class TimmModel:
    """A model as timm builds it.

    Args:
        architecture: A model that timm names. Its sizes are replaced by `model_args`.
        model_args: The arguments of `timm.create_model`.
        tensors: The weights under timm's names.
        num_features: The number of features of an image.
        global_pool: How timm makes the features of an image from those of its places, such as `avg`.
        pretrained_cfg: What timm notes about the weights, besides how images are prepared.
    """

    architecture: str
    model_args: dict[str, Any]
    tensors: dict[str, Tensor]
    num_features: int
    global_pool: str
    pretrained_cfg: dict[str, Any] = field(default_factory=dict)


def check_fields(config: PreTrainedConfig, kind: str, fixed: Mapping[str, Any]) -> None:
    """Check the fields that a kind of model has no argument for in timm.

    Raises:
        ValueError: If a field has another value than timm's.
    """
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"timm's {kind} has {name} {value}, not {getattr(config, name)}: use the format {config.model_type}."
            )


def patch_side(config: PreTrainedConfig, side: int) -> int:
    """Return the side in pixels of a model's patches, which must fill images of `side` pixels, as timm demands.

    Raises:
        ValueError: If they do not, or are not square.
    """
    patch = config.patch_size
    if not isinstance(patch, int) or side % patch:
        raise ValueError(
            f"timm does not take images of {side} pixels in patches of {patch}: use the format {config.model_type}."
        )
    return patch


def ratio(hidden: int, width: int) -> float:
    """Return the number of which timm makes `hidden` channels, as `int(width * ratio)`.

    >>> int(11 * (15 / 11)), int(11 * ratio(15, 11))
    (14, 15)
    """
    value = hidden / width
    return value if int(width * value) == hidden else math.nextafter(value, math.inf)


def renamed(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the weights and biases, where there are any, of some modules under the new names of these modules."""
    return {
        f"{new}.{leaf}": tensors[f"{old}.{leaf}"]
        for old, new in names.items()
        for leaf in ("weight", "bias")
        if f"{old}.{leaf}" in tensors
    }


def joined(tensors: Mapping[str, Tensor], modules: Sequence[str], name: str) -> dict[str, Tensor]:
    """Return the weights and biases of some linear layers as those of one with all their outputs, called `name`."""
    return {
        f"{name}.{leaf}": torch.cat([tensors[f"{module}.{leaf}"] for module in modules])
        for leaf in ("weight", "bias")
        if f"{modules[0]}.{leaf}" in tensors
    }
