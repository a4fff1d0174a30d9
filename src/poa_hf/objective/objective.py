"""The objective of a training step (arXiv 2408.01031, section 3): which branch sees which crops, and its losses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .early_gradients import GradientSums
from .head_losses import HeadLosses, TeacherTargets, head_losses, student_prototypes
from .heads import Head, Prototypes
from .losses import koleo


@dataclass(frozen=True)
class Batch:
    """The crops of B images and which of their patches are masked.

    Attributes:
        global_crops: (2B, 3, H, W), the first views of all images, then the second ones.
        local_crops: (V * B, 3, h, w), one local view of all images after the other; V may be 0.
        masks: bool (2B, tokens), the patches of the global crops that the students do not see.
        masked_patches: int64 (M,), the indices at which `masks.flatten()` is true.
    """

    global_crops: Tensor
    local_crops: Tensor
    masks: Tensor
    masked_patches: Tensor

    @property
    def num_local_views(self) -> int:
        """V, the number of local crops of an image."""
        return 2 * len(self.local_crops) // len(self.global_crops)

    @property
    def patch_weights(self) -> Tensor:
        """Weights of the masked patches (M,), float32: those of one image add up to 1."""
        counts = self.masks.sum(dim=1).clamp(min=1)  # (2B,)
        return (1 / counts)[self.masked_patches // self.masks.shape[1]].float()


@dataclass(frozen=True)
class Branch:
    """The teacher, the intact student or the elastic student.

    Attributes:
        features: Computes, from crops (N, 3, H, W) and masks (N, tokens) or None, the images' features (N, D) and one
            token for each entry of the masks (N, tokens, D).
        heads: The projection heads for features of width D.
        prototypes: The heads' prototypes. Both students have those of the intact student.
    """

    features: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
    heads: Sequence[Head]
    prototypes: Sequence[Prototypes]

    def global_tokens(self, batch: Batch, masks: Tensor | None) -> Tensor:
        """Return the global crops' features, followed by the tokens of the masked patches (2B + M, D).

        Args:
            batch: The step's crops; its masks say which tokens are returned.
            masks: bool (2B, tokens), the patches that this branch does not see; None if it sees all.
        """
        images, tokens = self.features(batch.global_crops, masks)  # (2B, D), (2B, tokens, D)
        image, token = batch.masked_patches // tokens.shape[1], batch.masked_patches % tokens.shape[1]
        return torch.cat([images, tokens[image, token]])

    def local_tokens(self, batch: Batch) -> Tensor:
        """Return the local crops' features (V * B, D)."""
        images, _ = self.features(batch.local_crops, None)
        return images


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses, and the students' temperature.

    Attributes:
        intact: Lambda, the intact student's share of the loss; the elastic student's is the rest.
        koleo: Weight of the KoLeo regulariser, averaged over the students; 0 leaves it out.
        student_temperature: Softmax temperature of the students.
    """

    intact: float
    koleo: float
    student_temperature: float


@dataclass(frozen=True)
class StudentLosses:
    """The losses of one student, detached.

    Attributes:
        on_global: Losses of its global crops and of their masked patches.
        on_local: Losses of its local crops; None if there are no local crops.
        koleo: The weighted KoLeo regulariser of its global crops; None if it is left out.
    """

    on_global: HeadLosses
    on_local: HeadLosses | None
    koleo: Tensor | None

    @property
    def total(self) -> Tensor:
        """The student's part of the step's loss, a scalar."""
        parts = (self.on_global.total, self.koleo, None if self.on_local is None else self.on_local.total)
        return functools.reduce(torch.add, (part for part in parts if part is not None))


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
    elastic: Callable[[], Branch] | None,
    weights: LossWeights,
    teacher_temperature: float,
    gradients: GradientSums,
    with_statistics: bool = False,
    learning_heads: Branch | None = None,
) -> tuple[Tensor, StepDetails]:
    """Return the loss of a step, and add its gradients up on the way.

    A student's pass over one kind of crops is differentiated as soon as its losses are known, so that the activations
    of only one pass exist at a time.

    Args:
        batch: Crops of B images and their masks.
        teacher: The teacher, whose features are computed without gradients.
        intact: The full-size student.
        elastic: Makes the sub-network of this step when its turn comes, as its slices take memory; None to train the
            intact student alone.
        weights: Weights of the losses.
        teacher_temperature: Softmax temperature of the teacher's targets.
        gradients: Receives the gradients of the students' and heads' parameters and of the crops.
        with_statistics: Whether to compute the teacher's statistics.
        learning_heads: Heads that learn on the features of a teacher that is frozen, whose own heads are their moving
            average; None for a teacher that follows the intact student.

    Returns:
        The loss, a scalar, and further values of the step.
    """
    images = len(batch.global_crops)  # 2B
    # An image has 2 + 2V cross-view terms: two per local crop, and one per global crop, which counts twice.
    share = 2 / ((2 + 2 * batch.num_local_views) * images)
    local_shares = batch.patch_weights.new_full((len(batch.local_crops),), share)  # (V * B,)
    global_shares = torch.cat([local_shares.new_full((images,), share), batch.patch_weights / images])  # (2B + M,)

    # The teacher sees the global crops without masks; its targets, by Sinkhorn-Knopp, are the same for both students.
    with torch.no_grad():
        teacher_tokens = teacher.global_tokens(batch, masks=None)  # (2B + M, D)
        targets = [
            TeacherTargets(head, prototypes, teacher_tokens, images, teacher_temperature)
            for head, prototypes in zip(teacher.heads, teacher.prototypes, strict=True)
        ]
    statistics = _by_head([target.statistics() for target in targets] if with_statistics else [])

    on_teacher = None
    if learning_heads is not None:
        # Its heads learn as a student of its own features does: each crop predicts what they say of the other one.
        with student_prototypes(learning_heads.prototypes, targets[0].dtype, gradients) as shared:
            on_teacher = head_losses(
                learning_heads.heads, shared, 1.0, weights.student_temperature, gradients, teacher_tokens, images,
                global_shares,
                image_targets=[target.other_view for target in targets],
                patch_targets=[target.patches for target in targets],
            )  # fmt: skip

    students: list[tuple[Callable[[], Branch], float]] = [(lambda: intact, weights.intact)]
    if elastic is not None:
        students.append((elastic, 1 - weights.intact))
    losses: list[StudentLosses] = []
    with student_prototypes(intact.prototypes, targets[0].dtype, gradients) as shared:
        for make_student, weight in students:
            student = make_student()
            losses_of = functools.partial(
                head_losses, student.heads, shared, weight, weights.student_temperature, gradients
            )
            # The intact student comes first; the elastic student learns to agree with it on the same views.
            leader = losses[0] if losses else None
            on_local, spread = None, None

            # Global crops, masked: features -> heads -> cross-view, masked-patch and same-view losses; KoLeo.
            with gradients.cut(student.global_tokens(batch, batch.masks)) as tokens:  # (2B + M, D)
                on_global = losses_of(
                    tokens,
                    images,
                    global_shares,
                    image_targets=[target.other_view for target in targets],
                    patch_targets=[target.patches for target in targets],
                    same_view=None if leader is None else leader.on_global.projected,
                )
                if weights.koleo:
                    both_views = functools.reduce(torch.add, map(koleo, tokens[:images].chunk(2)))
                    spread = gradients.add(weights.koleo / len(students) * both_views)

            # Local crops: features -> heads -> cross-view and same-view losses.
            if len(batch.local_crops):
                with gradients.cut(student.local_tokens(batch)) as tokens:  # (V * B, D)
                    on_local = losses_of(
                        tokens,
                        len(tokens),
                        local_shares,
                        image_targets=[target.both_views for target in targets],
                        same_view=None if leader is None or leader.on_local is None else leader.on_local.projected,
                    )
            losses.append(StudentLosses(on_global, on_local, spread))
        del targets, tokens  # their memory is needed for the gradients of the prototypes
    total, terms = functools.reduce(torch.add, (each.total for each in losses)), _terms(losses)
    if on_teacher is not None:
        total, terms["teacher_head_loss"] = total + on_teacher.total, on_teacher.total
    return total, StepDetails(terms, teacher_tokens[:images], statistics)


def _terms(losses: Sequence[StudentLosses]) -> dict[str, Tensor]:
    """Return the parts of the loss by the authors' names; `ibot_*` and `koleo_loss` are half of what is added."""
    zero = torch.zeros_like(losses[0].total)

    def mixed(parts: Iterable[Tensor]) -> Tensor:
        return functools.reduce(torch.add, parts, zero)

    on_global = [each.on_global for each in losses]
    on_local = [each.on_local for each in losses if each.on_local is not None]
    terms = {}
    for index in range(len(on_global[0].cross_view)):
        terms[f"dino_local_crops_loss_{index}"] = mixed(each.cross_view[index] for each in on_local)
        terms[f"dino_global_crops_loss_{index}"] = mixed(each.cross_view[index] for each in on_global)
        terms[f"ibot_loss_{index}"] = mixed(each.masked[index] / 2 for each in on_global)
        if len(losses) > 1:
            terms[f"distill_local_crops_loss_{index}"] = mixed(each.same_view[index] for each in on_local[1:])
            terms[f"distill_global_crops_loss_{index}"] = mixed(each.same_view[index] for each in on_global[1:])
    if losses[0].koleo is not None:
        terms["koleo_loss"] = mixed(each.koleo / 2 for each in losses if each.koleo is not None)
    return terms


def _by_head(per_head: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the values of all heads, each name followed by the number of its head."""
    return {f"{name}_{index}": value for index, values in enumerate(per_head) for name, value in values.items()}
