"""Run images through a model or one of its sub-networks to see what it computes, leaving the model unchanged."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..models.elastic_config import is_hierarchical
from ..models.elastic_model import ElasticModelMixin
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..slicing import SlicedModel
from ..sub_network import SubNetwork
from .features import evaluation_mode

CONVOLUTIONAL_STRIDE = 32  # of the last feature map of ResNet and its like


@dataclass(frozen=True)
class OpenedModel:
    """A model, or a sub-network of it, ready to run images.

    Args:
        full: The model.
        module: The module that computes: the model, or the plain model of the sub-network.
        forward: Its forward function, on the sub-network's weights.
    """

    full: PreTrainedModel
    module: PreTrainedModel
    forward: Callable[..., Any]

    @property
    def name(self) -> str:
        return type(self.module).__name__

    def __call__(self, pixel_values: Tensor, **options: Any) -> Any:
        """The outputs for normalised images (B, 3, H, W), in any precision.

        Args:
            pixel_values: The images.
            **options: Further arguments of the model, such as `output_hidden_states`.

        Raises:
            ValueError: For images of another shape, or too small for the windows of a stock Swin.
        """
        self._check(pixel_values)
        options["return_dict"] = True
        if "interpolate_pos_encoding" in inspect.signature(self.module.forward).parameters:
            # stock ViT is told only where it must, as not all grids of positions can be interpolated
            options["interpolate_pos_encoding"] = _pair(self.module.config.image_size) != pixel_values.shape[2:]
        return self.forward(pixel_values.to(self.full.device, self.full.dtype), **options)

    def grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Rows and columns of the tokens after the last layer, for images (B, 3, H, W)."""
        config = self.module.config
        height, width = pixel_values.shape[2:]
        patch_height, patch_width = _pair(config.patch_size)
        if not is_hierarchical(config):
            return height // patch_height, width // patch_width
        # hierarchical models pad where others cut off
        merged = 2 ** (len(config.depths) - 1)
        return -(-height // (patch_height * merged)), -(-width // (patch_width * merged))

    @property
    def stride(self) -> int:
        """The side in pixels of what one token, or one position of the feature map, stands for."""
        config = self.module.config
        if not hasattr(config, "patch_size"):
            return CONVOLUTIONAL_STRIDE
        return _pair(config.patch_size)[0] * (2 ** (len(config.depths) - 1) if is_hierarchical(config) else 1)

    def _check(self, pixel_values: Tensor) -> None:
        if pixel_values.ndim != 4:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}: give images of one size, (B, 3, H, W)."
            )
        config = self.full.config
        if config.model_type == "swin" and min(self.grid(pixel_values)) < config.window_size:
            size = " x ".join(map(str, pixel_values.shape[2:]))
            needed = config.window_size * _pair(config.patch_size)[0] * 2 ** (len(config.depths) - 1)
            raise ValueError(
                f"Images of {size} pixels are too small for the windows of {self.name}: give sides of at least "
                f"{needed} pixels."
            )


def patches_of_output(run: OpenedModel, output: Any, pixel_values: Tensor) -> Tensor:
    """Return the features of patches in the output of an opened model, where they lie in the image: (B, h, w, D).

    Args:
        run: The model.
        output: What it returned for the images.
        pixel_values: The images (B, C, H, W).

    Raises:
        ValueError: If the output has no such features.
    """
    hidden = getattr(output, "last_hidden_state", None)
    if hidden is None:
        raise ValueError(f"The output of {run.name} has no last_hidden_state: pass the base model.")
    if hidden.ndim == 4:
        return hidden.permute(0, 2, 3, 1)  # (B, D, h, w) -> (B, h, w, D)
    grid = run.grid(pixel_values)
    others = hidden.shape[1] - grid[0] * grid[1]  # the class token and registers come first
    if others < 0:
        raise ValueError(
            f"{run.name} gives {hidden.shape[1]} tokens for {grid[0]} x {grid[1]} patches, which do not fill a grid: "
            "pass a model with one token per patch."
        )
    return hidden[:, others:].unflatten(1, grid)  # (B, N, D) -> (B, h, w, D)


@contextmanager
def opened(model: PreTrainedModel, sub_network: SubNetwork | str | None) -> Iterator[OpenedModel]:
    """Open a model within the block, in evaluation mode and without gradients. Afterwards it is as it was.

    Raises:
        ValueError: For a `PoaForPreTraining`, a size outside the model's space, or a size of a model with only one.
    """
    if isinstance(model, PoaForPreTraining):
        raise ValueError("PoaForPreTraining holds two backbones: pass its teacher (or student).")
    if sub_network is not None and not isinstance(model, ElasticModelMixin):
        raise ValueError(f"{type(model).__name__} has one size: leave out sub_network, here {sub_network}.")
    with evaluation_mode(model), torch.no_grad(), _windows_kept(model):
        called = model.sliced(sub_network) if isinstance(model, ElasticModelMixin) else model
        module = cast(PreTrainedModel, called.plain) if isinstance(called, SlicedModel) else called
        yield OpenedModel(model, module, called)


@contextmanager
def _windows_kept(model: nn.Module) -> Iterator[None]:
    """Restore the windows of stock Swin's blocks, which a small image shrinks for good."""
    windows = [
        (block, block.window_size, block.shift_size) for block in model.modules() if hasattr(block, "shift_size")
    ]
    try:
        yield
    finally:
        for block, window_size, shift_size in windows:
            block.window_size, block.shift_size = window_size, shift_size


@contextmanager
def attention_weights(attention: nn.Module) -> Iterator[list[Tensor]]:
    """Let one attention layer compute its weights within the block; the list then holds them: (B, heads, N, N).

    Args:
        attention: A layer of transformers with a `config`, whose output is a tuple of features and weights, as the
            eager implementation of attention gives it.
    """
    weights: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, tuple) and len(output) > 1 and output[1] is not None:
            weights.append(output[1])

    config = cast(PreTrainedConfig, attention.config)
    # a configuration of its own, as all layers share one, and the others need not compute their weights
    eager = type(config).from_dict(config.to_dict(), attn_implementation="eager")
    attention.config = eager  # type: ignore[assignment]  # to type checkers, a module holds tensors and modules only
    hook = attention.register_forward_hook(keep)
    try:
        yield weights
    finally:
        hook.remove()
        attention.config = config  # type: ignore[assignment]


def _pair(sides: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    height, width = (sides, sides) if isinstance(sides, int) else sides
    return height, width
