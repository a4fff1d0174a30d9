"""From features to the loss terms of all heads, without keeping logits or activations.

Logits of all prototypes, of three branches and all heads, would be the largest tensors of a step. Here they exist a
chunk of rows at a time: nothing but the loss comes after them, so their gradient is computed together with the loss
(`losses.prototype_losses`). What stays between the branches is what a head multiplies its prototypes with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..models.configuration_poa import PoaConfig
from ..slicing import SlicedModel
from .early_gradients import GradientSums
from .heads import ProjectionHead
from .losses import SinkhornKnopp, prototype_losses


class HeadLosses:
    """The losses of one step, of one student's features of one kind of crops after another.

    Args:
        teacher: Its image features of the global crops and its features of the masked patches (2B + M, D).
        patch_weights: (M,), what each masked patch counts among those of its image.
        num_local_views: V, how many local crops each image has.
        gradients: Gets the gradients of students' features and of their heads' parameters.
    """

    def __init__(
        self,
        config: PoaConfig,
        teacher_heads: Sequence[ProjectionHead],
        student_heads: Sequence[ProjectionHead],
        teacher: Tensor,
        patch_weights: Tensor,
        num_local_views: int,
        teacher_temperature: float,
        gradients: GradientSums,
    ):
        self.config, self.gradients = config, gradients
        self.num_global, self.patch_weights = len(teacher) - len(patch_weights), patch_weights.float()
        # of all cross-view terms, global ones count twice
        self.num_terms = 2 + 2 * num_local_views
        self.heads = [
            _HeadLoss(*heads, teacher, self.num_global, teacher_temperature, gradients)
            for heads in zip(teacher_heads, student_heads, strict=True)
        ]
        names = ["dino_local_crops_loss", "dino_global_crops_loss", "ibot_loss"]
        if config.intact_weight < 1:
            names += ["distill_local_crops_loss", "distill_global_crops_loss"]
        self.terms = {f"{name}_{index}": self._filled(1, 0.0)[0] for index in range(len(self.heads)) for name in names}

    def statistics(self) -> dict[str, Tensor]:
        """`assignment_statistics` of each head's targets of the global crops."""
        of_heads = [assignment_statistics(head.class_targets()) for head in self.heads]
        return {f"{name}_{index}": value for index, of_head in enumerate(of_heads) for name, value in of_head.items()}

    def finish(self) -> None:
        """To be called once, after the last student."""
        while self.heads:
            self.heads.pop().finish()

    def global_crops(self, heads: Sequence[ProjectionHead | SlicedModel], tokens: Tensor, is_elastic: bool) -> Tensor:
        """A student's loss on its image features of the global crops and those of the masked patches (2B + M, D),
        detached. The intact student comes first: the elastic one learns from it too."""
        count = self.num_global
        shares = torch.cat([self._filled(count, 2 / (self.num_terms * count)), self.patch_weights / count])
        return self._loss("global", heads, tokens, shares, self._filled(count, 1 / count), is_elastic)

    def local_crops(self, heads: Sequence[ProjectionHead | SlicedModel], tokens: Tensor, is_elastic: bool) -> Tensor:
        """Likewise, on its image features of the local crops (V * B, D)."""
        count = len(tokens)
        shares = self._filled(count, 2 / (self.num_terms * self.num_global))
        return self._loss("local", heads, tokens, shares, self._filled(count, 1 / count), is_elastic)

    def _filled(self, count: int, value: float) -> Tensor:
        return torch.full((count,), value, device=self.patch_weights.device)

    def _loss(
        self, crops: str, heads: Sequence, tokens: Tensor, shares: Tensor, same_view_shares: Tensor, is_elastic: bool
    ) -> Tensor:
        """`shares` (N,) is what each row counts in a head's loss but for the student's weight, `same_view_shares` what
        those of images count in the elastic student's same-view loss."""
        weight = 1 - self.config.intact_weight if is_elastic else self.config.intact_weight
        num_images, scale = len(same_view_shares), weight / len(self.heads)
        total = self._filled(1, 0.0)[0]
        for index, (head, loss) in enumerate(zip(heads, self.heads, strict=True)):
            rows, same_view = loss(
                crops,
                head,
                tokens,
                scale * shares,
                scale * same_view_shares,
                is_elastic,
                self.config.student_temperature,
            )
            rows = weight * shares * rows
            self.terms[f"dino_{crops}_crops_loss_{index}"] += rows[:num_images].sum()
            if crops == "global":
                self.terms[f"ibot_loss_{index}"] += rows[num_images:].sum() / 2
            total += rows.sum() / len(self.heads)
            if same_view is not None:
                same_view = (same_view_shares * same_view).sum()
                self.terms[f"distill_{crops}_crops_loss_{index}"] += same_view
                total += scale * same_view
        return total


