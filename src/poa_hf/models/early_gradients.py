"""Gradients taken while a loss is still being computed.

Autograd keeps what a loss was computed from until the loss is whole. Where a loss is a sum of parts, each part can be
differentiated as soon as it is there, and its activations are freed before those of the next part are made. Callers see
none of this: the loss is a tensor as any other, whose backward pass hands on the gradient that is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class GradientSums:
    """Gradients of `inputs`, to which each part of a loss adds its own.

    Without inputs, or where nothing requires a gradient, all methods do nothing.
    """

    def __init__(self, inputs: Iterable[Tensor] = ()):
        self.inputs = list(inputs)
        self._sums: dict[Tensor, Tensor] = {}
        self._sources: dict[Tensor, Tensor] = {}

    def leaf(self, source: Tensor) -> Tensor:
        """A tensor to use in place of `source` wherever that is needed: the graph is cut there, so that what lies
        before it is passed once, by `pass_on`, with the sum of the gradients."""
        if source.is_leaf or not source.requires_grad:
            return source
        leaf = source.detach().requires_grad_()
        self._sources[leaf] = source
        return leaf

    def add(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor] | None = None) -> None:
        """Add the gradients of inputs and leaves; `gradients` are those of the outputs, 1 for scalars if not given. The
        graph of the outputs is freed."""
        pairs = zip(outputs, gradients or [None] * len(outputs), strict=True)
        pairs = [(output, gradient) for output, gradient in pairs if output.requires_grad]
        if not pairs:
            return
        outputs, gradients = zip(*pairs, strict=True)
        targets = [*self.inputs, *self._sources]
        # a backward pass takes the precision of the forward pass by itself
        with torch.autocast(outputs[0].device.type, enabled=False):
            found = torch.autograd.grad(outputs, targets, gradients, allow_unused=True)
        found = {target: gradient for target, gradient in zip(targets, found, strict=True) if gradient is not None}
        again = [target for target in found if target in self._sums]
        if again:
            # not in place: autograd may hand out one tensor for several gradients
            sums = torch._foreach_add([self._sums[target] for target in again], [found[target] for target in again])
            found |= dict(zip(again, sums, strict=True))
        self._sums |= found

    def pass_on(self, *leaves: Tensor) -> None:
        """Take the sums of leaves, of all if none is given, through the graph before them, and free both."""
        leaves = [leaf for leaf in leaves or list(self._sources) if leaf in self._sources]
        sources = [self._sources.pop(leaf) for leaf in leaves]
        sums = [self._sums.pop(leaf, None) for leaf in leaves]
        reached = [(source, total) for source, total in zip(sources, sums, strict=True) if total is not None]
        if reached:
            del sources, sums, leaves
            self.add(*zip(*reached, strict=True))

    def finish(self) -> list[Tensor]:
        """The gradients of the inputs: zeros where no part reached."""
        self.pass_on()
        return [self._sums[t] if t in self._sums else torch.zeros_like(t) for t in self.inputs]


def differentiated(loss: Callable[[GradientSums], Tensor], inputs: Iterable[Tensor]) -> Tensor:
    """The scalar that `loss` computes, differentiable in the inputs by the gradients that `loss` adds on its way."""
    inputs = [tensor for tensor in inputs if tensor.requires_grad]
    if torch.is_grad_enabled() and inputs:
        return _Differentiated.apply(loss, *inputs)
    return loss(GradientSums())


class _Differentiated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss: Callable[[GradientSums], Tensor], *inputs: Tensor):
        gradients = GradientSums(inputs)
        with torch.enable_grad():
            total = loss(gradients).detach()
        ctx.save_for_backward(*gradients.finish())
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return None, *torch._foreach_mul(ctx.saved_tensors, gradient)
