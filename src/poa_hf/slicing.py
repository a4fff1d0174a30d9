"""A sub-network as slices of the full model's parameters: run on them in training, copied out in extraction.

One rule serves every family: take the leading entries of every axis, and multiply the weights of linear and
convolution layers by full fan-in over own fan-in (the method's alpha, arXiv 2408.01031).
"""

from __future__ import annotations

import copy
import itertools
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils.checkpoint import checkpoint
from transformers.initialization import no_init_weights

from ._moved import moved_names
from .elastic import kept_blocks


@dataclass(frozen=True)
class SliceRules:
    """What slicing must know of a family.

    `blocks` is where its stages keep their blocks, as in `encoder.layer.{block}` or
    `encoder.layers.{stage}.blocks.{block}`. `grouped` maps a pattern of parameter names to the number of channel groups
    that lie side by side in their last axis; each group is cut on its own.
    """

    blocks: str = ""
    grouped: dict[str, int] = field(default_factory=dict)

    def _match(self, name: str) -> re.Match | None:
        if not self.blocks:
            return None
        pattern = (
            re.escape(self.blocks).replace(r"\{stage\}", r"(?P<stage>\d+)").replace(r"\{block\}", r"(?P<block>\d+)")
        )
        return re.match(pattern + r"\.", name)

    def source_name(self, name: str, full_depths: Sequence[int], depths: Sequence[int]) -> str:
        """The name in the full model of what the sub-network calls `name`."""
        match = self._match(name)
        if match is None:
            return name
        stage = int(match.groupdict().get("stage", 0))
        block = kept_blocks(full_depths[stage], depths[stage])[int(match["block"])]
        return f"{name[: match.start('block')]}{block}{name[match.end('block') :]}"

    def layer_indices(self, names: Iterable[str], depths: Sequence[int]) -> dict[str, int]:
        """The place of each parameter from input to output, for names in that order: 0 before the blocks, 1 for the
        first block; what lies between blocks counts with the block after it, and what follows all as one more."""
        names = list(names)
        matches = {name: self._match(name) for name in names}
        indices, index = {}, sum(depths) + 1
        for name in reversed(names):
            if match := matches[name]:
                index = 1 + sum(depths[: int(match.groupdict().get("stage", 0))]) + int(match["block"])
            indices[name] = index
        return indices | dict.fromkeys(itertools.takewhile(lambda name: matches[name] is None, names), 0)

    def groups(self, name: str) -> int:
        return next((groups for pattern, groups in self.grouped.items() if re.search(pattern, name)), 1)


@dataclass(frozen=True)
class Slice:
    """How one tensor of a sub-network is cut from one of the full model: `shape` None means that it is the same."""

    source: str
    shape: torch.Size | None
    groups: int
    scale: float

    def of(self, full: dict[str, Tensor]) -> Tensor:
        tensor = full[self.source]
        if self.shape is None:
            return tensor
        if self.scale != 1:
            return _ScaledSlice.apply(tensor, self)
        return _leading(tensor, self.shape, self.groups).flatten(*_grouped_axes(self.groups))

    def add_gradient(self, total: Tensor, gradient: Tensor) -> None:
        """Add the slice's gradient to that of the tensor that it is cut from, in place."""
        if self.groups > 1:
            gradient = gradient.unflatten(-1, (self.groups, -1))
        (total if self.shape is None else _leading(total, self.shape, self.groups)).add_(gradient, alpha=self.scale)


def slice_plan(
    full: nn.Module,
    plain: nn.Module,
    rules: SliceRules = SliceRules(),  # noqa: B008 (frozen)
    full_depths: Sequence[int] = (),
    depths: Sequence[int] = (),
) -> dict[str, Slice]:
    """How each parameter and buffer of `plain` is cut from `full`.

    Both may live on the meta device: only names and shapes are read.
    """
    fan_in_scaled = {f"{name}.weight" for name, m in plain.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    source, plan = _tensors(full), {}
    for name, target in _tensors(plain).items():
        source_name = rules.source_name(name, full_depths, depths)
        shape = source[source_name].shape
        scale = shape[1] / target.shape[1] if name in fan_in_scaled else 1
        plan[name] = Slice(source_name, target.shape if shape != target.shape else None, rules.groups(name), scale)
    return plan


def sliced_tensors(full: nn.Module, plan: dict[str, Slice]) -> dict[str, Tensor]:
    """The tensors of a sub-network, cut from `full` as it is now; gradients reach `full`.

    An entry that needs no cut is the full model's own tensor, not a copy.
    """
    source = _sources(full, plan)
    return {name: cut.of(source) for name, cut in plan.items()}


def _sources(full: nn.Module, plan: dict[str, Slice]) -> dict[str, Tensor]:
    source = dict(full.named_parameters())
    if any(cut.source not in source for cut in plan.values()):
        source |= dict(full.named_buffers())
    return source


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _leading(tensor: Tensor, shape: torch.Size, groups: int) -> Tensor:
    """A view of the leading entries of every axis; with groups, the last axis as (groups, entries of each)."""
    if groups > 1:
        tensor = tensor.unflatten(-1, (groups, -1))
        shape = torch.Size((*shape[:-1], groups, shape[-1] // groups))
    return tensor[tuple(slice(0, size) for size in shape)]


def _grouped_axes(groups: int) -> tuple[int, int]:
    return (-2, -1) if groups > 1 else (-1, -1)


class _ScaledSlice(torch.autograd.Function):
    """`scale` times the leading entries. As one operation, since autograd would otherwise write a full-size gradient
    for every axis that is cut."""

    @staticmethod
    def forward(tensor: Tensor, cut: Slice) -> Tensor:
        return (_leading(tensor, cut.shape, cut.groups) * cut.scale).flatten(*_grouped_axes(cut.groups))

    @staticmethod
    def setup_context(ctx, inputs, output):
        tensor, ctx.cut = inputs
        ctx.full_shape = tensor.shape

    @staticmethod
    def backward(ctx, gradient: Tensor):
        total = gradient.new_zeros(ctx.full_shape)
        ctx.cut.add_gradient(total, gradient)
        return total, None


_BUILDING = threading.Lock()


@contextmanager
def without_storage() -> Iterator[None]:
    """Models made within are on the meta device and not initialised. One thread at a time, as `no_init_weights` patches
    torch for all of them."""
    with _BUILDING, torch.device("meta"), no_init_weights():
        yield


class SlicedModel:
    """A plain model that computes with slices of a full one in place of its own tensors: call it like the model.

    `full` are the tensors that they are cut from, `tensors` the slices as they are now.
    """

    def __init__(self, plain: nn.Module, full: nn.Module, plan: dict[str, Slice]):
        self.plain, self.plan = plain, plan
        self.full = _sources(full, plan)
        self.tensors = {name: cut.of(self.full) for name, cut in plan.items()}

    def with_tensors(self, tensors: dict[str, Tensor]) -> SlicedModel:
        """Return the same model computing with other tensors in place of its slices."""
        model = copy.copy(self)
        model.tensors = tensors
        return model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.plain, self.tensors, args, kwargs, tie_weights=False)


def checkpoint_with_slices(function, *args):
    """Activation checkpointing for a layer under `functional_call`: the recomputation, which runs after the call has
    ended, gets the slices that the forward pass saw. `function` is a `functools.partial` of the layer's forward."""
    layer = function.args[0]
    slices = _tensors(layer)

    def run(*inputs):
        with _reparametrize_module(layer, slices):
            return function(*inputs)

    return checkpoint(run, *args, use_reentrant=False)


__getattr__ = moved_names(__name__)
