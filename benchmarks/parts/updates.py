"""Optimizer steps and moving averages, fused and as loops."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from poa_hf.training.optimization import parameter_groups

MOMENTUM = 0.992


def adamw(model: nn.Module, **kind) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(model, 0.9, 0.2), lr=1e-5, weight_decay=0.04, **kind)


def adamw_step(model: nn.Module, **kind) -> Callable[[], list[Tensor]]:
    """Return a call that takes the optimizer's step on copies of the parameters and gives the copies."""
    optimizer, copies = adamw(model, **kind), []
    for group in optimizer.param_groups:
        group["params"] = [parameter.detach().clone().requires_grad_() for parameter in group["params"]]
        copies += group["params"]
    for parameter in copies:
        parameter.grad = torch.full_like(parameter, 1e-3)
    return lambda: optimizer.step() or copies


def optimised(model: nn.Module, loss: Tensor, optimizer: torch.optim.AdamW) -> None:
    loss.backward()
    for module in (model.student, model.student_head):
        nn.utils.clip_grad_norm_(module.parameters(), 1.5)
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def average_by_loop(teacher: list[Tensor], student: list[Tensor]) -> list[Tensor]:
    for target, source in zip(teacher, student, strict=True):
        target.mul_(MOMENTUM).add_(source, alpha=1 - MOMENTUM)
    return teacher
