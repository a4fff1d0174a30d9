"""A run that learns from a frozen model of another's: its checks, and that model's features of each batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from ..models.foreign_teacher import ForeignTeacher
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..objective.distillation import DistillationSpec
from ..objective.feature_matching import TeacherFeatures
from .arguments import PoaTrainingArguments
from .teacher_cache import CachedTeacher


class NoForeignTeacher:
    """Stands for the teacher of a run whose students learn from their own moving average."""

    flops = 0

    def start(self) -> None:
        """Prepare nothing."""

    def __call__(self, batch: dict[str, Any], crops: Tensor) -> TeacherFeatures | None:
        """Return None."""
        return None


@dataclasses.dataclass
class TeacherOfCrops:
    """A foreign teacher that sees the global crops of each batch.

    Args:
        teacher: The teacher, prepared.
        grid: Height and width of the students' grid of patches; None to match images only.
    """

    teacher: ForeignTeacher
    grid: tuple[int, int] | None

    @property
    def flops(self) -> int:
        """Floating-point operations of its features of one crop."""
        return self.teacher.flops

    def start(self) -> None:
        """Prepare nothing."""

    def __call__(self, batch: dict[str, Any], crops: Tensor) -> TeacherFeatures:
        """Return the features of the global crops (2B, C, H, W)."""
        return self.teacher(crops, self.grid)


def teacher_features(
    model: PoaForPreTraining,
    args: PoaTrainingArguments,
    teacher: ForeignTeacher | PreTrainedModel | None,
    dataset: Any,
    accelerator: Accelerator,
) -> NoForeignTeacher | TeacherOfCrops | CachedTeacher:
    """Make a model learn from a frozen teacher, or from its own, and return what gives the former's features.

    Args:
        model: The model that is trained.
        args: The arguments of the run.
        teacher: The frozen teacher; None to learn from the moving average of the student.
        dataset: The images of the run.
        accelerator: The accelerator of the run.

    Raises:
        ValueError: For a teacher or arguments that do not fit the run.
    """
    if teacher is None:
        _refuse_arguments(args)
        model.distil_from(None)
        return NoForeignTeacher()
    if not isinstance(teacher, ForeignTeacher):
        teacher = ForeignTeacher(teacher, image_size=args.foreign_teacher_size)
    if args.cache_teacher and args.foreign_teacher_patches:
        raise ValueError(
            "cache_teacher keeps features of whole images, and patches of crops have none there: add "
            "--foreign_teacher_patches false."
        )
    dtype = torch.bfloat16 if args.bf16 else None
    teacher.prepare(args.global_crop_size, args.image_mean, args.image_std, accelerator.device, dtype)
    if args.foreign_teacher_patches and not teacher.patch_features:
        raise ValueError(
            f"{teacher.name} has no features of patches, which foreign_teacher_patches is to match: add "
            "--foreign_teacher_patches false."
        )
    spec = DistillationSpec(
        teacher=teacher.name,
        loss=args.foreign_teacher_loss,
        metric=args.foreign_teacher_metric,
        image_features=teacher.image_features,
        patch_features=teacher.patch_features if args.foreign_teacher_patches else 0,
        whole_images=args.cache_teacher,
        fingerprint=teacher.fingerprint,
    )
    with torch.random.fork_rng(devices=[]):  # what is new starts from values that follow from the seed alone
        torch.manual_seed(args.seed)
        model.distil_from(spec)
    if args.cache_teacher:
        return CachedTeacher(teacher, dataset, args, accelerator)
    side = args.global_crop_size // model.config.backbone_config.patch_grid
    return TeacherOfCrops(teacher, (side, side) if args.foreign_teacher_patches else None)


def _refuse_arguments(args: PoaTrainingArguments) -> None:
    """Raise a ValueError for arguments that only a foreign teacher gives a meaning."""
    for field in dataclasses.fields(args):
        is_of_teacher = field.name.startswith("foreign_teacher_") or field.name == "cache_teacher"
        if is_of_teacher and getattr(args, field.name) != field.default:
            raise ValueError(f"{field.name} is given, but no teacher: add --foreign_teacher, or leave it out.")
