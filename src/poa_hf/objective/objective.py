"""The objective of a training step (arXiv 2408.01031, section 3): which branch sees which crops, and its losses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .branches import Batch, Branch
from .early_gradients import GradientSums
from .gram import gram_loss
from .head_losses import Part, PartLosses, TeacherTargets, head_losses, student_prototypes
from .losses import koleo
from .row_functions import PLAIN, RowFunctions


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses, and the students' temperature.

    Attributes:
        intact: Lambda, the intact student's share of the loss; the elastic students share the rest.
        koleo: Weight of the KoLeo regulariser, averaged over the students; 0 leaves it out.
        student_temperature: Softmax temperature of the students.
        gram: Weight of Gram anchoring, which needs the anchors of the batch.
        same_view: Weight of the same-view losses within an elastic student's share.
    """

    intact: float
    koleo: float
    student_temperature: float
    gram: float = 0.0
    same_view: float = 1.0

    def shares(self, num_elastic: int) -> list[float]:
        """Return the shares of the loss of the intact student, which has all of it if it is alone, and of the others.

        >>> LossWeights(intact=0.75, koleo=0.1, student_temperature=0.1).shares(2)
        [0.75, 0.125, 0.125]
        """
        return [self.intact, *[(1 - self.intact) / num_elastic] * num_elastic] if num_elastic else [1.0]


@dataclass(frozen=True)
class StudentLosses:
    """The losses of one student, detached.

    Attributes:
        parts: Those of its global crops, of their masked patches and of its local crops, if there are any.
        koleo: The weighted KoLeo regulariser of its global crops; None if it is left out.
        gram: The weighted Gram anchoring of its global crops, likewise.
        total: The student's part of the step's loss, a scalar.
    """

    parts: dict[str, PartLosses]
    koleo: Tensor | None
    gram: Tensor | None
    total: Tensor


@dataclass
class StepDetails:
    """Values of a step besides its loss, detached.

    Attributes:
        terms: The parts of the loss, by the names under which the authors log them.
        teacher_features: The teacher's features of the global crops (2B, D).
        statistics: How evenly the teacher uses the prototypes of each head; empty unless asked for.
    """

    terms: dict[str, Tensor]
    teacher_features: Tensor
    statistics: dict[str, Tensor]


def poa_loss(
    batch: Batch,
    teacher: Branch,
    intact: Branch,
    elastic: Sequence[Callable[[], Branch]],
    weights: LossWeights,
    teacher_temperature: float,
    gradients: GradientSums,
    with_statistics: bool = False,
    learning_heads: Branch | None = None,
    functions: RowFunctions = PLAIN,
    elastic_teachers: Sequence[Callable[[], Branch]] = (),
) -> tuple[Tensor, StepDetails]:
    """Return the loss of a step, and add its gradients up on the way.

    A student's pass over one kind of crops is differentiated as soon as its losses are known, so that the activations
    of only one pass exist at a time. Those of the last pass are kept for the backward pass of the loss.

    Args:
        batch: Crops of B images and their masks.
        teacher: The teacher, whose features are computed without gradients.
        intact: The full-size student.
        elastic: Make the sub-networks of this step when their turn comes, as their slices take memory; empty to train
            the intact student alone.
        weights: Weights of the losses.
        teacher_temperature: Softmax temperature of the teacher's targets.
        gradients: Receives the gradients of the students' and heads' parameters and of the crops.
        with_statistics: Whether to compute the teacher's statistics.
        learning_heads: Heads that learn on the features of a teacher that is frozen, whose own heads are their moving
            average; None for a teacher that follows the intact student.
        functions: What is computed of chunks of rows of logits, compiled or not.
        elastic_teachers: Make the teachers of the sub-networks; empty if the teacher is that of all students.

    Returns:
        The loss, a scalar, and further values of the step.
    """
    images = len(batch.global_crops)  # 2B
    teacher_tokens, targets = _targets(teacher, batch, teacher_temperature, functions)
    statistics = _by_head([target.statistics() for target in targets] if with_statistics else [])

    parts = _parts(targets, batch)

    on_teacher = None
    if learning_heads is not None:
        # Its heads learn as a student of its own features does: each crop predicts what they say of the other one.
        with student_prototypes(learning_heads.prototypes, targets[0].dtype, gradients) as shared:
            on_teacher, _ = head_losses(
                learning_heads.heads, shared, 1.0, weights.student_temperature, gradients, teacher_tokens,
                {name: parts[name] for name in ("global", "patches")}, functions,
            )  # fmt: skip

    students = list(zip([lambda: intact, *elastic], weights.shares(len(elastic)), strict=True))
    losses: list[StudentLosses] = []
    with student_prototypes(intact.prototypes, targets[0].dtype, gradients) as shared:
        for number, (make_student, weight) in enumerate(students):
            if number > 0 and elastic_teachers:
                _, own_targets = _targets(elastic_teachers[number - 1](), batch, teacher_temperature, functions)
                own = _parts(own_targets, batch)
                parts = {name: replace(part, targets=own[name].targets) for name, part in parts.items()}
            student = make_student()
            found: dict[str, PartLosses] = {}
            totals, spread, anchored = [], None, None
            # Crops, the global ones masked: features -> heads -> cross-view, masked-patch and same-view losses; KoLeo.
            passes = _passes(student, batch)
            for names in passes:
                compared = {name: parts[name] for name in names}
                count = sum(len(part.weights) for part in compared.values())
                is_last = len(losses) + 1 == len(students) and names is passes[-1]
                if is_last and student.start_last_pass is not None:
                    student.start_last_pass()
                # (N, D), one part after the other; behind them those of all patches, if they have anchors
                with (
                    gradients.cut(_tokens(student, batch, names)) as (rows,),
                    gradients.cut(_first(rows, count)) as (tokens,),
                ):
                    total, of_parts = head_losses(
                        student.heads,
                        shared,
                        weight,
                        weights.student_temperature,
                        gradients,
                        tokens,
                        compared,
                        functions,
                    )
                    totals.append(total)
                    found |= of_parts
                    if weights.koleo and "global" in names:
                        both_views = functools.reduce(torch.add, map(koleo, tokens[:images].chunk(2)))
                        spread = gradients.add(weights.koleo / len(students) * both_views)
                        totals.append(spread)
                    if batch.anchors is not None and "global" in names:
                        patches = rows[count:].unflatten(0, batch.anchors.shape[:2])
                        anchored = gradients.add(weights.gram * weight * gram_loss(patches, batch.anchors))
                        totals.append(anchored)
                        del patches
            losses.append(StudentLosses(found, spread, anchored, functools.reduce(torch.add, totals)))
            # The intact student comes first; the elastic students learn to agree with it on the same views.
            if len(losses) == 1:
                for name in found.keys() - {"patches"}:
                    parts[name] = replace(
                        parts[name], same_view=found[name].projected, same_view_weight=weights.same_view
                    )
        del targets, parts, compared, rows, tokens  # their memory is needed for the gradients of the prototypes
    total, terms = functools.reduce(torch.add, (each.total for each in losses)), _terms(losses)
    if on_teacher is not None:
        total, terms["teacher_head_loss"] = total + on_teacher, on_teacher
    return total, StepDetails(terms, teacher_tokens[:images], statistics)


