"""Gradients taken while a loss is still being computed.

Autograd keeps what a loss was computed from until the loss is complete. Where a loss is a sum of parts, each part can
be differentiated as soon as it is known, and its activations are freed before those of the next part are made. Callers
see none of this: the loss is a tensor like any other, whose backward pass returns gradients that exist already, and
computes those of the last part (`final_gradients`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch import Tensor

from ..slicing import Slice, SlicedModel
from .final_gradients import LayerSlice, in_precision, layer_in_last_pass, with_gradients

Details = TypeVar("Details")
Model = TypeVar("Model")


class GradientSums:
    """Sums of the gradients of tensors, to which each part of a loss adds its share.

    Without tensors, or where nothing requires a gradient, nothing is computed.

    Args:
        inputs: The tensors whose gradients are summed.
        layers: Those among them that a backbone computes with, by layer, from its input to its output. If they are
            given, the last pass through the backbone is left to the backward pass of the loss (`start_last_pass`).
    """

    def __init__(self, inputs: Iterable[Tensor] = (), layers: Iterable[Sequence[Tensor]] = ()):
        self.inputs = list(inputs)
        self._layers = [layer for layer in layers if layer]
        self._sums: dict[Tensor, Tensor] = {}
        self._owned: set[Tensor] = set()  # tensors whose sum is held only here and may be changed in place
        self._cuts: set[Tensor] = set()
        self._slices: dict[Tensor, tuple[Tensor, Slice]] = {}
        # What the backward pass of the loss starts from besides the inputs, and the loss's gradients of it.
        self._left: dict[Tensor, Tensor] = {}

    def add(self, output: Tensor, gradient: Tensor | None = None) -> Tensor:
        """Differentiate a part of the loss, and free its graph.

        Args:
            output: The part, a scalar; or any tensor that the loss depends on.
            gradient: The loss's gradient of `output`, unless that is the part itself.

        Returns:
            The output, detached.
        """
        if output.requires_grad:
            self._differentiate([output], None if gradient is None else [gradient])
        return output.detach()

    def _differentiate(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor] | None) -> None:
        targets = [*self.inputs, *self._cuts, *self._slices]
        # a backward pass takes the precision of the forward pass by itself
        with torch.autocast(outputs[0].device.type, enabled=False):
            of_targets = torch.autograd.grad(outputs, targets, gradients, allow_unused=True)
        found = {t: g for t, g in zip(targets, of_targets, strict=True) if g is not None}
        self._accumulate(self._of_full_tensors(found))

    def _of_full_tensors(self, gradients: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Return gradients in the precision of their sums; those of whole slices become the full tensors'."""
        leaves = [tensor for tensor in gradients if tensor in self._slices]
        exact = in_precision([gradients.pop(leaf) for leaf in leaves], [self._slices[leaf][0].dtype for leaf in leaves])
        for leaf, gradient in zip(leaves, exact, strict=True):
            full, cut = self._slices[leaf]
            gradients[full if cut.is_whole and full not in gradients else leaf] = cast(Tensor, gradient)
        return gradients

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
    def cut(self, *sources: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield detached tensors in place of `sources`, so that the graph behind them is backpropagated only once.

        That happens when the context ends, with the sums of the gradients that were added within it; or in the backward
        pass of the loss, if the sources were computed in the last pass. Within another cut, they are added to that.

        Args:
            sources: Tensors that several parts of the loss are computed from, such as the features that all heads read.
        """
        inner = [source for source in sources if source.requires_grad and not source.is_leaf]
        leaves = {source: source.detach().requires_grad_() for source in inner}
        self._cuts |= set(leaves.values())
        yield tuple(leaves.get(source, source) for source in sources)
        self._cuts -= set(leaves.values())
        found = {source: total for source, leaf in leaves.items() if (total := self._pop(leaf)) is not None}
        if self._left and not self._cuts:
            self._left |= found
        elif found:
            self._differentiate(list(found), list(found.values()))

    def _pop(self, tensor: Tensor) -> Tensor | None:
        self._owned.discard(tensor)
        return self._sums.pop(tensor, None)

    def on_leaves(self, model: Model) -> Model:
        """Return a `SlicedModel` that computes with detached slices; another model is returned as it is.

        `totals` adds the sums of the slices to the leading entries of those of the full tensors, so that no full-size
        gradient of a single slice is ever written.
        """
        if not isinstance(model, SlicedModel):
            return model
        tensors = dict(model.tensors)
        for name, tensor in model.tensors.items():
            if tensor.requires_grad:
                leaf = tensors[name] = tensor.detach().requires_grad_()
                self._slices[leaf] = model.full[model.plan[name].source], model.plan[name]
        return cast(Model, model.with_tensors(tensors))

    def start_last_pass(self, model: object) -> None:
        """Let a model compute the last pass, whose graph is left to the backward pass of the loss.

        Gradients of the layers are not added from now on: those that exist are handed on by the loss's backward pass.

        Args:
            model: What `on_leaves` returned, whose tensors become connected to the layers, or a model that computes
                with the parameters themselves.
        """
        if not self._layers:
            return
        names = {leaf: name for name, leaf in model.tensors.items()} if isinstance(model, SlicedModel) else {}
        handed = {parameter for layer in self._layers for parameter in layer}
        self._fold([leaf for leaf, (full, _) in self._slices.items() if full in handed and leaf not in names])
        slices: dict[Tensor, list[Tensor]] = {}
        for leaf in names:
            if leaf in self._slices:
                slices.setdefault(self._slices[leaf][0], []).append(leaf)
        tensors: dict[str, Tensor] = {}
        before = self._layers[0][0].new_ones(())
        for layer in self._layers:
            leaves = [(index, leaf) for index, full in enumerate(layer) for leaf in slices.get(full, [])]
            cuts = [LayerSlice(leaf, index, self._slices.pop(leaf)[1], self._pop(leaf)) for index, leaf in leaves]
            before, connected = layer_in_last_pass(before, layer, [self._pop(full) for full in layer], cuts)
            tensors |= {names[leaf]: tensor for (_, leaf), tensor in zip(leaves, connected, strict=True)}
        self._left[before] = torch.ones_like(before)
        self.inputs = [tensor for tensor in self.inputs if tensor not in handed]
        if isinstance(model, SlicedModel):
            model.tensors |= tensors

    def totals(self) -> list[Tensor]:
        """Return the sums of the inputs' gradients, zeros where there are none, and clear those of slices."""
        self._fold(list(self._slices))
        return [self._sums[t] if t in self._sums else torch.zeros_like(t) for t in self.inputs]

    def _fold(self, leaves: Iterable[Tensor]) -> None:
        """Add the sums of slices to those of the full tensors."""
        for leaf in leaves:
            full, cut = self._slices.pop(leaf)
            total = self._pop(leaf)
            if total is None:
                continue
            if full not in self._owned:
                self._sums[full] = self._sums[full].clone() if full in self._sums else torch.zeros_like(full)
                self._owned.add(full)
            cut.add_gradient(self._sums[full], total)

    def attached_to(self, loss: Tensor, originals: Mapping[Tensor, Tensor]) -> Tensor:
        """Return a loss whose backward pass hands on the sums, and computes what is left.

        Args:
            loss: Its value.
            originals: Tensors that the loss depends on in place of some of the inputs.
        """
        sums = zip(self.inputs, self.totals(), strict=True)
        gradients = {originals.get(tensor, tensor): total for tensor, total in sums}
        return with_gradients(loss, {**gradients, **self._left})


def differentiated(
    loss: Callable[..., tuple[Tensor, Details]],
    inputs: Sequence[Tensor],
    parameters: Iterable[Tensor],
    layers: Iterable[Iterable[Tensor]] = (),
) -> tuple[Tensor, Details]:
    """Return what a loss function returns, with a loss whose gradients are those that it has added up.

    Args:
        loss: Called as `loss(gradients, *inputs)`, it returns a scalar and anything else, and adds its gradients to
            `gradients`. It is given detached inputs.
        inputs: Tensors that the loss is differentiated by if they require it.
        parameters: Further tensors that it is differentiated by, which are not passed to the loss function.
        layers: Those among the parameters that a backbone computes with, by layer, from its input to its output. Their
            gradients become complete one layer after the other, from the last, in the loss's backward pass.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not torch.is_grad_enabled() or not (wanted or parameters):
        return loss(GradientSums(), *inputs)
    leaves = {tensor: tensor.detach().requires_grad_() for tensor in wanted}
    # The last pass's graph would end at detached inputs.
    late = [] if wanted else [[parameter for parameter in layer if parameter.requires_grad] for layer in layers]
    gradients = GradientSums([*leaves.values(), *parameters], late)
    with _without_hooks(parameters):
        total, details = loss(gradients, *(leaves.get(tensor, tensor) for tensor in inputs))
    return gradients.attached_to(total, {leaf: tensor for tensor, leaf in leaves.items()}), details


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
