"""Pre-training with levers that are being tried and are no options of the package.

    python benchmarks/parts/trial_levers.py '{"head_scale": 0.5}' pretrain --config recipe.yaml

The levers, of which the recipe knows nothing:

- head_scale (float): Slices of the projection heads' first layer are multiplied by (D / d) ** head_scale for features
  of size d out of D; 1 is the method, 0 leaves them unscaled.
- shared_rate (float): What all sub-networks share, the entries of the smallest one, moves by this part of AdamW's step.
- shared_decay (float): The weight decay of these entries is multiplied by this number.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from poa_hf.objective import heads
from poa_hf.slicing import Slice, SlicedModel, slice_plan
from poa_hf.training.trainer import PoaTrainer

Entries = list[tuple[nn.Parameter, Slice]]


def scale_heads(power: float) -> None:
    """Let all projection heads scale their slices by a power of the method's factor, from now on."""

    def plan(full: nn.Module, plain: nn.Module) -> dict[str, Slice]:
        return {name: replace(cut, scale=cut.scale**power) for name, cut in slice_plan(full, plain).items()}

    heads.slice_plan = plan


def smallest_entries(student: nn.Module) -> Entries:
    """Return the parameters of a student, and what the smallest sub-network takes of each."""
    parameters = dict(student.named_parameters())
    smallest = student.sliced(student.config.space.smallest)
    plan = smallest.plan if isinstance(smallest, SlicedModel) else {}
    return [(parameters[cut.source], cut) for cut in plan.values() if cut.source in parameters]


def slow_down(optimizer: torch.optim.Optimizer, entries: Entries, rate: float, decay: float) -> None:
    """Let an AdamW optimizer move some entries less, and shrink them less."""
    groups: dict[nn.Parameter, dict[str, Any]] = {}
    before: list[Tensor] = []

    def remember(*_: Any) -> None:
        groups.update({parameter: group for group in optimizer.param_groups for parameter in group["params"]})
        before[:] = [cut.leading(parameter.detach()).clone() for parameter, cut in entries]

    @torch.no_grad()
    def correct(*_: Any) -> None:
        for (parameter, cut), old in zip(entries, before, strict=True):
            if (group := groups.get(parameter)) is None:
                continue
            new = cut.leading(parameter.detach())
            # AdamW subtracts lr * weight_decay * old besides its step
            new.add_(old, alpha=(1 - decay) * group["lr"] * group["weight_decay"])
            new.copy_(old + rate * (new - old))

    optimizer.register_step_pre_hook(remember)
    optimizer.register_step_post_hook(correct)


def try_out(head_scale: float = 1.0, shared_rate: float = 1.0, shared_decay: float = 1.0) -> None:
    """Let all runs of this process use the levers."""
    if head_scale != 1:
        scale_heads(head_scale)
    if (shared_rate, shared_decay) == (1, 1):
        return
    init: Callable[..., None] = PoaTrainer.__init__

    def with_hooks(trainer: PoaTrainer, *args: Any, **kwargs: Any) -> None:
        init(trainer, *args, **kwargs)
        optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
        slow_down(optimizer, smallest_entries(trainer.model.student), shared_rate, shared_decay)

    PoaTrainer.__init__ = with_hooks  # type: ignore[method-assign]


if __name__ == "__main__":
    try_out(**json.loads(sys.argv[1]))
    from poa_hf.cli.main import main

    sys.exit(main(sys.argv[2:]))
