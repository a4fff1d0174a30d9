"""The optimizer: its parameter groups, and schedules that are pure functions of the step.

Conventions are those of the authors' code, which follows DINOv2. Golden values were recorded from it
(tests/fixtures/golden/components.safetensors and param_groups.json).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..models.modeling_poa_pretraining import PoaForPreTraining
    from .arguments import PoaTrainingArguments


def cosine_schedule(step: int, start: float, end: float, total_steps: int, warmup_steps: int = 0) -> float:
    """Rise linearly from 0 to `start`, then fall (or rise) along half a cosine to `end`, and stay there.

    Args:
        step: The step, from 0.
        start: Value at the last step of the warm-up.
        end: Value at `total_steps` and after.
        total_steps: Step at which the cosine ends.
        warmup_steps: Steps of the linear part.

    Example:
        >>> [cosine_schedule(step, start=1.0, end=0.0, total_steps=8, warmup_steps=3) for step in (0, 1, 2, 3, 8)]
        [0.0, 0.5, 1.0, 1.0, 0.0]
    """
    if step < warmup_steps:
        return start * step / max(1, warmup_steps - 1)
    if step >= total_steps:
        return end
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def linear_schedule(step: int, start: float, end: float, warmup_steps: int) -> float:
    """Go linearly from `start` to `end`, which is reached at step `warmup_steps - 1`, and stay there."""
    if step >= warmup_steps - 1:
        return end
    return start + (end - start) * step / (warmup_steps - 1)


@dataclass(frozen=True)
class StepHyperparameters:
    """The values of all schedules at one step; they are logged under these names.

    Args:
        learning_rate: Learning rate of the heads; the backbone's after its warm-up.
        last_layer_learning_rate: Learning rate of the prototypes; 0 for the first `freeze_last_layer_steps`.
        backbone_learning_rate: Learning rate of the backbone; 0 for the first `freeze_backbone_steps`.
        weight_decay: Weight decay.
        teacher_momentum: Momentum of the teacher's moving average.
        teacher_temperature: Temperature of the teacher's softmax.
        predict_masked_patches: Whether masked patches are predicted.
        freeze_backbone: Whether only the heads train.
    """

    learning_rate: float
    last_layer_learning_rate: float
    backbone_learning_rate: float
    weight_decay: float
    teacher_momentum: float
    teacher_temperature: float
    predict_masked_patches: bool
    freeze_backbone: bool


def peak_learning_rate(args: PoaTrainingArguments, global_batch_size: int) -> float:
    """Return the learning rate after the warm-up, which grows with the square root of the images per step."""
    return args.learning_rate * math.sqrt(global_batch_size / 1024)


def hyperparameters_at(step: int, args: PoaTrainingArguments, global_batch_size: int) -> StepHyperparameters:
    """Return the values of all schedules at a step.

    Cosines are stretched to `max_steps / schedule_stretch` and cut off at `max_steps`. The learning rate grows with the
    square root of the batch size, and is `args.learning_rate` for 1024 images. A backbone that was frozen at first gets
    a second linear warm-up of the same length, because AdamW's moments start from 0 for it.

    Args:
        step: The step, from 0.
        args: The arguments of the run.
        global_batch_size: Images per step, of all processes.
    """
    total = int(args.max_steps / args.schedule_stretch)
    peak = peak_learning_rate(args, global_batch_size)
    learning_rate = cosine_schedule(step, peak, args.min_learning_rate, total, args.warmup_steps)
    since_frozen = step - args.freeze_backbone_steps
    thawed = 1.0
    if args.freeze_backbone_steps:
        thawed = min(1.0, max(0, since_frozen + 1) / max(1, args.warmup_steps))
    return StepHyperparameters(
        learning_rate=learning_rate,
        last_layer_learning_rate=0.0 if step < args.freeze_last_layer_steps else learning_rate,
        backbone_learning_rate=learning_rate * thawed,
        weight_decay=cosine_schedule(step, args.weight_decay, args.final_weight_decay, total),
        teacher_momentum=cosine_schedule(step, args.teacher_momentum, args.final_teacher_momentum, total),
        teacher_temperature=linear_schedule(
            step, args.teacher_temperature, args.final_teacher_temperature, args.teacher_temperature_warmup_steps
        ),
        predict_masked_patches=step >= args.masked_prediction_start_step,
        freeze_backbone=since_frozen < 0,
    )


class Multipliers(NamedTuple):
    """Per-parameter factors of the scheduled learning rate and weight decay.

    `is_last_layer` says whether the parameter belongs to the prototypes, whose learning rate has its own schedule.
    """

    learning_rate: float
    weight_decay: float
    is_last_layer: bool


def parameter_multipliers(
    model: PoaForPreTraining, layerwise_decay: float, patch_embed_lr_mult: float
) -> dict[str, Multipliers]:
    """Return the multipliers of every parameter of the student and its heads, by name.

    The learning rate decays from the last block down to the embeddings; heads have the full rate. Vectors (biases,
    norms, LayerScale) have no weight decay, except those that the family names (`decayed_vectors`).

    Args:
        model: The model.
        layerwise_decay: Factor of the learning rate per block below the last.
        patch_embed_lr_mult: Further factor for the patch embedding.
    """
    student = model.student
    parameters = dict(student.named_parameters())
    layers = student.slice_rules.layer_indices(parameters, student.config.space.full.depths)
    last = max(layers.values())
    multipliers = {}
    for name, parameter in parameters.items():
        rate = layerwise_decay ** (last - layers[name])
        if student.patch_embedding and re.search(student.patch_embedding, name):
            rate *= patch_embed_lr_mult
        decayed = parameter.ndim > 1 or bool(student.decayed_vectors and re.search(student.decayed_vectors, name))
        multipliers[f"student.{name}"] = Multipliers(rate, float(decayed), False)
    for name, parameter in model.named_parameters():
        # what else is trained: the student's heads, or what learns in their place or beside them from another model
        if parameter.requires_grad and not name.startswith("student."):
            multipliers[name] = Multipliers(1.0, float(parameter.ndim > 1), "prototypes" in name)
    return multipliers


def parameter_groups(model: PoaForPreTraining, layerwise_decay: float, patch_embed_lr_mult: float) -> list[dict]:
    """Return the optimizer's groups: one per distinct `Multipliers`, separately for backbone and heads.

    Each group holds its `multipliers` and `is_backbone`, which `set_hyperparameters` reads.
    """
    parameters = dict(model.named_parameters())
    members: dict[tuple[bool, Multipliers], list[nn.Parameter]] = {}
    for name, multipliers in parameter_multipliers(model, layerwise_decay, patch_embed_lr_mult).items():
        key = name.startswith("student."), multipliers
        members.setdefault(key, []).append(parameters[name])
    return [
        {"params": params, "multipliers": tuple(multipliers), "is_backbone": is_backbone}
        for (is_backbone, multipliers), params in members.items()
    ]


def build_optimizer(model: PoaForPreTraining, args: PoaTrainingArguments) -> torch.optim.AdamW:
    """Make the AdamW of a run; `set_hyperparameters` gives its groups their values at each step."""
    groups = parameter_groups(model, args.layerwise_decay, args.patch_embed_lr_mult)
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon, fused=True
    )


def set_hyperparameters(optimizer: torch.optim.Optimizer, values: StepHyperparameters) -> None:
    """Give every group of the optimizer its learning rate and weight decay for this step."""
    for group in optimizer.param_groups:
        multipliers = Multipliers(*group["multipliers"])
        rate = values.backbone_learning_rate if group["is_backbone"] else values.learning_rate
        rate = values.last_layer_learning_rate if multipliers.is_last_layer else rate
        group["lr"] = rate * multipliers.learning_rate
        group["weight_decay"] = values.weight_decay * multipliers.weight_decay


def step_unless(skip: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Make the optimizer's step, which changes neither parameters nor state if `skip` is true.

    Fused optimizers read such a flag on the device, where `torch.amp.GradScaler` puts it: the host does not wait.

    Args:
        skip: A bool on the device.
        optimizer: A fused optimizer, or Accelerate's wrapper of one.
    """
    fused: Any = getattr(optimizer, "optimizer", optimizer)
    fused.found_inf = skip.float()
    optimizer.step()
    del fused.found_inf
