"""Matching a frozen teacher's features: linear projections of the students' features, and the losses on them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..slicing import SlicedModel, slice_plan, without_storage
from .branches import Batch, Branch, ImageTokens
from .early_gradients import GradientSums
from .gram import gram_loss
from .losses import koleo
from .objective import LossWeights, StepDetails

METRICS = ("cosine", "smooth_l1")


@dataclass(frozen=True)
class TeacherFeatures:
    """What a frozen teacher computes from the global crops of B images.

    Attributes:
        images: Features of the images (2B, D_t), those of the first views first.
        patches: Features of the patches (2B, tokens, D_p), on the grid of the students' masks; None without them.
    """

    images: Tensor
    patches: Tensor | None = None


class FeatureProjections(nn.Module):
    """Linear layers from a student's features to the teacher's, which all sizes share as slices.

    Args:
        in_features: Size D of the features of the full-size student.
        image_features: Size of the teacher's image features.
        patch_features: Size of its patch features; 0 to match images only.
    """

    def __init__(self, in_features: int, image_features: int, patch_features: int = 0):
        super().__init__()
        self.in_features = in_features
        self._sizes = (image_features, patch_features)
        self.images = nn.Linear(in_features, image_features)
        self.patches = nn.Linear(in_features, patch_features) if patch_features else None

    def forward(self, features: Tensor, of_patches: bool = False) -> Tensor:
        """Return projected features of images, or of patches (..., D)."""
        projection = self.patches if of_patches else self.images
        assert projection is not None
        return projection(features)

    @torch.no_grad()
    def permute_inputs(self, order: Tensor) -> None:
        """Let the layers read features whose channels were put into another order; see `ProjectionHeads`."""
        for layer in (self.images, self.patches):
            if layer is not None:
                layer.weight.copy_(layer.weight.index_select(1, order.to(layer.weight.device)))

    def sliced(self, in_features: int, dtype: torch.dtype | None = None) -> SlicedModel:
        """Return the projections for features of a size, cut by the rule that cuts the backbone.

        Args:
            in_features: Size D of the features.
            dtype: What the weights are rounded to, once for all calls; see `ElasticModelMixin.sliced`.
        """
        with without_storage():
            plain = FeatureProjections(in_features, *self._sizes)
        return SlicedModel(plain, self, slice_plan(self, plain), dtype)


def matching_loss(features: Tensor, targets: Tensor, metric: str) -> Tensor:
    """Return how far features are from their targets, in float32.

    Args:
        features: Projected features of a student (..., D).
        targets: The teacher's features (..., D).
        metric: `cosine` for 1 minus the cosine; `smooth_l1` for the mean over the channels of the smooth L1 distance to
            the target with mean 0 and variance 1 over its channels, as in data2vec (arXiv 2202.03555), so that it does
            not depend on the scale of the teacher's features.
    """
    with torch.autocast(features.device.type, enabled=False):
        features, targets = features.float(), targets.float()
        if metric == "cosine":
            return 1 - F.cosine_similarity(features, targets, dim=-1)
        targets = F.layer_norm(targets, targets.shape[-1:])
        return F.smooth_l1_loss(features, targets, reduction="none").mean(dim=-1)


def feature_matching_loss(
    batch: Batch,
    teacher: TeacherFeatures,
    intact: Branch,
    elastic: Sequence[Callable[[], Branch]],
    weights: LossWeights,
    metric: str,
    gradients: GradientSums,
) -> tuple[Tensor, StepDetails]:
    """Return the loss of a step that matches the students' features with a frozen teacher's.

    A global crop is compared with the teacher's features of the same crop, images and patches; a local crop, which the
    teacher does not see, with its image features of both global crops. Crops count as in `poa_loss`: each local crop
    twice, as it has two targets, and each global crop once, times two. Nothing is masked.

    Args:
        batch: Crops of B images; their masks are not used.
        teacher: The teacher's features of the global crops.
        intact: The full-size student; its heads are `FeatureProjections.sliced`.
        elastic: Make the sub-networks of this step; empty to train the intact student alone.
        weights: Weights of the losses.
        metric: One of `METRICS`.
        gradients: Receives the gradients of the students' and projections' parameters and of the crops.

    Returns:
        The loss, a scalar, and further values of the step: `feature_image_loss` and `feature_patch_loss`, which mix
        both students by lambda, as does `gram_loss` where the batch has anchors, and half of the KoLeo regulariser as
        `koleo_loss`.
    """
    students = list(zip([lambda: intact, *elastic], weights.shares(len(elastic)), strict=True))
    koleo_weight, last = weights.koleo / len(students), students[-1][0]
    losses = [
        _student_losses(
            batch, teacher, make_student(), weight, koleo_weight, weights.gram, metric, gradients, make_student is last
        )
        for make_student, weight in students
    ]
    terms = {name: functools.reduce(torch.add, (each[name] for each in losses)) for name in losses[0]}
    total = functools.reduce(torch.add, terms.values())
    if "koleo_loss" in terms:
        terms["koleo_loss"] = terms["koleo_loss"] / 2
    return total, StepDetails(terms, teacher.images, {})


def _student_losses(
    batch: Batch,
    teacher: TeacherFeatures,
    student: Branch,
    weight: float,
    koleo_weight: float,
    gram_weight: float,
    metric: str,
    gradients: GradientSums,
    is_last: bool,
) -> dict[str, Tensor]:
    """Return the weighted parts of one student's loss by name, detached, and add their gradients up.

    Those of the last pass of the last student are left to the backward pass of the loss.
    """
    project, global_share = student.heads, 1 / (1 + batch.num_local_views)

    def on_global(images: Tensor, patches: Tensor) -> dict[str, Tensor]:  # (2B, D), (2B, tokens, D)
        distances = matching_loss(project(images), teacher.images, metric)  # (2B,)
        parts = {"feature_image_loss": weight * global_share * distances.mean()}
        if teacher.patches is not None:
            distances = matching_loss(project(patches, of_patches=True), teacher.patches, metric)  # (2B, tokens)
            parts["feature_patch_loss"] = weight * distances.mean()
        if batch.anchors is not None:
            parts["gram_loss"] = gram_weight * weight * gram_loss(patches, batch.anchors)
        if koleo_weight:
            parts["koleo_loss"] = koleo_weight * functools.reduce(torch.add, map(koleo, images.chunk(2)))
        return parts

    def on_local(images: Tensor, _: Tensor) -> dict[str, Tensor]:  # (V * B, D)
        projected = project(images)
        # row v * B + b is a crop of image b
        targets = [target.repeat(batch.num_local_views, 1) for target in teacher.images.chunk(2)]
        distances = torch.stack([matching_loss(projected, target, metric) for target in targets])  # (2, V * B)
        return {"feature_image_loss": weight * (1 - global_share) * distances.mean()}

    kinds = [(batch.global_crops, on_global), (batch.local_crops, on_local)]
    kinds = [(crops, losses) for crops, losses in kinds if len(crops)]
    passes = [kinds] if student.packed is not None else [[kind] for kind in kinds]
    totals: dict[str, Tensor] = {}
    for kinds in passes:
        if is_last and kinds is passes[-1] and student.start_last_pass is not None:
            student.start_last_pass()
        features = _features(student, [crops for crops, _ in kinds])
        # differentiated at once, so that the activations of one pass are freed before the next
        with gradients.cut(*(tensor for each in features for tensor in each)) as tensors:
            cut = zip(tensors[::2], tensors[1::2], strict=True)
            parts = [part for each, (_, losses) in zip(cut, kinds, strict=True) for part in losses(*each).items()]
            gradients.add(functools.reduce(torch.add, [loss for _, loss in parts]))
            for name, loss in parts:
                totals[name] = totals.get(name, loss.new_zeros(())) + loss.detach()
            del features, parts, loss, tensors, cut
    return totals


def _features(student: Branch, crops: Sequence[Tensor]) -> Sequence[ImageTokens]:
    """Return a student's features of the crops of a pass, which may be of several resolutions."""
    if len(crops) == 1:
        return [student.features(crops[0], None)]
    assert student.packed is not None
    return student.packed(crops, [None] * len(crops))
