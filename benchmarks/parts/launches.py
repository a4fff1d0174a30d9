"""Counting of what a training step launches and moves, on tensors without memory, for launches.py."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.initialization import no_init_weights

from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainingArguments, SubNetwork
from poa_hf.data import augment
from poa_hf.data.crops import draw_augmentation
from poa_hf.models.compiled_blocks import BlockCompiler
from poa_hf.objective import losses
from poa_hf.training.optimization import build_optimizer, hyperparameters_at, set_hyperparameters, step_unless

from . import fakes  # noqa: F401 (registers operations)
from .regions import step_parts

# Operations that launch nothing, besides those that only make views.
_FREE = (
    "aten.empty",
    "aten.new_empty",
    "aten.lift_fresh",
    "aten._local_scalar",
    "aten.is_same_size",
    "prim.",
    "profiler.",
)
# Operations that write an argument without reading it, besides those that are given where to write.
_OVERWRITING = ("aten.copy_", "aten._foreach_copy_", "aten.fill_", "aten.zero_", "aten._foreach_zero_")
MASKED_PATCHES = 0.15  # share of the patches of global crops that are masked on average: half of 10 to 50 %


@dataclass
class Work:
    """What a part of a step launches and moves.

    Attributes:
        operations: How often each operation that launches a kernel is called, by name.
        bytes: What these operations read and write, each by itself. Where a tensor is indexed, it counts as read whole.
    """

    operations: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    @property
    def launches(self) -> int:
        """The number of operations that launch a kernel, which on a GPU is one at least."""
        return self.operations.total()

    def add(self, other: Work, sign: int = 1) -> None:
        """Add other work to this one, or take it off with a sign of -1."""
        for name, count in other.operations.items():
            self.operations[name] += sign * count
        self.bytes += sign * other.bytes


class Launches(TorchDispatchMode):
    """Counts the operations that launch a kernel within the context, and the bytes that they read and write.

    Args:
        device: Type of the device whose operations are counted.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device = device
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not _makes_view(func) and not str(func).startswith(_FREE) and _on_device(result, self.device):
            self.work.operations[str(func)] += 1
            self.work.bytes += _bytes_moved(func, args, kwargs or {}, result)
        return result


def _makes_view(func: Any) -> bool:
    """Whether an operation's result shares its input's memory unchanged."""
    returned = [each.alias_info for each in func._schema.returns]
    views = [alias is not None and not alias.is_write for alias in returned]
    return bool(views) and all(views) or str(func) in ("aten._unsafe_view.default", "aten.detach.default")


def _on_device(result: Any, device: str) -> bool:
    tensors = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
    return not tensors or any(tensor.device.type == device for tensor in tensors)


def _bytes_moved(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> int:
    """Return what an operation reads and writes."""
    moved = 0
    overwrites = str(func).startswith(_OVERWRITING)
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    for argument in func._schema.arguments:
        size = _bytes_of(given.get(argument.name))
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        is_read = not (is_written and (overwrites or argument.kwarg_only))
        moved += size * (is_read + is_written)
    if all(returned.alias_info is None for returned in func._schema.returns):
        moved += _bytes_of(result)
    return moved


def _bytes_of(values: Any) -> int:
    return sum(
        # along an expanded axis, all entries are one in memory
        math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
        * tensor.element_size()
        for tensor in tree_leaves(values)
        if isinstance(tensor, torch.Tensor)
    )


@contextmanager
def fake_step() -> Iterator[None]:
    """Within the context, steps run on tensors without memory, and losses in chunks of a GPU's size."""
    with FakeTensorMode(), patch.object(losses, "CHUNK_LOGITS", losses.CHUNK_LOGITS_ON_GPU):
        yield


def count_step(
    config: PoaConfig, size: SubNetwork, args: PoaTrainingArguments, bf16: bool, compiler: BlockCompiler | None = None
) -> dict[str, Work]:
    """Return what a training step launches and moves, by part.

    Nothing is computed, so that a step of any size is counted in seconds on any machine. The colours' augmentation is
    counted on small crops, as its launches do not depend on their size; what it moves is not counted.

    Args:
        config: The model's configuration.
        size: The size of the elastic student.
        args: The arguments of the run.
        bf16: Whether the step is computed in bfloat16, by autocast.
        compiler: Is given each call of a block or loss (`compiled_work.Recorder`).
    """
    parts: dict[str, Work] = {"augmentation": _augmentation(args)}

    def counted(function: Callable, part: str) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            with Launches() as launches:
                result = function(*args, **kwargs)
            parts.setdefault(part, Work()).add(launches.work)
            return result

        return call

    with fake_step():
        with no_init_weights():
            model = PoaForPreTraining(config).train()
        model.compile_blocks(compiler)
        optimizer = build_optimizer(model, args)
        values = hyperparameters_at(args.masked_prediction_start_step, args, args.per_device_train_batch_size)
        set_hyperparameters(optimizer, values)
        batch = args.per_device_train_batch_size
        grid = (args.global_crop_size // config.backbone_config.patch_grid) ** 2
        global_crops = torch.empty(2 * batch, 3, args.global_crop_size, args.global_crop_size)
        local_crops = torch.empty(args.num_local_crops * batch, 3, args.local_crop_size, args.local_crop_size)
        masks = torch.empty(2 * batch, grid, dtype=torch.bool)
        masked_patches = torch.empty(int(2 * batch * grid * MASKED_PATCHES), dtype=torch.int64)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            with step_parts(model, counted), Launches() as whole:
                output = model(
                    global_crops, local_crops, masks, size, 0.07,
                    masked_patches=masked_patches, pack_crops=args.pack_crops,
                )  # fmt: skip
        for name in ("teacher", "intact", "elastic", "heads and losses"):
            whole.work.add(parts[name], sign=-1)
        parts["other"] = whole.work
        skip = torch.zeros((), dtype=torch.bool)
        assert output.loss is not None
        counted(output.loss.backward, "other")()
        counted(lambda: _clip(model, args.max_grad_norm), "clipping")()
        step_unless(skip, optimizer)  # the first step also makes the moments
        counted(lambda: step_unless(skip, optimizer), "optimiser")()
        counted(lambda: model.update_teacher(values.teacher_momentum, skip), "moving average")()
    return parts


def _clip(model: PoaForPreTraining, max_norm: float) -> None:
    for module in (model.student, model.student_head):
        # CUDA's default; on a CPU one has to ask for it
        torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm, foreach=True)


def _augmentation(args: PoaTrainingArguments) -> Work:
    rng = np.random.default_rng(0)
    drawn = [draw_augmentation(rng, args) for _ in range(args.per_device_train_batch_size)]
    stacked = {name: torch.from_numpy(np.stack([each[name] for each in drawn], axis=1)) for name in drawn[0]}
    work = Work()
    for part in (slice(2), slice(2, None)):
        parameters = {name: values[part].flatten(0, 1) for name, values in stacked.items()}
        # the meta device stands in for a GPU: what is computed on the host is not counted
        crops = torch.zeros(len(parameters["flip"]), 3, 16, 16, dtype=torch.uint8, device="meta")
        if len(crops):
            # the meta device has no autocast, which `augment` only turns off
            with Launches("meta") as launches, patch.object(torch, "autocast", lambda *_, **__: nullcontext()):
                augment(crops, parameters, args.image_mean, args.image_std)
            work.operations += launches.work.operations
    return work
