"""How students learn from a frozen teacher: the modules that learn besides them, and the loss of a step.

There are two published forms. Both stand in place of the moving average of the student, which remains the model that is
evaluated and published (the "spare" average of DINOv2, arXiv 2304.07193, section 5), and nothing is masked.

- `FeatureDistillation` compares projected features with the teacher's (lightly-train's distillation, data2vec).
- `PrototypeDistillation` gives the teacher heads with prototypes, and the students' heads predict its assignments, as
  DINOv2 and DINOv3 (arXiv 2508.10104, section 5.2) distil their largest model.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .branches import Batch, Branch
from .early_gradients import GradientSums
from .feature_matching import METRICS, FeatureProjections, TeacherFeatures, feature_matching_loss
from .heads import ProjectionHeads
from .objective import LossWeights, StepDetails, poa_loss
from .row_functions import PLAIN, RowFunctions

LOSSES = ("features", "prototypes")


@dataclasses.dataclass(frozen=True)
class DistillationSpec:
    """What a model records about the teacher that it is distilled from.

    Args:
        teacher: Its name: a Hub id, or the last part of a path.
        loss: One of `LOSSES`.
        metric: One of `METRICS`, for the loss `features`.
        image_features: Size of its image features.
        patch_features: Size of its patch features; 0 if patches are not matched.
        whole_images: Whether its features are of whole images, and not of each global crop.
        fingerprint: A checksum of its weights, so that a run is resumed with the same ones.

    Raises:
        ValueError: For an unknown loss or metric, or a size that does not fit.
    """

    teacher: str
    loss: str
    metric: str
    image_features: int
    patch_features: int
    whole_images: bool = False
    fingerprint: str = ""

    def __post_init__(self) -> None:
        for name, known in (("loss", LOSSES), ("metric", METRICS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"The {name} of a distillation is {value!r}: choose one of {', '.join(known)}.")
        if type(self.image_features) is not int or type(self.patch_features) is not int or self.image_features < 1:
            raise ValueError("The teacher's features of a distillation have no size: give whole numbers.")
        if self.loss == "prototypes" and self.patch_features not in (0, self.image_features):
            raise ValueError(
                f"{self.teacher} has image features of {self.image_features} channels and patch features of "
                f"{self.patch_features}, but prototypes read both with the same heads: match features instead, or "
                "images only."
            )

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> DistillationSpec:
        """Read the fields of a configuration; ValueError if they are not those of a distillation."""
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError("distillation in the configuration does not have the fields of one.") from error


class FeatureDistillation(nn.Module):
    """Projections of the students' features, which are compared with the teacher's.

    Args:
        spec: What is matched.
        in_features: Size D of the features of the full-size student.
    """

    def __init__(self, spec: DistillationSpec, in_features: int):
        super().__init__()
        self.metric = spec.metric
        self.projections = FeatureProjections(in_features, spec.image_features, spec.patch_features)

    def student_heads(self, heads: ProjectionHeads) -> FeatureProjections:
        """Return what the students' features go through: the projections in place of the heads, which do not learn."""
        return self.projections

    def averaged(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return pairs of a module that is a moving average and the module that it follows: none."""
        return []

    def start_averages(self) -> None:
        """Give the moving averages the values that they start from: there are none."""

    def loss(
        self,
        batch: Batch,
        teacher: TeacherFeatures,
        intact: Branch,
        elastic: Sequence[Callable[[], Branch]],
        weights: LossWeights,
        teacher_temperature: float,
        gradients: GradientSums,
        with_statistics: bool,
        dtype: torch.dtype | None,
        functions: RowFunctions = PLAIN,
    ) -> tuple[Tensor, StepDetails]:
        """Return the loss of a step; see `feature_matching_loss`."""
        return feature_matching_loss(batch, teacher, intact, elastic, weights, self.metric, gradients)


class PrototypeDistillation(nn.Module):
    """Heads on the teacher's features, whose assignments to prototypes the students predict.

    A model of another's has no heads, so they are trained beside the students, by the objective that the heads of a
    frozen backbone learn by: a head predicts the assignments that its own moving average gives to the other global crop
    of the image, balanced by Sinkhorn-Knopp. The teacher itself stays as it is.

    Args:
        spec: What is matched.
        head_sizes: Arguments of `ProjectionHeads` after the first; students and teacher have the same prototypes.
    """

    def __init__(self, spec: DistillationSpec, head_sizes: Sequence[Any]):
        super().__init__()
        self.heads = ProjectionHeads(spec.image_features, *head_sizes)
        self.teacher_heads = ProjectionHeads(spec.image_features, *head_sizes)

    def student_heads(self, heads: ProjectionHeads) -> ProjectionHeads:
        """Return what the students' features go through: their heads."""
        return heads

    def averaged(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return pairs of a module that is a moving average and the module that it follows."""
        return [(self.teacher_heads, self.heads)]

    def start_averages(self) -> None:
        """Give the moving averages the values that they start from: those of what they follow."""
        self.teacher_heads.load_state_dict(self.heads.state_dict())

    def loss(
        self,
        batch: Batch,
        teacher: TeacherFeatures,
        intact: Branch,
        elastic: Sequence[Callable[[], Branch]],
        weights: LossWeights,
        teacher_temperature: float,
        gradients: GradientSums,
        with_statistics: bool,
        dtype: torch.dtype | None,
        functions: RowFunctions = PLAIN,
    ) -> tuple[Tensor, StepDetails]:
        """Return the loss of a step: that of `poa_loss` with this teacher, and that of its heads."""
        if teacher.patches is None:
            batch = dataclasses.replace(
                batch, masks=torch.zeros_like(batch.masks), masked_patches=batch.masked_patches[:0]
            )

        patches = teacher.patches
        if patches is None:  # none of these is ever read
            patches = teacher.images.new_zeros(()).expand(*batch.masks.shape, teacher.images.shape[1])

        def features(crops: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
            return teacher.images, patches

        def branch(heads: ProjectionHeads) -> Branch:
            return Branch(features, gradients.on_leaves(heads.sliced(heads.in_features, dtype)), heads.prototypes)

        return poa_loss(
            batch,
            branch(self.teacher_heads),
            _unmasked(intact),
            [functools.partial(_unmasked_once_made, make_student) for make_student in elastic],
            weights,
            teacher_temperature,
            gradients,
            with_statistics,
            learning_heads=branch(self.heads),
            functions=functions,
        )


Distillation = FeatureDistillation | PrototypeDistillation


def distillation(spec: DistillationSpec, in_features: int, head_sizes: Sequence[Any]) -> Distillation:
    """Make the modules of a distillation.

    Args:
        spec: What is matched, and how.
        in_features: Size D of the features of the full-size student.
        head_sizes: Arguments of `ProjectionHeads` after the first.
    """
    if spec.loss == "features":
        return FeatureDistillation(spec, in_features)
    return PrototypeDistillation(spec, head_sizes)


def _unmasked_once_made(make_student: Callable[[], Branch]) -> Branch:
    return _unmasked(make_student())


def _unmasked(student: Branch) -> Branch:
    """Return a student that sees all patches, as in the distillation of DINOv3."""
    see, see_packed = student.features, student.packed
    return dataclasses.replace(
        student,
        features=lambda crops, masks: see(crops, None),
        packed=see_packed and (lambda crops, masks: see_packed(crops, [None] * len(crops))),
    )
