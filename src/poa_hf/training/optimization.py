"""Parameter groups and schedules, each a pure function of the step (conventions of the authors' code, which are
DINOv2's; golden values: tests/fixtures/golden/components.safetensors and param_groups.json)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..models.modeling_poa_pretraining import PoaForPreTraining
    from .arguments import PoaTrainingArguments


def cosine_schedule(step: int, start: float, end: float, total_steps: int, warmup_steps: int = 0) -> float:
    """Linear from 0 to `start` over `warmup_steps` (the last of which has the full value), then a half cosine to `end`
    at `total_steps`, and `end` from there on."""
    if step < warmup_steps:
        return start * step / max(1, warmup_steps - 1)
    if step >= total_steps:
        return end
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def linear_schedule(step: int, start: float, end: float, warmup_steps: int) -> float:
    """Linear from `start` to `end`, reached at step `warmup_steps - 1`, then constant."""
    if step >= warmup_steps - 1:
        return end
    return start + (end - start) * step / (warmup_steps - 1)


@dataclass(frozen=True)
class StepHyperparameters:
    """What the schedules say for one step."""

    learning_rate: float
    last_layer_learning_rate: float
    backbone_learning_rate: float
    weight_decay: float
    teacher_momentum: float
    teacher_temperature: float
    predict_masked_patches: bool
    freeze_backbone: bool


def hyperparameters_at(step: int, args: PoaTrainingArguments, global_batch_size: int) -> StepHyperparameters:
    """All schedules at `step`. Cosines are stretched to `max_steps / schedule_stretch` and truncated at `max_steps`;
    the learning rate grows with the square root of the batch (1024 images: as given). A backbone that was frozen at
    first, and whose AdamW starts then, gets a linear warm-up of its own, as long as the first one."""
    total = int(args.max_steps / args.schedule_stretch)
    peak = args.learning_rate * math.sqrt(global_batch_size / 1024)
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
    """What a parameter makes of the scheduled values. The last layer is frozen at first."""

    learning_rate: float
    weight_decay: float
    is_last_layer: bool


def parameter_multipliers(
    model: PoaForPreTraining, layerwise_decay: float, patch_embed_lr_mult: float
) -> dict[str, Multipliers]:
    """Multipliers of every parameter of the student and its heads.

    The learning rate decays from the last layer down to the embeddings; heads have the full rate. No weight decay on
    vectors (biases, norms, LayerScale) but those that the family names.
    """
    student = model.student
    parameters = dict(student.named_parameters())
    places = student.slice_rules.layer_indices(parameters, student.config.space.full.depths)
    last = max(places.values())
    multipliers = {}
    for name, parameter in parameters.items():
        rate = layerwise_decay ** (last - places[name])
        if student.patch_embedding and re.search(student.patch_embedding, name):
            rate *= patch_embed_lr_mult
        decayed = parameter.ndim > 1 or bool(student.decayed_vectors and re.search(student.decayed_vectors, name))
        multipliers[f"student.{name}"] = Multipliers(rate, float(decayed), False)
    for name, parameter in model.student_head.named_parameters():
        multipliers[f"student_head.{name}"] = Multipliers(1.0, float(parameter.ndim > 1), "prototypes" in name)
    return multipliers


def parameter_groups(model: PoaForPreTraining, layerwise_decay: float, patch_embed_lr_mult: float) -> list[dict]:
    """Optimizer groups, one per distinct `Multipliers` (kept in the group as `multipliers`) of backbone and heads."""
    parameters = dict(model.named_parameters())
    groups: dict[tuple[bool, Multipliers], dict] = {}
    for name, multipliers in parameter_multipliers(model, layerwise_decay, patch_embed_lr_mult).items():
        is_backbone = name.startswith("student.")
        group = {"params": [], "multipliers": tuple(multipliers), "is_backbone": is_backbone}
        group = groups.setdefault((is_backbone, multipliers), group)
        group["params"].append(parameters[name])
    return list(groups.values())


def build_optimizer(model: PoaForPreTraining, args: PoaTrainingArguments) -> torch.optim.AdamW:
    groups = parameter_groups(model, args.layerwise_decay, args.patch_embed_lr_mult)
    return torch.optim.AdamW(
        groups, lr=0.0, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon, fused=True
    )


def set_hyperparameters(optimizer: torch.optim.Optimizer, values: StepHyperparameters) -> None:
    """Give every group of the optimizer its learning rate and weight decay of this step."""
    for group in optimizer.param_groups:
        multipliers = Multipliers(*group["multipliers"])
        rate = values.backbone_learning_rate if group["is_backbone"] else values.learning_rate
        rate = values.last_layer_learning_rate if multipliers.is_last_layer else rate
        group["lr"] = rate * multipliers.learning_rate
        group["weight_decay"] = values.weight_decay * multipliers.weight_decay


def step_unless(skip: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's step, which changes neither parameters nor state where `skip`, a bool on the device, is true.

    Fused optimizers read such a flag on the device, where gradient scalers put it: no host waits for it.
    """
    fused = getattr(optimizer, "optimizer", optimizer)  # in Accelerate's wrapper
    fused.found_inf = skip.float()
    optimizer.step()
    del fused.found_inf
