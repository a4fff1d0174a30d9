"""Gradients that become complete, one layer after the other, in the backward pass of a loss.

All of a loss but its last pass through a backbone has been differentiated already (`early_gradients`). In the backward
pass of the loss, autograd computes what is left. A layer gets its gradients, of all passes together, as soon as it is
done with them, always from the last layer to the first: whoever averages gradients over processes, such as DDP, can do
so for the layers that are done while autograd goes on with the others, and sees the same order in each process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..slicing import Slice

# Of the nodes whose gradients are there, autograd runs the one with the highest number first. They count up from 0.
_AT_ONCE = 2**62


def with_gradients(value: Tensor, gradients: Mapping[Tensor, Tensor]) -> Tensor:
    """Return a scalar with the given value, whose gradients are known.

    Args:
        value: The value.
        gradients: Tensors that the scalar depends on, with its gradients of them.
    """
    return _WithGradients.apply(value, list(gradients.values()), *gradients)


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.saved_tensors, scale)


@dataclass(frozen=True)
class LayerSlice:
    """A slice of a parameter, which the last pass computes with.

    Attributes:
        tensor: The slice.
        index: The place of its parameter in the layer.
        cut: How it is cut.
        sum: The sum of the loss's gradients of the slice, without the last pass.
    """

    tensor: Tensor
    index: int
    cut: Slice
    sum: Tensor | None


def layer_in_last_pass(
    before: Tensor, parameters: Sequence[Tensor], sums: Sequence[Tensor | None], slices: Sequence[LayerSlice]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Connect what the last pass computes with in one layer with the layer's parameters.

    The loss is to depend on what is returned first for the last layer, with a gradient of 1.

    Args:
        before: What this function returned first for the layer before; a scalar 1 for the first layer.
        parameters: The parameters of the layer.
        sums: The sums of the loss's gradients of the parameters, without the last pass.
        slices: What is cut from them. If the last pass computes with a parameter itself, autograd adds its gradient.

    Returns:
        A scalar that makes this layer wait for all later ones in the backward pass; and the slices.
    """
    after, *tensors = _Layer.apply(list(slices), list(sums), before, *parameters)
    # a public way would be to make this node just before the layer is computed, within models of any kind
    # (docs/private_interfaces.md)
    after.grad_fn._set_sequence_nr(_AT_ONCE)
    return after, tuple(tensors)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, slices: list[LayerSlice], sums: list[Tensor | None], before: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.cuts = [(each.index, each.cut) for each in slices]
        ctx.like = [torch.empty_like(parameter, device="meta") for parameter in parameters]
        ctx.save_for_backward(*sums, *(each.sum for each in slices))
        return before.clone(), *(each.tensor.detach() for each in slices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *last: Tensor | None) -> tuple[Any, ...]:
        sums, of_slices = ctx.saved_tensors[: len(ctx.like)], ctx.saved_tensors[len(ctx.like) :]
        totals = _scaled(sums, scale)
        for index, like in enumerate(ctx.like):
            if index not in totals:
                totals[index] = torch.zeros_like(like, device=scale.device)
        earlier, exact = _scaled(of_slices, scale), in_precision(last, [ctx.like[index].dtype for index, _ in ctx.cuts])
        for number, (index, cut) in enumerate(ctx.cuts):
            parts = [part for part in (earlier.get(number), exact[number]) if part is not None]
            if parts:
                cut.add_gradient(totals[index], parts[0] if len(parts) == 1 else parts[0].add_(parts[1]))
        return None, None, scale, *(totals[index] for index in range(len(ctx.like)))


def _scaled(tensors: Sequence[Tensor | None], scale: Tensor) -> dict[int, Tensor]:
    """Return the products of tensors and a scalar, by their places; None is left out."""
    present = {index: tensor for index, tensor in enumerate(tensors) if tensor is not None}
    return dict(zip(present, torch._foreach_mul(list(present.values()), scale), strict=True)) if present else {}


def in_precision(tensors: Sequence[Tensor | None], dtypes: Sequence[torch.dtype]) -> list[Tensor | None]:
    """Return tensors in given precisions; those that have it already are returned as they are, and so is None."""
    results = list(tensors)
    lower = [i for i, (t, dtype) in enumerate(zip(tensors, dtypes, strict=True)) if t is not None and t.dtype != dtype]
    if lower:
        sources = [tensor for tensor in (tensors[index] for index in lower) if tensor is not None]
        exact = [torch.empty_like(t, dtype=dtypes[index]) for index, t in zip(lower, sources, strict=True)]
        torch._foreach_copy_(exact, sources)
        for index, tensor in zip(lower, exact, strict=True):
            results[index] = tensor
    return results
