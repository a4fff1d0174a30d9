"""The losses of all heads on a student's features, computed without keeping logits or activations.

The logits of all prototypes, of three branches and all heads, would be the largest tensors of a step. Here they exist a
chunk of rows at a time: nothing but the loss comes after them, so their gradient is computed together with the loss
(`losses.prototype_losses`). Between the passes, only the projected features are kept, which are small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .early_gradients import GradientSums
from .heads import Head, Prototypes, autocast_dtype
from .losses import RowTargets, SinkhornKnopp, prototype_losses

# Returns the targets of images or patches, made when they are needed.
MakeTargets = Callable[[], RowTargets]


class TeacherTargets:
    """One teacher head's soft assignments to its K prototypes: the targets of the students.

    They are made from the teacher's projected features whenever they are needed, as (N, K) is too large to be kept.

    Args:
        head: A head of the teacher.
        prototypes: The head's prototypes.
        tokens: The teacher's features of the global crops, followed by those of the masked patches (2B + M, D).
        num_images: Number of global crops, 2B.
        temperature: Softmax temperature.
    """

    @torch.no_grad()
    def __init__(self, head: Head, prototypes: Prototypes, tokens: Tensor, num_images: int, temperature: float):
        projected = head(tokens, project=False)  # (2B + M, bottleneck)
        device = projected.device.type
        # Under autocast, logits are in its precision; everything after them is in float32.
        self.dtype = autocast_dtype(projected.device) or projected.dtype
        self._images, self._patches = projected.to(self.dtype).tensor_split([num_images])
        self._prototypes = prototypes.weight.to(self.dtype)  # (K, bottleneck)
        with torch.autocast(device, enabled=False):
            # class tokens and patches are balanced separately
            self._assign_images = SinkhornKnopp(self._logits(self._images), temperature)
            self._assign_patches = SinkhornKnopp(self._logits(self._patches), temperature)

    def _logits(self, projected: Tensor) -> Tensor:
        return projected @ self._prototypes.T  # (N, K)

    @torch.no_grad()
    def _image_assignments(self) -> Tensor:
        with torch.autocast(self._images.device.type, enabled=False):
            return self._assign_images(self._logits(self._images))  # (2B, K)

    def other_view(self) -> RowTargets:
        """Return the targets of the global crops (2B, K): the assignments of the same image's other global crop."""
        first, second = self._image_assignments().chunk(2)
        targets = torch.cat([second, first])
        return lambda rows: targets[rows]

    def both_views(self) -> RowTargets:
        """Return the targets of the local crops (V * B, K): the sum of both global crops' assignments."""
        first, second = self._image_assignments().chunk(2)
        targets = first + second  # (B, K)
        # row v * B + b is a crop of image b
        return lambda rows: targets[torch.arange(rows.start, rows.stop, device=targets.device) % len(targets)]

    def patches(self) -> RowTargets:
        """Return the targets of the masked patches (M, K): the assignments of the teacher's own patches."""
        return lambda rows: self._assign_patches(self._logits(self._patches[rows]))

    def statistics(self) -> dict[str, Tensor]:
        """Return `assignment_statistics` of the global crops."""
        return assignment_statistics(self._image_assignments())


@dataclass
class StudentPrototypes:
    """One head's prototypes, which both students and all crops share, and the sum of their gradients.

    Attributes:
        weight: (K, bottleneck), in the precision of the logits.
        gradient: (K, bottleneck), float32; None where no gradient is wanted.
    """

    weight: Tensor
    gradient: Tensor | None


@contextmanager
def student_prototypes(
    prototypes: Sequence[Prototypes], dtype: torch.dtype, gradients: GradientSums
) -> Iterator[list[StudentPrototypes]]:
    """Yield the prototypes of each head; at the end, backpropagate the sums of their gradients to their parameters.

    Args:
        prototypes: The prototypes of each head of the full-size student.
        dtype: Precision of the logits.
        gradients: Receives the gradients.
    """
    with torch.no_grad():
        weights = [each.weight.to(dtype) for each in prototypes]
    shared = [
        StudentPrototypes(weight, torch.zeros_like(weight, dtype=torch.float32) if torch.is_grad_enabled() else None)
        for weight in weights
    ]
    del weights
    yield shared
    for each in reversed(prototypes):
        gradient = shared.pop().gradient
        if gradient is not None:
            weight = each.weight
            gradients.add(weight, gradient.to(weight.dtype))


@dataclass
class HeadLosses:
    """The losses of a student's features of one kind of crops, detached.

    Attributes:
        total: Their weighted sum, this pass's part of the step's loss, a scalar.
        cross_view: By head, the cross-view loss, times the student's weight.
        masked: By head, the masked patches' loss, times the student's weight; empty without masked patches.
        same_view: By head, the same-view loss; empty for the student that comes first.
        projected: By head, the images' projected features (n, bottleneck), the same-view targets of the next student.
    """

    total: Tensor
    cross_view: list[Tensor] = field(default_factory=list)
    masked: list[Tensor] = field(default_factory=list)
    same_view: list[Tensor] = field(default_factory=list)
    projected: list[Tensor] = field(default_factory=list)


