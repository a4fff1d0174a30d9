"""Activation checkpointing, under the names that supported versions of transformers have for it.

transformers 5.23 renamed it from gradient to activation checkpointing; the old names end with version 6.
"""

from __future__ import annotations

from transformers import PreTrainedModel


def enable_activation_checkpointing(model: PreTrainedModel, use_reentrant: bool = False) -> None:
    """Make a model compute activations again in the backward pass, block by block, instead of keeping them."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})


def is_activation_checkpointing(model: PreTrainedModel) -> bool:
    """Whether activation checkpointing is enabled in any part of a model."""
    new, old = "is_activation_checkpointing", "is_gradient_checkpointing"
    return getattr(model, new if hasattr(type(model), new) else old)