def _targets(
    teacher: Branch, batch: Batch, temperature: float, functions: RowFunctions
) -> tuple[Tensor, list[TeacherTargets]]:
    """Return a teacher's tokens of the global crops, which it sees whole (2B + M, D), and the targets of its heads."""
    with torch.no_grad():
        tokens = teacher.global_tokens(replace(batch, anchors=None), masks=None)
        projected = zip(teacher.prototypes, teacher.heads(tokens), strict=True)
        count = len(batch.global_crops)
        return tokens, [TeacherTargets(*of_head, count, temperature, functions) for of_head in projected]


def _parts(targets: Sequence[TeacherTargets], batch: Batch) -> dict[str, Part]:
    """Return what students are compared with, by the kind of crops.

    An image has 2 + 2V cross-view terms: two per local crop, and one per global crop, which counts twice.
    """
    images, patch_weights = len(batch.global_crops), batch.patch_weights  # 2B, (M,)
    share = patch_weights.new_full((), 2 / ((2 + 2 * batch.num_local_views) * images))
    return {
        "global": Part(share.expand(images), [target.other_view for target in targets]),
        "patches": Part(patch_weights / images, [target.patches for target in targets]),
        "local": Part(share.expand(len(batch.local_crops)), [target.both_views for target in targets]),
    }


def _passes(student: Branch, batch: Batch) -> list[list[str]]:
    """Return which parts each pass of a student is over."""
    if not len(batch.local_crops):
        return [["global", "patches"]]
    return [["global", "patches"], ["local"]] if student.packed is None else [["global", "patches", "local"]]


def _tokens(student: Branch, batch: Batch, names: Sequence[str]) -> Tensor:
    """Return a student's features of some parts, one part after the other, all of them from one pass."""
    if "local" not in names:
        return student.global_tokens(batch, batch.masks)
    return student.local_tokens(batch) if len(names) == 1 else student.all_tokens(batch)


def _first(rows: Tensor, count: int) -> Tensor:
    """Return the first rows of a tensor; the tensor itself if it has no more, which costs no view."""
    return rows if len(rows) == count else rows[:count]


def _terms(losses: Sequence[StudentLosses]) -> dict[str, Tensor]:
    """Return the parts of the loss by the authors' names; `ibot_*` and `koleo_loss` are half of what is added."""
    zero = torch.zeros_like(losses[0].total)

    def mixed(parts: Iterable[Tensor]) -> Tensor:
        return functools.reduce(torch.add, parts, zero)

    def of(part: str, students: Sequence[StudentLosses]) -> list[PartLosses]:
        return [each.parts[part] for each in students if part in each.parts]

    terms = {}
    for index in range(len(losses[0].parts["global"].against_teacher)):
        for name, part in (("dino_local_crops", "local"), ("dino_global_crops", "global")):
            terms[f"{name}_loss_{index}"] = mixed(each.against_teacher[index] for each in of(part, losses))
        terms[f"ibot_loss_{index}"] = mixed(each.against_teacher[index] / 2 for each in of("patches", losses))
        if len(losses) > 1:
            for part in ("local", "global"):
                same_view = (each.same_view[index] / (len(losses) - 1) for each in of(part, losses[1:]))
                terms[f"distill_{part}_crops_loss_{index}"] = mixed(same_view)
    if losses[0].koleo is not None:
        terms["koleo_loss"] = mixed(each.koleo / 2 for each in losses if each.koleo is not None)
    if losses[0].gram is not None:
        terms["gram_loss"] = mixed(each.gram for each in losses if each.gram is not None)
    return terms


def _by_head(per_head: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the values of all heads, each name followed by the number of its head."""
    return {f"{name}_{index}": value for index, values in enumerate(per_head) for name, value in values.items()}
