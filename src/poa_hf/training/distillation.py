"""A run that learns from a frozen model of another's: its checks, and that model's features of each batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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

# Returns the teacher's features of a batch of the loader and its global crops (2B, C, H, W); None without a teacher.
FeaturesOfBatch = Callable[[dict[str, Any], Tensor], TeacherFeatures | None]


def teacher_features(
    model: PoaForPreTraining,
    args: PoaTrainingArguments,
    teacher: ForeignTeacher | PreTrainedModel | None,
    accelerator: Accelerator,
) -> FeaturesOfBatch:
    """Make a model learn from a frozen teacher, or from its own, and return what computes the former's features.

    Args:
        model: The model that is trained.
        args: The arguments of the run.
        teacher: The frozen teacher; None to learn from the moving average of the student.
        accelerator: The accelerator of the run.

    Raises:
        ValueError: For a teacher or arguments that do not fit the run.
    """
    if teacher is None:
        _refuse_arguments(args)
        model.distil_from(None)
        return lambda batch, crops: None
    if not isinstance(teacher, ForeignTeacher):
        teacher = ForeignTeacher(teacher, image_size=args.foreign_teacher_size)
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
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
        fingerprint=teacher.fingerprint,
    )
    with torch.random.fork_rng(devices=[]):  # what is new starts from values that follow from the seed alone
        torch.manual_seed(args.seed)
        model.distil_from(spec)
    side = args.global_crop_size // model.config.backbone_config.patch_grid
    grid = (side, side) if args.foreign_teacher_patches else None
    return lambda batch, crops: teacher(crops, grid)


def _refuse_arguments(args: PoaTrainingArguments) -> None:
    """Raise a ValueError for arguments that only a foreign teacher gives a meaning."""
    for field in dataclasses.fields(args):
        if field.name.startswith("foreign_teacher_") and getattr(args, field.name) != field.default:
            raise ValueError(f"{field.name} is given, but no teacher: add --foreign_teacher, or leave it out.")
