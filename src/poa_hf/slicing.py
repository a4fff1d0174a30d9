"""Sub-networks as slices of a full model's parameters, which training computes with and extraction copies.

One rule serves every family: take the leading entries of every axis, and multiply the weights of linear and
convolution layers by the full model's fan-in over the sub-network's (the method's alpha, arXiv 2408.01031).
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers.initialization import no_init_weights

from ._moved import moved_names
from .slice_rules import SliceRules


@dataclass(frozen=True)
class Slice:
    """How one tensor of a sub-network is cut from one of the full model.

    Attributes:
        source: The full model's name of the tensor.
        shape: Shape of the cut; None where the whole tensor is taken.
        groups: Number of channel groups in the last axis, each of which is cut.
        scale: Factor by which the entries are multiplied.
        lowered: Whether the tensor belongs to a linear or convolution layer, which autocast computes in half precision.
    """

    source: str
    shape: torch.Size | None
    groups: int
    scale: float
    lowered: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the slice is the full model's tensor as it is."""
        return self.shape is None and self.scale == 1

    def cut_from(self, full: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Tensor:
        """Return the slice of the full model's tensors, to which its gradients flow back.

        Args:
            full: The full model's tensors by name.
            dtype: What the entries are rounded to; None leaves them as they are.
        """
        tensor = full[self.source]
        dtype = dtype or tensor.dtype
        if self.scale != 1 or dtype != tensor.dtype:
            if torch.compiler.is_exporting():  # exported programs take no kernel that writes into a given tensor
                return (self.leading(tensor) * self.scale).to(dtype).flatten(*self.grouped_axes)
            return _ScaledSlice.apply(tensor, self, dtype)
        if self.shape is None:
            return tensor
        return self.leading(tensor).flatten(*self.grouped_axes)

    def leading(self, tensor: Tensor) -> Tensor:
        """Return a view of the entries that the slice takes; channel groups become a new axis, the last but one."""
        if self.shape is None:
            return tensor
        shape = self.shape
        if self.groups > 1:
            tensor = tensor.unflatten(-1, (self.groups, -1))  # (..., groups * C) to (..., groups, C)
            shape = torch.Size((*shape[:-1], self.groups, shape[-1] // self.groups))
        return tensor[tuple(slice(0, size) for size in shape)]

    @property
    def grouped_axes(self) -> tuple[int, int]:
        """The first and last of the axes into which `leading` splits the last axis."""
        return (-2, -1) if self.groups > 1 and self.shape is not None else (-1, -1)

    def add_gradient(self, total: Tensor, gradient: Tensor) -> None:
        """Add the slice's gradient to the gradient of the tensor that it is cut from, in place."""
        if self.groups > 1 and self.shape is not None:
            gradient = gradient.unflatten(-1, (self.groups, -1))
        self.leading(total).add_(gradient, alpha=self.scale)


def slice_plan(
    full: nn.Module,
    plain: nn.Module,
    rules: SliceRules = SliceRules(),  # noqa: B008 (frozen)
    full_depths: Sequence[int] = (),
    depths: Sequence[int] = (),
) -> dict[str, Slice]:
    """Return how each parameter and buffer of a plain small model is cut from those of a full one.

    Both may live on the meta device: only names and shapes are read.

    Args:
        full: The full model.
        plain: The sub-network as a model.
        rules: Where the family keeps its blocks and channel groups.
        full_depths: Blocks of each stage of the full model.
        depths: Blocks of each stage of the sub-network.

    Raises:
        ValueError: If the full model's layers are wrapped, as LoRA does, or its weights are quantised.
    """
    layers = {name for name, module in plain.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    source, plan = _tensors(full), {}
    for name, target in _tensors(plain).items():
        source_name = rules.source_name(name, full_depths, depths)
        if source_name not in source or not source[source_name].is_floating_point() == target.is_floating_point():
            raise ValueError(_not_plain(source_name))
        shape = source[source_name].shape
        module, _, kind = name.rpartition(".")
        scale = shape[1] / target.shape[1] if module in layers and kind == "weight" else 1
        cut = target.shape if shape != target.shape else None
        plan[name] = Slice(source_name, cut, rules.groups(name), scale, lowered=module in layers)
    return plan


def sliced_tensors(full: nn.Module, plan: dict[str, Slice]) -> dict[str, Tensor]:
    """Return the tensors of a sub-network, cut from the current ones of a full model; gradients flow back.

    A tensor that needs no cut is the full model's tensor, not a copy.
    """
    source = _sources(full, plan)
    return {name: cut.cut_from(source) for name, cut in plan.items()}


def _sources(full: nn.Module, plan: dict[str, Slice]) -> dict[str, Tensor]:
    source: dict[str, Tensor] = {**dict(full.named_parameters())}
    if any(cut.source not in source for cut in plan.values()):
        source |= dict(full.named_buffers())
    for cut in plan.values():
        if cut.source not in source:  # wrapped since the plan was made
            raise ValueError(_not_plain(cut.source))
    if len({tensor.is_meta for tensor in source.values()}) > 1:  # a model that is all there is made to be measured
        raise ValueError("Offloaded weights cannot be sliced: load the model without offloading (device_map).")
    return source


def _not_plain(name: str) -> str:
    return (
        f"{name} is not there as a plain weight, as in quantised models or behind LoRA's adapters, and cannot be "
        "sliced: merge adapters first (merge_and_unload), or extract sizes and adapt those."
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


class _ScaledSlice(torch.autograd.Function):
    """A slice times its scale, rounded, as one kernel: autograd would write a full-size gradient for every axis cut."""

    @staticmethod
    def forward(tensor: Tensor, cut: Slice, dtype: torch.dtype) -> Tensor:
        leading = cut.leading(tensor)
        result = torch.empty_like(leading, dtype=dtype, memory_format=torch.contiguous_format)
        if cut.scale == 1:
            result.copy_(leading)
        else:
            torch.mul(leading, cut.scale, out=result)
        return result.flatten(*cut.grouped_axes)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Slice, torch.dtype], output: Tensor) -> None:
        tensor, ctx.cut, _ = inputs
        ctx.full_shape, ctx.full_dtype = tensor.shape, tensor.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.new_zeros(ctx.full_shape, dtype=ctx.full_dtype)
        ctx.cut.add_gradient(total, gradient)
        return total, None, None


class _RoundedTensors(torch.autograd.Function):
    """Whole tensors rounded to another type, all of them in one kernel or a few."""

    @staticmethod
    def forward(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        results = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        torch._foreach_copy_(results, tensors)
        return tuple(results)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.dtypes = [tensor.dtype for tensor in inputs[1:]]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(gradient.to(dtype) for gradient, dtype in zip(gradients, ctx.dtypes, strict=True))


_BUILDING = threading.Lock()


@contextmanager
def without_storage() -> Iterator[None]:
    """Within this context, models are made on the meta device and not initialised.

    Only one thread at a time can enter it, because `no_init_weights` patches torch for all threads.
    """
    with _BUILDING, torch.device("meta"), no_init_weights():
        yield


class SlicedModel:
    """A plain model that computes with slices of a full model's tensors; it is called like the plain model.

    Args:
        plain: The sub-network as a model, which may live on the meta device.
        full: The full model.
        plan: How the tensors are cut (`slice_plan`).
        dtype: What the tensors of linear and convolution layers are rounded to, so that autocast to this type rounds
            none of them again; None leaves them as they are.

    Attributes:
        full: The tensors that the slices are cut from, by their names in the full model.
        tensors: The slices, by their names in the plain model.
    """

    def __init__(self, plain: nn.Module, full: nn.Module, plan: dict[str, Slice], dtype: torch.dtype | None = None):
        self.plain, self.plan = plain, plan
        self.full = _sources(full, plan)
        whole = {} if dtype is None else {n: self.full[c.source] for n, c in plan.items() if c.lowered and c.is_whole}
        rounded = dict(zip(whole, _RoundedTensors.apply(dtype, *whole.values()), strict=True)) if whole else {}
        self.tensors = {
            name: rounded[name] if name in rounded else cut.cut_from(self.full, dtype if cut.lowered else None)
            for name, cut in plan.items()
        }

    def with_tensors(self, tensors: dict[str, Tensor]) -> SlicedModel:
        """Return the same model computing with other tensors in place of its slices."""
        model = copy.copy(self)
        model.tensors = tensors
        return model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.plain, self.tensors, args, kwargs, tie_weights=False)


def checkpoint_with_slices(function: functools.partial, *args: Any) -> Any:
    """Compute a layer with activation checkpointing while it runs on slices.

    The recomputation happens when the call of the sliced model has ended and its layers hold their own tensors again,
    so it is given the slices that the forward pass used.

    Args:
        function: What transformers checkpoints: a partial of the layer's `forward`, whose first argument is the layer,
            or before transformers 5.23 a partial of a method bound to the layer.
        args: Further arguments of the function.
    """
    layer = function.args[0] if function.args else getattr(function.func, "__self__")  # noqa: B009 (for type checkers)
    slices = {f"layer.{name}": tensor for name, tensor in _tensors(layer).items()}
    recomputed = _Recomputed(layer, function)

    def run(*inputs: Any) -> Any:
        return functional_call(recomputed, slices, inputs, tie_weights=False)

    return checkpoint(run, *args, use_reentrant=False)


class _Recomputed(nn.Module):
    """A function of a layer as a module, which `functional_call` can run on other tensors."""

    def __init__(self, layer: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


__getattr__ = moved_names(__name__)