def head_losses(
    heads: Sequence[Head],
    prototypes: Sequence[StudentPrototypes],
    weight: float,
    temperature: float,
    gradients: GradientSums,
    tokens: Tensor,
    num_images: int,
    shares: Tensor,
    *,
    image_targets: Sequence[MakeTargets],
    patch_targets: Sequence[MakeTargets] | None = None,
    same_view: Sequence[Tensor] | None = None,
) -> HeadLosses:
    """Return the losses of all heads on a student's features of one kind of crops, and add their gradients up.

    Args:
        heads: The student's heads.
        prototypes: The prototypes of each head.
        weight: The student's share of the loss.
        temperature: Softmax temperature of the student.
        gradients: Receives the gradients of the tokens and of the heads' parameters.
        tokens: Features of n images, followed by those of M masked patches if there are `patch_targets` (N, D).
        num_images: Number of images, n.
        shares: Weight of each row's cross-entropy in a head's loss (N,).
        image_targets: By head, the teacher's targets of the images, for the cross-view loss.
        patch_targets: By head, the teacher's targets of the masked patches.
        same_view: By head, the other student's projected features of the same images (n, bottleneck), for the same-view
            loss.
    """
    losses, scale = HeadLosses(shares.new_zeros(())), weight / len(heads)
    same_view_shares = shares.new_full((num_images,), 1 / max(1, num_images))
    for index, (head, shared) in enumerate(zip(heads, prototypes, strict=True)):
        rows, same_view_rows, projected = _cross_entropies(
            head,
            shared,
            tokens,
            num_images,
            scale * shares,
            temperature,
            gradients,
            image_targets[index],
            None if patch_targets is None else patch_targets[index],
            None if same_view is None else (same_view[index], scale * same_view_shares),
        )
        rows = weight * shares * rows  # (N,)
        losses.total += rows.sum() / len(heads)
        losses.cross_view.append(rows[:num_images].sum())
        losses.projected.append(projected)
        if patch_targets is not None:
            losses.masked.append(rows[num_images:].sum())
        if same_view_rows is not None:
            losses.same_view.append((same_view_shares * same_view_rows).sum())
            losses.total += scale * losses.same_view[-1]
    return losses


def _cross_entropies(
    head: Head,
    shared: StudentPrototypes,
    tokens: Tensor,
    num_images: int,
    weights: Tensor,
    temperature: float,
    gradients: GradientSums,
    image_targets: MakeTargets,
    patch_targets: MakeTargets | None,
    same_view: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return one head's cross-entropies, and add the gradients of their weighted sum up.

    Returns:
        The cross-entropies of all rows against the teacher (N,), those of the images against the other student (n,) or
        None, and the images' projected features (n, bottleneck).
    """
    # a view, as hooks on a module's inputs, such as a FLOP counter's, may not sit on leaves of autograd.grad
    root = head(tokens.view_as(tokens), project=False)  # (N, bottleneck)
    with torch.no_grad(), torch.autocast(root.device.type, enabled=False):
        projected = root.to(shared.weight.dtype)
        slopes = None if shared.gradient is None else torch.zeros_like(projected, dtype=torch.float32)

        def losses(
            rows: slice, targets: RowTargets, same_view: tuple[Tensor, Tensor] | None = None
        ) -> tuple[Tensor, Tensor | None]:
            sums = None if slopes is None or shared.gradient is None else (slopes[rows], shared.gradient)
            return prototype_losses(
                projected[rows], shared.weight, targets, temperature, weights[rows], same_view, sums
            )

        rows, same_view_rows = losses(slice(num_images), image_targets(), same_view)
        if patch_targets is not None:
            rows = torch.cat([rows, losses(slice(num_images, None), patch_targets())[0]])  # (N,)
    if slopes is not None:
        gradients.add(root, slopes.to(root.dtype))
    return rows, same_view_rows, projected[:num_images].clone()


def assignment_statistics(assignments: Tensor) -> dict[str, Tensor]:
    """Return how evenly the teacher uses its prototypes, each from 0 to 1.

    Args:
        assignments: (N, K), whose rows sum to 1.

    Returns:
        `teacher_entropy`, the mean entropy of a row over its maximum log K, and `prototype_use`, the number of
        prototypes that have the largest entry of at least one row over the largest possible number, min(N, K).
    """
    count, num_prototypes = assignments.shape
    entropy = torch.special.entr(assignments).sum(dim=1).mean() / math.log(num_prototypes)
    used = torch.bincount(assignments.argmax(dim=1), minlength=num_prototypes).count_nonzero()
    return {"teacher_entropy": entropy, "prototype_use": used / min(count, num_prototypes)}
