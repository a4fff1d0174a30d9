"""Stochastic depth by subset: the images that are dropped are not computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def num_kept(batch_size: int, drop_rate: float) -> int:
    """Return how many images of a batch a branch computes."""
    return max(1, int(batch_size * (1 - drop_rate)))


def add_residual(hidden_states: Tensor, branch: Callable[[Tensor, Tensor], Tensor], drop_rate: float) -> Tensor:
    """Return the hidden states plus a residual branch that is computed for a random subset of the batch, and rescaled.

    `max(1, floor(B * (1 - drop_rate)))` images are kept, and the branch is multiplied by B over their number, as in
    DINOv2's `drop_add_residual_stochastic_depth`.

    Args:
        hidden_states: (B, ...).
        branch: Computes the residual from the kept rows and their indices.
        drop_rate: Share of images that skip the branch.
    """
    batch_size = hidden_states.shape[0]
    kept = num_kept(batch_size, drop_rate)
    subset = Subset(torch.randperm(batch_size, device=hidden_states.device)[:kept], batch_size)
    residual = branch(subset.of(hidden_states), subset.index)  # (kept, ...)
    return subset.added(hidden_states, residual.to(hidden_states.dtype), batch_size / kept)


class Subset:
    """Some rows of tensors, none of them twice.

    Compiled, rows are put to their places by looking up for each place which row belongs there, which becomes part of
    the kernels around it. PyTorch's own operations, and their gradients, copy the whole tensor and then write the rows.

    Args:
        index: int64 (kept,), the rows.
        length: The number of rows of the tensors.

    Attributes:
        index: int64 (kept,), the rows.
    """

    def __init__(self, index: Tensor, length: int):
        self.index = index
        self._places: Tensor | None = None
        if torch.compiler.is_compiling():
            rows = torch.arange(len(index), device=index.device)
            self._places = torch.full((length,), -1, device=index.device).scatter(0, index, rows)  # (length,)

    def of(self, tensor: Tensor) -> Tensor:
        """Return the rows (kept, ...) of a tensor (length, ...)."""
        if self._places is not None:
            return _Selected.apply(tensor, self.index, self._places)
        # not `tensor[index]`, whose gradient sorts the indices on a GPU, as they might repeat
        return tensor.index_select(0, self.index)

    def added(self, tensor: Tensor, rows: Tensor, scale: float) -> Tensor:
        """Return a tensor (length, ...) to whose rows others (kept, ...) are added, multiplied by a factor."""
        if self._places is not None:
            return _Added.apply(tensor, rows, self.index, self._places, scale)
        return tensor.index_add(0, self.index, rows, alpha=scale)


def _placed(rows: Tensor, places: Tensor) -> Tensor:
    """Return a tensor (length, ...) with rows (kept, ...) at their places, and 0 elsewhere.

    Args:
        rows: (kept, ...).
        places: int64 (length,), which row belongs to a place; -1 where none does.
    """
    is_kept = (places >= 0).view(-1, *[1] * (rows.ndim - 1))
    return torch.where(is_kept, rows.index_select(0, places.clamp(min=0)), 0)


class _Selected(torch.autograd.Function):
    """Rows of a tensor, whose gradient is looked up."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, index: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return tensor.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return _placed(gradient, places), None, None


class _Added(torch.autograd.Function):
    """A tensor with scaled rows added, which are looked up."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: Tensor, index: Tensor, places: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(index)
        ctx.scale = scale
        return tensor + _placed(rows, places) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (index,) = ctx.saved_tensors
        return gradient, gradient.index_select(0, index) * ctx.scale, None, None, None
