"""The losses of all heads on a student's features, computed without keeping logits or activations.

The logits of all prototypes, of three branches and all heads, would be the largest tensors of a step. Here they exist a
chunk of rows at a time: nothing but the loss comes after them, so their gradient is computed together with the loss
(`losses.prototype_losses`). Between the passes, only the projected features are kept, which are small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .early_gradients import GradientSums
from .heads import Heads, Prototypes, autocast_dtype
from .losses import RowTargets, SinkhornKnopp, prototype_losses
from .row_functions import PLAIN, RowFunctions

# Returns the targets of images or patches, made when they are needed.
MakeTargets = Callable[[], RowTargets]


class TeacherTargets:
    """One teacher head's soft assignments to its K prototypes: the targets of the students.

    They are made from the teacher's projected features whenever they are needed, as (N, K) is too large to be kept.

    Args:
        prototypes: The head's prototypes.
        projected: The teacher's projected features of the global crops, followed by those of the masked patches
            (2B + M, bottleneck).
        num_images: Number of global crops, 2B.
        temperature: Softmax temperature.
        functions: What is computed of chunks of rows of logits, compiled or not.
    """

    @torch.no_grad()
    def __init__(
        self,
        prototypes: Prototypes,
        projected: Tensor,
        num_images: int,
        temperature: float,
        functions: RowFunctions = PLAIN,
    ):
        device = projected.device.type
        # Under autocast, logits are in its precision; everything after them is in float32.
        self.dtype = autocast_dtype(projected.device) or projected.dtype
        self._images, self._patches = projected.to(self.dtype).tensor_split([num_images])
        self._prototypes = prototypes.weight.to(self.dtype)  # (K, bottleneck)
        with torch.autocast(device, enabled=False):
            # class tokens and patches are balanced separately
            self._assign_images = SinkhornKnopp(self._logits(self._images), temperature, functions=functions)
            self._assign_patches = SinkhornKnopp(self._logits(self._patches), temperature, functions=functions)

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


@dataclass(frozen=True)
class Part:
    """What the heads compare features of one kind with: those of global crops, of masked patches or of local crops.

    Attributes:
        weights: Weight of each row's cross-entropy in a head's loss (n,).
        targets: By head, the teacher's targets, for the cross-view or the masked patches' loss.
        same_view: By head, the intact student's projected features (H, n, bottleneck), for the same-view loss; None if
            the part has none.
        same_view_weight: Weight of the same-view loss, beside the mean over the rows.
    """

    weights: Tensor
    targets: Sequence[MakeTargets]
    same_view: Tensor | None = None
    same_view_weight: float = 1.0


@dataclass
class PartLosses:
    """The losses of a student's features of one kind, detached.

    Attributes:
        projected: By head, the projected features (H, n, bottleneck), the same-view targets of the next student.
        against_teacher: By head, the loss against the teacher's targets, times the student's weight.
        same_view: By head, the same-view loss; empty if the part has none.
    """

    projected: Tensor
    against_teacher: list[Tensor] = field(default_factory=list)
    same_view: list[Tensor] = field(default_factory=list)


def head_losses(
    heads: Heads,
    prototypes: Sequence[StudentPrototypes],
    weight: float,
    temperature: float,
    gradients: GradientSums,
    tokens: Tensor,
    parts: Mapping[str, Part],
    functions: RowFunctions = PLAIN,
) -> tuple[Tensor, dict[str, PartLosses]]:
    """Return the losses of all heads on a student's features, and add their gradients up.

    Args:
        heads: The student's heads.
        prototypes: The prototypes of each head.
        weight: The student's share of the loss.
        temperature: Softmax temperature of the student.
        gradients: Receives the gradients of the tokens and of the heads' parameters.
        tokens: Features of all parts, one part after the other (N, D).
        parts: By name, what they are compared with.
        functions: What is computed of chunks of rows of logits, compiled or not.

    Returns:
        The weighted sum of the losses, this pass's part of the step's loss, a scalar; and the losses of each part.
    """
    # a view, as hooks on a module's inputs, such as a FLOP counter's, may not sit on leaves of autograd.grad
    root = heads(tokens.view_as(tokens))  # (H, N, bottleneck)
    counts = [len(part.weights) for part in parts.values()]
    with torch.no_grad(), torch.autocast(root.device.type, enabled=False):
        projected = root.detach().to(prototypes[0].weight.dtype)
        slopes = torch.zeros_like(projected, dtype=torch.float32) if root.requires_grad else None
        features = projected.split(counts, dim=1)
        slopes_of_parts = [None] * len(parts) if slopes is None else slopes.split(counts, dim=1)
        losses, total = {}, projected.new_zeros((), dtype=torch.float32)
        for (name, part), rows, sums in zip(parts.items(), features, slopes_of_parts, strict=True):
            of_part = losses[name] = _part_losses(part, rows, prototypes, weight, temperature, sums, functions)
            total += torch.stack(of_part.against_teacher).sum() / len(prototypes)
            if of_part.same_view:
                total += torch.stack(of_part.same_view).sum() * weight / len(prototypes)
    if slopes is not None:
        gradients.add(root, slopes.to(root.dtype))
    return total, losses


def _part_losses(
    part: Part,
    features: Tensor,
    prototypes: Sequence[StudentPrototypes],
    weight: float,
    temperature: float,
    slopes: Tensor | None,
    functions: RowFunctions,
) -> PartLosses:
    """Return the losses of one part, and add their gradients up.

    Args:
        part: What the features are compared with.
        features: The projected features (H, n, bottleneck).
        prototypes: The prototypes of each head.
        weight: The student's share of the loss.
        temperature: Softmax temperature of the student.
        slopes: The gradients of the features, to which those of the losses are added; None if none are wanted.
        functions: What is computed of chunks of rows of logits, compiled or not.
    """
    losses, scale = PartLosses(features.clone()), weight / len(prototypes)
    mean = part.same_view_weight / max(1, len(part.weights))
    same_view_weights = part.weights.new_full(part.weights.shape, mean)
    weights, scaled_same_view = scale * part.weights, scale * same_view_weights
    for index, (shared, targets) in enumerate(zip(prototypes, part.targets, strict=True)):
        same_view = None if part.same_view is None else (part.same_view[index], scaled_same_view)
        sums = None if slopes is None or shared.gradient is None else (slopes[index], shared.gradient)
        rows, same_view_rows = prototype_losses(
            features[index], shared.weight, targets(), temperature, weights, same_view, sums, functions
        )
        losses.against_teacher.append(weight * torch.dot(part.weights, rows))
        if same_view_rows is not None:
            losses.same_view.append(torch.dot(same_view_weights, same_view_rows))
    return losses


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
