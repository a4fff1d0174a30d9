"""Both ways of each part of a training step, with and without a saving, for step_parts.py."""

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from poa_hf.models.activation_checkpointing import enable_activation_checkpointing

from .plain_losses import all_heads_at_once, ours
from .step_setup import BF16_TOLERANCE, DROP_RATE, RESIDUAL, StepSetup
from .updates import MOMENTUM, adamw, adamw_step, average_by_loop, optimised


class Pair(NamedTuple):
    """Two ways of computing something.

    Each returns its results, which differ by no more than `tolerance` of the largest entry. With None they are not
    compared, because random choices differ.
    """

    saving: str
    instead_of: str
    without: Callable[[], list[Tensor]]
    with_: Callable[[], list[Tensor]]
    tolerance: float | None = 1e-2


def pairs(setup: StepSetup) -> Iterator[Pair]:
    """Both ways of each part of a step; the last pair is the whole step."""
    student, size = setup.model.student, setup.size
    dropping = setup.dropping.student
    yield Pair(
        f"images dropped ({DROP_RATE}) left out", "computed, then zeroed",
        lambda: setup.trained(dropping, residual=add_zeroed_residual), lambda: setup.trained(dropping),
    )  # fmt: skip
    yield Pair("teacher: global crops", "all crops", lambda: setup.teacher(local=True), setup.teacher)
    yield from head_pairs(setup)
    yield Pair(
        "one pass per size of crops", "one per crop",
        lambda: setup.trained(student, per_crop=True), lambda: setup.trained(student),
    )  # fmt: skip
    yield Pair(
        "slices once per step", "once per call",
        lambda: setup.trained(student, lambda *args, **masks: student(*args, sub_network=size, **masks)),
        lambda: setup.trained(student, student.sliced(size)),
    )  # fmt: skip
    yield from update_pairs(setup)
    recomputing, eager = copy.deepcopy(student), copy.deepcopy(student)
    enable_activation_checkpointing(recomputing)
    eager.set_attn_implementation("eager")
    yield Pair("sdpa", "eager attention", lambda: setup.trained(eager), lambda: setup.trained(student))
    yield Pair("activations computed again", "kept", lambda: setup.trained(student), lambda: setup.trained(recomputing))
    yield Pair(
        "bfloat16 autocast", "float32",
        lambda: setup.trained(student, bf16=False), lambda: setup.trained(student, bf16=True), BF16_TOLERANCE,
    )  # fmt: skip
    yield Pair(
        "activations of one pass at a time", "of all passes",
        lambda: differentiated(setup, kept_loss), lambda: differentiated(setup, step_loss),
    )  # fmt: skip
    loops, fused = adamw(setup.dropping, fused=False, foreach=False), adamw(setup.dropping, fused=True)
    yield Pair(
        "the whole step", "none of these",
        lambda: plain_step(setup, setup.dropping, loops), lambda: step(setup, setup.dropping, fused), tolerance=None,
    )  # fmt: skip


def head_pairs(setup: StepSetup) -> Iterator[Pair]:
    """Yield the pairs of one student's heads, on class tokens and on patches of the global crops."""
    model = setup.model
    width, count = setup.full.width, (2 + setup.num_local) * setup.batch
    class_tokens = torch.randn(count, width, device=setup.device)
    patches = torch.randn(setup.masks.numel(), width, device=setup.device)

    def heads(places: Tensor, weights: Tensor) -> list[Tensor]:
        tokens = torch.cat([class_tokens, patches[places]])
        weights = torch.cat([weights.new_ones(count), weights])
        losses = []
        for head in model.student_head:
            with setup.autocast():
                losses.append((weights * head(tokens).float().logsumexp(dim=1)).sum())
            losses[-1].backward()
        gradients = [parameter.grad for parameter in model.student_head.parameters()]
        model.student_head.zero_grad()
        return [torch.stack(losses).detach(), *gradients]

    padding = (0, setup.most_masked - len(setup.places))
    padded = [nn.functional.pad(tensor, padding) for tensor in (setup.places, setup.patch_weights)]
    every = torch.arange(len(patches), device=setup.device)
    all_weights = torch.zeros(len(patches), device=setup.device).index_put_((setup.places,), setup.patch_weights)
    for name, rows in (("padded to the most possible", padded), ("all patches", (every, all_weights))):
        yield Pair(
            "heads: masked patches alone", name,
            lambda rows=rows: heads(*rows), lambda: heads(setup.places, setup.patch_weights),
        )  # fmt: skip


