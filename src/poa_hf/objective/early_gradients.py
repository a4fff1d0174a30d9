"""Gradients taken while a loss is still being computed.

Autograd keeps what a loss was computed from until the loss is whole. Where a loss is a sum of parts, each part can be
differentiated as soon as it is there, and its activations are freed before those of the next part are made. Callers see
none of this: the loss is a tensor as any other, whose backward pass hands on the gradient that is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..slicing import Slice, SlicedModel


class GradientSums:
    """Gradients of `inputs`, to which each part of a loss adds its own.

    Without inputs, or where nothing requires a gradient, all methods do nothing.
    """

    def __init__(self, inputs: Iterable[Tensor] = ()):
        self.inputs = list(inputs)
        self._sums: dict[Tensor, Tensor] = {}
        self._owned: set[Tensor] = set()
        self._sources: dict[Tensor, Tensor] = {}
        self._slices: dict[Tensor, tuple[Tensor, Slice]] = {}

    def leaf(self, source: Tensor) -> Tensor:
        """A tensor to use in place of `source` wherever that is needed: the graph is cut there, so that what lies
        before it is passed once, by `pass_on`, with the sum of the gradients."""
        if source.is_leaf or not source.requires_grad:
            return source
        leaf = source.detach().requires_grad_()
        self._sources[leaf] = source
        return leaf

    def put_on_leaves(self, model) -> None:
        """Cut the graph likewise at the slices that a `SlicedModel` computes with; other models are left as they are.
        Their sums are added to the leading entries of full ones at the end, and no full-size gradient of a slice is
        written."""
        for name, tensor in model.tensors.items() if isinstance(model, SlicedModel) else ():
            if tensor.requires_grad and not tensor.is_leaf:
                leaf = model.tensors[name] = tensor.detach().requires_grad_()
                self._slices[leaf] = model.full[model.plan[name].source], model.plan[name]

    def add(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor] | None = None) -> None:
        """Add the gradients of inputs and leaves; `gradients` are those of the outputs, 1 for scalars if not given. The
        graph of the outputs is freed."""
        pairs = zip(outputs, gradients or [None] * len(outputs), strict=True)
        pairs = [(output, gradient) for output, gradient in pairs if output.requires_grad]
        if not pairs:
            return
        outputs, gradients = zip(*pairs, strict=True)
        targets = [*self.inputs, *self._sources, *self._slices]
        # a backward pass takes the precision of the forward pass by itself
        with torch.autocast(outputs[0].device.type, enabled=False):
            found = torch.autograd.grad(outputs, targets, gradients, allow_unused=True)
        found = {target: gradient for target, gradient in zip(targets, found, strict=True) if gradient is not None}
        owned, again = [t for t in found if t in self._owned], found.keys() & self._sums.keys() - self._owned
        if owned:
            torch._foreach_add_([self._sums[t] for t in owned], [found.pop(t) for t in owned])
        if again:
            # not in place: autograd may hand out one tensor, or parts of one, as several gradients
            sums = torch._foreach_add([self._sums[t] for t in again], [found[t] for t in again])
            found |= dict(zip(again, sums, strict=True))
            self._owned |= again
        self._sums |= found

    def pass_on(self, leaf: Tensor) -> None:
        """Take the sum of a leaf through the graph before it, and free both."""
        source, total = self._sources.pop(leaf, None), self._sums.pop(leaf, None)
        self._owned.discard(leaf)
        if total is not None:
            self.add([source], [total])

    def finish(self) -> list[Tensor]:
        """The gradients of the inputs: zeros where no part reached."""
        for leaf, (full, cut) in self._slices.items():
            if leaf not in self._sums:
                continue
            if full not in self._owned:
                self._sums[full] = self._sums[full].clone() if full in self._sums else torch.zeros_like(full)
                self._owned.add(full)
            cut.add_gradient(self._sums[full], self._sums.pop(leaf))
        return [self._sums[t] if t in self._sums else torch.zeros_like(t) for t in self.inputs]


def differentiated(loss: Callable[..., Tensor], inputs: Sequence[Tensor], parameters: Iterable[Tensor]) -> Tensor:
    """The scalar that `loss(gradients, *inputs)` computes, differentiable in inputs and parameters by the gradients
    that `loss` adds on its way. It gets the inputs cut off from the graph that made them."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in [*inputs, *parameters]):
        return _Differentiated.apply(loss, len(inputs), *inputs, *parameters)
    return loss(GradientSums(), *inputs)


class _Differentiated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss: Callable[..., Tensor], num_inputs: int, *tensors: Tensor):
        leaves = [t.detach().requires_grad_() if t.requires_grad else t for t in tensors[:num_inputs]]
        tensors = [*leaves, *tensors[num_inputs:]]
        ctx.needed = [tensor.requires_grad for tensor in tensors]
        gradients = GradientSums(tensor for tensor in tensors if tensor.requires_grad)
        with torch.enable_grad(), _without_hooks(tensors):
            total = loss(gradients, *leaves).detach()
            ctx.save_for_backward(*gradients.finish())
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        found = iter(torch._foreach_mul(ctx.saved_tensors, gradient))
        return None, None, *(next(found) if needed else None for needed in ctx.needed)


@contextmanager
def _without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Within, hooks of these tensors are not called: theirs is the whole gradient, which the backward pass brings."""
    hooks = [tensor._backward_hooks for tensor in tensors if tensor._backward_hooks]
    kept = [dict(own) for own in hooks]
    for own in hooks:
        own.clear()
    try:
        yield
    finally:
        for own, before in zip(hooks, kept, strict=True):
            own.update(before)
