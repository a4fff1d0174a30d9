"""Gradients taken while a loss is still being computed.

Autograd keeps what a loss was computed from until the loss is complete. Where a loss is a sum of parts, each part can
be differentiated as soon as it is known, and its activations are freed before those of the next part are made. Callers
see none of this: the loss is a tensor like any other, whose backward pass returns gradients that exist already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..slicing import Slice, SlicedModel

Details = TypeVar("Details")
Model = TypeVar("Model")


class GradientSums:
    """Sums of the gradients of tensors, to which each part of a loss adds its share.

    Without tensors, or where nothing requires a gradient, nothing is computed.

    Args:
        inputs: The tensors whose gradients are summed.
    """

    def __init__(self, inputs: Iterable[Tensor] = ()):
        self.inputs = list(inputs)
        self._sums: dict[Tensor, Tensor] = {}
        self._owned: set[Tensor] = set()  # tensors whose sum is held only here and may be changed in place
        self._cuts: set[Tensor] = set()
        self._slices: dict[Tensor, tuple[Tensor, Slice]] = {}

    def add(self, output: Tensor, gradient: Tensor | None = None) -> Tensor:
        """Differentiate a part of the loss, and free its graph.

        Args:
            output: The part, a scalar; or any tensor that the loss depends on.
            gradient: The loss's gradient of `output`, unless that is the part itself.

        Returns:
            The output, detached.
        """
        if output.requires_grad:
            targets = [*self.inputs, *self._cuts, *self._slices]
            # a backward pass takes the precision of the forward pass by itself
            with torch.autocast(output.device.type, enabled=False):
                gradients = torch.autograd.grad(output, targets, gradient, allow_unused=True)
            found = {t: g for t, g in zip(targets, gradients, strict=True) if g is not None}
            self._accumulate(self._in_full_precision(found))
        return output.detach()

    def _in_full_precision(self, gradients: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Return gradients in the precision of their sums; those of tensors that were only rounded are the tensors'."""
        rounded = {t: g for t, g in gradients.items() if t in self._slices and g.dtype != self._slices[t][0].dtype}
        if not rounded:
            return gradients
        exact = [torch.empty_like(g, dtype=self._slices[t][0].dtype) for t, g in rounded.items()]
        torch._foreach_copy_(exact, list(rounded.values()))
        kept = {t: g for t, g in gradients.items() if t not in rounded}
        for leaf, gradient in zip(rounded, exact, strict=True):
            full, cut = self._slices[leaf]
            if cut.is_whole and full not in kept:
                leaf = full
            kept[leaf] = gradient
        return kept

    def _accumulate(self, gradients: dict[Tensor, Tensor]) -> None:
        owned = [target for target in gradients if target in self._owned]
        again = gradients.keys() & self._sums.keys() - self._owned
        if owned:
            torch._foreach_add_([self._sums[t] for t in owned], [gradients.pop(t) for t in owned])
        if again:
            # not in place: autograd may hand out one tensor, or parts of one, as several gradients
            sums = torch._foreach_add([self._sums[t] for t in again], [gradients[t] for t in again])
            gradients |= dict(zip(again, sums, strict=True))
            self._owned |= again
        self._sums |= gradients

    @contextmanager
    def cut(self, source: Tensor) -> Iterator[Tensor]:
        """Yield a detached tensor in place of `source`, so that the graph behind `source` is backpropagated only once.

        That happens when the context ends, with the sum of the gradients that were added within it.

        Args:
            source: A tensor that several parts of the loss are computed from, such as the features that all heads read.
        """
        if source.is_leaf or not source.requires_grad:
            yield source
            return
        leaf = source.detach().requires_grad_()
        self._cuts.add(leaf)
        yield leaf
        self._cuts.remove(leaf)
        total = self._sums.pop(leaf, None)
        self._owned.discard(leaf)
        if total is not None:
            self.add(source, total)

    def on_leaves(self, model: Model) -> Model:
        """Return a `SlicedModel` that computes with detached slices; another model is returned as it is.

        `totals` adds the sums of the slices to the leading entries of those of the full tensors, so that no full-size
        gradient of a single slice is ever written.
        """
        if not isinstance(model, SlicedModel):
            return model
        tensors = dict(model.tensors)
        for name, tensor in model.tensors.items():
            if tensor.requires_grad and not tensor.is_leaf:
                leaf = tensors[name] = tensor.detach().requires_grad_()
                self._slices[leaf] = model.full[model.plan[name].source], model.plan[name]
        return cast(Model, model.with_tensors(tensors))

    def totals(self) -> list[Tensor]:
        """Return the sums of the inputs' gradients, zeros where there are none, and clear those of slices."""
        while self._slices:
            leaf, (full, cut) = self._slices.popitem()
            if leaf not in self._sums:
                continue
            if full not in self._owned:
                self._sums[full] = self._sums[full].clone() if full in self._sums else torch.zeros_like(full)
                self._owned.add(full)
            cut.add_gradient(self._sums[full], self._sums.pop(leaf))
        return [self._sums[t] if t in self._sums else torch.zeros_like(t) for t in self.inputs]


def differentiated(
    loss: Callable[..., tuple[Tensor, Details]], inputs: Sequence[Tensor], parameters: Iterable[Tensor]
) -> tuple[Tensor, Details]:
    """Return what a loss function returns, with a loss whose gradients are those that it has added up.

    Args:
        loss: Called as `loss(gradients, *inputs)`, it returns a scalar and anything else, and adds its gradients to
            `gradients`. It is given detached inputs.
        inputs: Tensors that the loss is differentiated by if they require it.
        parameters: Further tensors that it is differentiated by, which are not passed to the loss function.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in [*inputs, *parameters]):
        return _Differentiated.apply(loss, len(inputs), *inputs, *parameters)
    return loss(GradientSums(), *inputs)


class _Differentiated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: Callable[..., tuple[Tensor, Details]], num_inputs: int, *tensors: Tensor
    ) -> tuple[Tensor, Details]:
        leaves = [t.detach().requires_grad_() if t.requires_grad else t for t in tensors[:num_inputs]]
        targets = [*leaves, *tensors[num_inputs:]]
        ctx.needed = [target.requires_grad for target in targets]
        gradients = GradientSums(target for target in targets if target.requires_grad)
        with torch.enable_grad(), _without_hooks(targets):
            total, details = loss(gradients, *leaves)
            ctx.save_for_backward(*gradients.totals())
        return total.detach(), details

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: None = None) -> tuple[Tensor | None, ...]:
        gradients = iter(torch._foreach_mul(ctx.saved_tensors, gradient))
        return None, None, *(next(gradients) if needed else None for needed in ctx.needed)


@contextmanager
def _without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Within this context, the tensors' hooks are not called: they expect the whole gradient, in the backward pass."""
    # no public way leads to hooks that others have registered (docs/private_interfaces.md)
    hooks = [tensor._backward_hooks for tensor in tensors if tensor._backward_hooks]
    saved = [dict(of_tensor) for of_tensor in hooks]
    for of_tensor in hooks:
        of_tensor.clear()
    try:
        yield
    finally:
        for of_tensor, before in zip(hooks, saved, strict=True):
            of_tensor.update(before)