def update_pairs(setup: StepSetup) -> Iterator[Pair]:
    for kind, foreach in (("foreach", True), ("for-loop", False)):
        yield Pair(
            "AdamW: fused", kind,
            adamw_step(setup.model, fused=False, foreach=foreach), adamw_step(setup.model, fused=True),
        )  # fmt: skip
    student = [*setup.model.student.parameters(), *setup.model.student_head.parameters()]
    teacher = [*setup.model.teacher.parameters(), *setup.model.teacher_head.parameters()]
    teacher_copy = [parameter.clone() for parameter in teacher]
    yield Pair(
        "moving average: foreach", "for-loop",
        lambda: average_by_loop(teacher_copy, student),
        lambda: setup.model.update_teacher(MOMENTUM) or teacher,
    )  # fmt: skip


def step_loss(setup: StepSetup, model) -> Tensor:
    with setup.autocast():
        return model(
            setup.global_crops, setup.local_crops, setup.masks, setup.size, 0.07, masked_patches=setup.places
        ).loss


def kept_loss(setup: StepSetup, model) -> Tensor:
    """The same heads and losses on features of all passes."""
    with setup.autocast():
        with torch.no_grad():
            teacher = setup.features(model.teacher, setup.local_crops[:0])
        students = [
            setup.features(backbone, setup.local_crops, setup.masks)
            for backbone in (model.student, model.student.sliced(setup.size))
        ]
        return ours(model, teacher, *students, setup.patch_weights, 0.07)


def differentiated(setup: StepSetup, loss: Callable[[StepSetup, nn.Module], Tensor]) -> list[Tensor]:
    value = loss(setup, setup.model)
    value.backward()
    gradients = [parameter.grad for parameter in setup.model.parameters() if parameter.requires_grad]
    setup.model.zero_grad()
    return [value.detach(), *gradients]


def plain_loss(setup: StepSetup, model) -> Tensor:
    student = model.student
    with setup.autocast():
        with torch.no_grad():
            teacher = setup.features(model.teacher, setup.local_crops, per_crop=True)
        intact, elastic = (
            setup.features(backbone, setup.local_crops, setup.masks, per_crop=True)
            for backbone in (student, lambda *args, **masks: student(*args, sub_network=setup.size, **masks))
        )
        teacher = teacher._replace(local=teacher.local[:0])
        return all_heads_at_once(model, teacher, intact, elastic, setup.patch_weights, 0.07)


def step(setup: StepSetup, model, optimizer) -> list[Tensor]:
    loss = step_loss(setup, model)
    optimised(model, loss, optimizer)
    model.update_teacher(MOMENTUM)
    return [loss.detach()]


def plain_step(setup: StepSetup, model, optimizer) -> list[Tensor]:
    with patch(RESIDUAL, add_zeroed_residual):
        loss = plain_loss(setup, model)
        optimised(model, loss, optimizer)
    student = [*model.student.parameters(), *model.student_head.parameters()]
    average_by_loop([*model.teacher.parameters(), *model.teacher_head.parameters()], student)
    return [loss.detach()]


def add_zeroed_residual(hidden_states: Tensor, branch: Callable, drop_rate: float) -> Tensor:
    """`add_residual` of the same images, but with the others computed too, as stock Dinov2DropPath does."""
    batch_size = len(hidden_states)
    kept = max(1, int(batch_size * (1 - drop_rate)))
    order = torch.randperm(batch_size, device=hidden_states.device)
    scale = hidden_states.new_zeros(batch_size, 1, 1)
    scale[order[:kept]] = batch_size / kept
    return hidden_states + scale * branch(hidden_states, torch.arange(batch_size, device=hidden_states.device))