class _HeadLoss:
    """One head's part: the teacher's targets, and the prototypes that are shared by all students and crops."""

    def __init__(
        self,
        teacher_head: ProjectionHead,
        student_head: ProjectionHead,
        teacher: Tensor,
        num_global: int,
        temperature: float,
        gradients: GradientSums,
    ):
        self.gradients = gradients
        with torch.no_grad():
            tokens = teacher_head(teacher, project=False)
            prototypes = teacher_head.prototypes.weight
        device = tokens.device.type
        # Logits are in autocast's precision where that is on, all that comes after them in float32.
        self.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype
        self.class_tokens, self.patches = tokens.to(self.dtype).tensor_split([num_global])
        self.teacher_prototypes = prototypes.to(self.dtype)
        with torch.autocast(device, enabled=False):
            self.class_assignments = SinkhornKnopp(self._teacher_logits(self.class_tokens), temperature)
            self.patch_assignments = SinkhornKnopp(self._teacher_logits(self.patches), temperature)
        self.student_head = student_head
        with torch.no_grad():
            self.prototypes = student_head.prototypes.weight.to(self.dtype)
        self.prototypes_gradient: Tensor | None = None
        self.intact: dict[str, Tensor] = {}

    def __call__(
        self,
        crops: str,
        head: ProjectionHead | SlicedModel,
        tokens: Tensor,
        weights: Tensor,
        same_view_weights: Tensor,
        is_elastic: bool,
        temperature: float,
    ) -> tuple[Tensor, Tensor | None]:
        """The losses of `losses.prototype_losses`; gradients of tokens and of the head's parameters are added up."""
        # a view, as hooks on a module's inputs, such as a FLOP counter's, may not sit on leaves of autograd.grad
        root = head(tokens.view_as(tokens), project=False)
        with_gradient, num_images = torch.is_grad_enabled(), len(same_view_weights)
        with torch.no_grad(), torch.autocast(root.device.type, enabled=False):
            features, gradients = root.to(self.dtype), None
            if with_gradient:
                if self.prototypes_gradient is None:
                    self.prototypes_gradient = torch.zeros_like(self.prototypes, dtype=torch.float32)
                gradients = torch.zeros_like(features, dtype=torch.float32), self.prototypes_gradient
            if not is_elastic:
                self.intact[crops] = features[:num_images]
            intact = (self.intact[crops], same_view_weights) if is_elastic else None

            def losses(rows: slice, targets: Callable[[slice], Tensor], intact: tuple[Tensor, Tensor] | None):
                own = (gradients[0][rows], gradients[1]) if gradients else None
                return prototype_losses(
                    features[rows], self.prototypes, targets, temperature, weights[rows], intact, own
                )

            targets = self._targets_of(crops, num_images)
            rows, same_view = losses(slice(num_images), targets, intact)
            del targets
            if crops == "global":
                rows = torch.cat([rows, losses(slice(num_images, None), self._patch_targets, None)[0]])
        if gradients:
            self.gradients.add([root], [gradients[0].to(root.dtype)])
        return rows, same_view

    def finish(self) -> None:
        """Add the gradient of what the prototypes are made of."""
        if self.prototypes_gradient is not None:
            del self.teacher_prototypes, self.prototypes
            weight = self.student_head.prototypes.weight
            self.gradients.add([weight], [self.prototypes_gradient.to(weight.dtype)])

    def _teacher_logits(self, tokens: Tensor) -> Tensor:
        return tokens @ self.teacher_prototypes.T

    @torch.no_grad()
    def class_targets(self) -> Tensor:
        """Targets of the global crops (2B, K), float32."""
        with torch.autocast(self.class_tokens.device.type, enabled=False):
            return self.class_assignments(self._teacher_logits(self.class_tokens))

    def _targets_of(self, crops: str, num_images: int) -> Callable[[slice], Tensor]:
        """A global crop's target is that of the other one, a local crop's the sum of both."""
        first, second = self.class_targets().chunk(2)
        if crops == "global":
            targets = torch.cat([second, first])
            return lambda rows: targets[rows]
        targets = first + second
        images = torch.arange(num_images, device=targets.device) % len(targets)
        return lambda rows: targets[images[rows]]

    def _patch_targets(self, rows: slice) -> Tensor:
        return self.patch_assignments(self._teacher_logits(self.patches[rows]))


def assignment_statistics(assignments: Tensor) -> dict[str, Tensor]:
    """How the teacher uses its prototypes for assignments (N, K): mean entropy of a row over its maximum log K, and the
    distinct prototypes that come first in some row over the most that could, min(N, K)."""
    count, num_prototypes = assignments.shape
    entropy = torch.special.entr(assignments).sum(dim=1).mean() / math.log(num_prototypes)
    used = torch.bincount(assignments.argmax(dim=1), minlength=num_prototypes).count_nonzero()
    return {"teacher_entropy": entropy, "prototype_use": used / min(count, num_prototypes)}
