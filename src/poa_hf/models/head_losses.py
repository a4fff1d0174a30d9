"""From the features of three branches to the loss terms of one head, without keeping its logits or activations.

Logits of all prototypes, of three branches and all heads, would be the largest tensors of a step. Nothing but the loss
comes after them, so each head computes its gradient together with its loss, a chunk of rows at a time
(`losses.prototype_losses`), and the backward pass only hands it on: no logits are kept, and none computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..losses import SoftAssignments, prototype_losses
from ..slicing import SlicedModel
from .configuration_poa import PoaConfig
from .heads import ProjectionHead

TERMS = (
    "dino_local_crops_loss",
    "dino_global_crops_loss",
    "ibot_loss",
    # of the elastic student, if there is one
    "distill_local_crops_loss",
    "distill_global_crops_loss",
)


@dataclass
class Tokens:
    """What a branch makes of a batch of B images with V local views: image features `global_` (2B, D) and `local`
    (V*B, D), and features of the masked patches, `masked` (M, D)."""

    global_: Tensor
    local: Tensor
    masked: Tensor

    def joined(self) -> Tensor:
        return torch.cat([self.global_, self.local, self.masked])


class HeadLosses:
    """The loss of one head after another, from the same tokens.

    `students` are the intact and the elastic one, or the intact one alone. `patch_weights` (M,) is what each masked
    patch counts among those of its image.
    """

    def __init__(
        self,
        config: PoaConfig,
        teacher: Tokens,
        students: Sequence[Tokens],
        patch_weights: Tensor,
        teacher_temperature: float,
    ):
        self.student_temperature, self.teacher_temperature = config.student_temperature, teacher_temperature
        self.teacher = torch.cat([teacher.global_, teacher.masked])
        self.students = [student.joined() for student in students]
        self.num_global, num_local = len(students[0].global_), len(students[0].local)
        self.num_class_tokens = self.num_global + num_local
        batch_size, device = self.num_global // 2, self.teacher.device

        def filled(for_global: float, for_local: float) -> tuple[Tensor, Tensor]:
            return tuple(
                torch.full((count,), value, device=device)
                for count, value in ((self.num_global, for_global), (num_local, for_local))
            )

        # What each row counts: a part of the mean over images, and of all cross-view terms, of which global ones count
        # twice; an image's masked patches count as one together, whatever their number.
        num_terms = 2 + 2 * num_local // batch_size
        shares = filled(2 / (num_terms * self.num_global), 1 / (num_terms * batch_size))
        shares = torch.cat([*shares, patch_weights.float() / self.num_global])
        self.elastic_weight = 1 - config.intact_weight
        weights = [config.intact_weight, self.elastic_weight][: len(students)]
        self.weights = torch.stack([weight * shares for weight in weights])
        self.same_view_shares = torch.cat(filled(1 / self.num_global, 1 / max(1, num_local)))
        # The target of a global view is that of the other one; the one of a local view is the sum of both, which
        # follows them.
        row = torch.arange(self.num_class_tokens, device=device)
        other_view = (row[: self.num_global] + batch_size) % self.num_global
        self.target_rows = torch.cat([other_view, self.num_global + row[:num_local] % batch_size])

    def __call__(
        self,
        teacher_head: ProjectionHead,
        student_heads: Sequence[ProjectionHead | SlicedModel],
        return_statistics: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The loss, differentiable in tokens and parameters; its terms (see `PoaForPreTrainingOutput`), detached; and
        the teacher's statistics if asked for. The first of the students' heads is the full one."""
        student_head = student_heads[0]
        statistics: dict[str, Tensor] | None = {} if return_statistics else None

        def compute(*students: Tensor, with_gradient: bool):
            """Loss and terms, what the loss is computed from, and its gradient of that."""
            with torch.set_grad_enabled(with_gradient):
                bottlenecks = [
                    head(tokens, project=False) for head, tokens in zip(student_heads, students, strict=True)
                ]
                roots = [*bottlenecks, student_head.prototypes.weight]
            with torch.no_grad():
                teacher = [teacher_head(self.teacher, project=False), teacher_head.prototypes.weight]
                losses, gradients = self._losses(teacher, roots, with_gradient, statistics)
            return losses, roots, gradients

        if torch.is_grad_enabled():
            parameters = [parameter for parameter in student_head.parameters() if parameter.requires_grad]
            loss, terms = _LossWithGradient.apply(compute, len(self.students), *self.students, *parameters)
        else:
            (loss, terms), _, _ = compute(*self.students, with_gradient=False)
        return loss, dict(zip(TERMS, terms, strict=False)), statistics or {}

    def _losses(
        self, teacher: list[Tensor], roots: list[Tensor], with_gradient: bool, statistics: dict[str, Tensor] | None
    ) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
        """Loss and terms from bottleneck features and prototypes of the branches, and the loss's gradient of those of
        the students. Logits are in autocast's precision where that is on, all that comes after them in float32."""
        device = roots[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else roots[0].dtype
        with torch.autocast(device, enabled=False):
            teacher, teacher_prototypes = (tensor.to(dtype) for tensor in teacher)
            *bottlenecks, prototypes = (root.to(dtype) for root in roots)
            features = torch.stack(bottlenecks)
            gradients = [torch.zeros_like(t, dtype=torch.float32) for t in (features, prototypes) if with_gradient]

            def losses(rows: slice, targets: Callable[[slice], Tensor], same_view_weights: Tensor | None = None):
                return prototype_losses(
                    features[:, rows],
                    prototypes,
                    targets,
                    self.student_temperature,
                    self.weights[:, rows],
                    same_view_weights,
                    (gradients[0][:, rows], gradients[1]) if with_gradient else None,
                )

            def assignments(rows: slice) -> SoftAssignments:
                return SoftAssignments(teacher[rows] @ teacher_prototypes.T, self.teacher_temperature)

            targets = assignments(slice(self.num_global))[:]
            if statistics is not None:
                statistics.update(assignment_statistics(targets))
            targets = torch.cat([targets, sum(targets.chunk(2))])
            class_tokens, same_view = losses(
                slice(self.num_class_tokens),
                lambda rows: targets[self.target_rows[rows]],
                self.elastic_weight * self.same_view_shares if len(features) > 1 else None,
            )
            targets = assignments(slice(self.num_global, None))
            masked, _ = losses(slice(self.num_class_tokens, None), lambda rows: targets[rows])
            weighted = (torch.cat([class_tokens, masked], dim=1) * self.weights).sum(dim=0)
            loss = weighted.sum()
            global_, local, masked = (
                weighted[: self.num_global],
                weighted[self.num_global : self.num_class_tokens],
                weighted[self.num_class_tokens :],
            )
            terms = [local.sum(), global_.sum(), masked.sum() / 2]
            if same_view is not None:
                same_view = same_view * self.same_view_shares
                loss = loss + self.elastic_weight * same_view.sum()
                terms += [same_view[self.num_global :].sum(), same_view[: self.num_global].sum()]
        return (loss, torch.stack(terms)), [*gradients[0], gradients[1]] if with_gradient else []


class _LossWithGradient(torch.autograd.Function):
    """The loss of `compute`, whose gradient is taken at once, so that nothing on the way to it is kept."""

    @staticmethod
    def forward(ctx, compute: Callable, num_students: int, *tensors: Tensor):
        students = [tensor.detach().requires_grad_() for tensor in tensors[:num_students]]
        parameters = tensors[num_students:]
        # not the leaves themselves, as hooks on a module's inputs, such as a FLOP counter's, may not sit on leaves here
        with torch.enable_grad():
            inputs = [student.view_as(student) for student in students]
        (loss, terms), roots, gradients = compute(*inputs, with_gradient=True)
        with torch.autocast(loss.device.type, enabled=False):
            gradients = [gradient.to(root.dtype) for gradient, root in zip(gradients, roots, strict=True)]
            ctx.save_for_backward(*torch.autograd.grad(roots, [*students, *parameters], gradients))
        ctx.mark_non_differentiable(terms)
        return loss, terms

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor, _):
        return None, None, *(saved * gradient for saved in ctx.saved_tensors)


def assignment_statistics(assignments: Tensor) -> dict[str, Tensor]:
    """How the teacher uses its prototypes for assignments (N, K): mean entropy of a row over its maximum log K, and the
    distinct prototypes that come first in some row over the most that could, min(N, K)."""
    count, num_prototypes = assignments.shape
    entropy = torch.special.entr(assignments).sum(dim=1).mean() / math.log(num_prototypes)
    used = torch.bincount(assignments.argmax(dim=1), minlength=num_prototypes).count_nonzero()
    return {"teacher_entropy": entropy, "prototype_use": used / min(count, num_prototypes)}
