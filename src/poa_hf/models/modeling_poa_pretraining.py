"""The three branches (teacher, intact student, elastic student) and the loss that ties them together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.utils import ModelOutput

from ..elastic import SubNetwork
from ..losses import cross_entropy, koleo, sinkhorn_knopp
from .configuration_poa import PoaConfig
from .heads import ProjectionHeads, Prototypes


@dataclass
class PoaForPreTrainingOutput(ModelOutput):
    """
    `loss` is the total that is differentiated. `losses` are the scalars that the authors log, detached, under their
    names: `dino_*` (cross-view) and `ibot_*` (masked patches) mix both students by lambda, `distill_*` (same-view) is
    the elastic student's alone; `ibot_*` and `koleo_loss` are half of what enters the total.
    `teacher_features` (2B, width) and `statistics` (on request) are for monitoring, detached.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    teacher_features: Tensor | None = None
    statistics: dict[str, Tensor] | None = None


@dataclass
class _Tokens:
    """What a branch makes of a batch: image features `global_` (2B, D) and `local` (V*B, D), and features of the masked
    patches, `masked` (M, D); or the logits of these."""

    global_: Tensor
    local: Tensor
    masked: Tensor

    def map(self, head: Callable[[Tensor], Tensor]) -> _Tokens:
        """The head's logits of all tokens, from one call."""
        sizes = [len(self.global_), len(self.local), len(self.masked)]
        return _Tokens(*head(torch.cat([self.global_, self.local, self.masked])).split(sizes))


class PoaForPreTraining(PreTrainedModel):
    """Teacher, student and their heads as one model, whose `forward` gives the loss of one step.

    `teacher` and `teacher_head` start as copies of the student's and follow it by `update_teacher`; they never train.
    """

    config_class = PoaConfig
    config: PoaConfig
    base_model_prefix = "student"
    main_input_name = "global_crops"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PoaConfig):
        super().__init__(config)
        self.student = AutoModel.from_config(config.backbone_config)
        self.teacher = AutoModel.from_config(config.backbone_config)
        self.student_head = self._new_heads()
        self.teacher_head = self._new_heads()
        self.post_init()
        self.update_teacher(momentum=0.0)
        self.train(self.training)

    def _new_heads(self) -> ProjectionHeads:
        config = self.config
        return ProjectionHeads(
            config.backbone_config.hidden_size,
            config.head_num_layers,
            config.head_hidden_size,
            config.head_bottleneck_size,
            config.num_prototypes,
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            initialization.trunc_normal_(module.weight, std=self.config.initializer_range)
            initialization.zeros_(module.bias)
        elif isinstance(module, Prototypes):
            initialization.ones_(module.weight_g)
            # the default of nn.Linear, which the authors' last layer keeps
            initialization.kaiming_uniform_(module.weight_v, a=5**0.5)

    def train(self, mode: bool = True) -> PoaForPreTraining:
        super().train(mode)
        self.teacher.eval()
        # here rather than once: loading a checkpoint replaces the parameters
        self.teacher.requires_grad_(False)
        self.teacher_head.requires_grad_(False)
        return self

    @torch.no_grad()
    def update_teacher(self, momentum: float, heads_only: bool = False) -> None:
        """Teacher = momentum * teacher + (1 - momentum) * student, heads included."""
        teacher, student = list(self.teacher_head.parameters()), list(self.student_head.parameters())
        if not heads_only:
            teacher += self.teacher.parameters()
            student += self.student.parameters()
        torch._foreach_mul_(teacher, momentum)
        torch._foreach_add_(teacher, student, alpha=1 - momentum)

    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor,
        masks: Tensor,
        sub_network: SubNetwork,
        teacher_temperature: float,
        predict_masked_patches: bool = True,
        return_statistics: bool = False,
        freeze_backbone: bool = False,
    ) -> PoaForPreTrainingOutput:
        """The loss of one batch of B images.

        Args:
            global_crops: (2B, 3, H, W), the B first views of the images, then the B second views.
            local_crops: (V*B, 3, h, w), view-major likewise; V may be 0.
            masks: bool (2B, tokens), the patches of the global crops that are hidden from the students.
            sub_network: The elastic student of this step, a member of `config.backbone_config.space`.
            teacher_temperature: Softmax temperature of the teacher's targets.
            predict_masked_patches: Whether patches are hidden and predicted.
            return_statistics: Whether to add the teacher's entropy and prototype use per head, each from 0 to 1.
            freeze_backbone: Whether only the heads learn: the backbone's gradients are then 0.
        """
        if not predict_masked_patches:
            # still given to the students: every parameter then takes part in every step, as DDP wants it
            masks = torch.zeros_like(masks)
        with torch.no_grad():
            teacher = self._tokens(self.teacher, global_crops, global_crops[:0], masks, hide=False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not freeze_backbone):
            intact = self._tokens(self.student, global_crops, local_crops, masks)
            elastic = None
            if self.config.intact_weight < 1:
                elastic = self._tokens(self.student.sliced(sub_network), global_crops, local_crops, masks)
        output = self._loss(teacher, intact, elastic, masks, teacher_temperature, return_statistics)
        if freeze_backbone:
            # no part in the loss, but in the step, as above
            output.loss = output.loss + 0 * sum(parameter.sum() for parameter in self.student.parameters())
        return output

    def _loss(
        self,
        teacher: _Tokens,
        intact: _Tokens,
        elastic: _Tokens | None,
        masks: Tensor,
        teacher_temperature: float,
        return_statistics: bool,
    ) -> PoaForPreTrainingOutput:
        """Heads and every loss term, from the branches' features."""
        if elastic is None:
            # the intact student alone: every term of the other one has weight 0
            elastic_heads = [None] * len(self.student_head)
        else:
            elastic_heads = self.student_head.sliced(elastic.global_.shape[-1])
        # an image's masked patches count as one together, whatever their number
        patch_weights = (masks / masks.sum(dim=1, keepdim=True).clamp(min=1))[masks]
        total = intact.global_.new_zeros((), dtype=torch.float32)
        logged, statistics = {}, {}
        for index, (student_head, elastic_head) in enumerate(zip(self.student_head, elastic_heads, strict=True)):
            with torch.no_grad():
                logits = teacher.map(self.teacher_head[index])
                targets = _Tokens(
                    sinkhorn_knopp(logits.global_, teacher_temperature),
                    logits.local,
                    sinkhorn_knopp(logits.masked, teacher_temperature),
                )
            losses = self._head_losses(
                targets, intact.map(student_head), elastic and elastic.map(elastic_head), patch_weights
            )
            for name, loss in losses.items():
                total = total + self._weight(name) * loss / len(self.student_head)
                logged[f"{name}_{index}"] = loss.detach()
            if return_statistics:
                for name, value in assignment_statistics(targets.global_).items():
                    statistics[f"{name}_{index}"] = value
        if self.config.koleo_weight:
            students = [intact] if elastic is None else [intact, elastic]
            views = [view for student in students for view in student.global_.chunk(2)]
            loss = self.config.koleo_weight * sum(koleo(view) for view in views) / len(students)
            total = total + loss
            logged["koleo_loss"] = loss.detach() / 2
        return PoaForPreTrainingOutput(total, logged, teacher.global_, statistics)

    def _tokens(self, backbone, global_crops: Tensor, local_crops: Tensor, masks: Tensor, hide: bool = True) -> _Tokens:
        """One branch's features; `backbone` is a model or its slices."""
        features, patches = self.student.image_tokens(backbone(global_crops, bool_masked_pos=masks if hide else None))
        local = features[:0]
        if len(local_crops):
            local, _ = self.student.image_tokens(backbone(local_crops))
        return _Tokens(features, local, patches[masks])

    def _head_losses(
        self, targets: _Tokens, intact: _Tokens, elastic: _Tokens | None, patch_weights: Tensor
    ) -> dict[str, Tensor]:
        """The terms of one head from the teacher's assignments and both students' logits."""
        temperature = self.config.student_temperature
        first, second = targets.global_.chunk(2)
        other_view = torch.cat([second, first])
        batch_size = len(first)
        num_local = len(intact.local) // batch_size
        num_terms = 2 + 2 * num_local

        def cross_view_local(student: _Tokens) -> Tensor:
            views = student.local.unflatten(0, (num_local, batch_size))
            return cross_entropy(first + second, views, temperature).mean(dim=1).sum() / num_terms

        def cross_view_global(student: _Tokens) -> Tensor:
            return 2 * cross_entropy(other_view, student.global_, temperature).mean() / num_terms

        def masked(student: _Tokens) -> Tensor:
            losses = cross_entropy(targets.masked, student.masked, temperature)
            return (losses * patch_weights).sum() / (2 * batch_size)

        def same_view(intact: Tensor, elastic: Tensor) -> Tensor:
            targets = (intact.detach().float() / temperature).softmax(dim=-1)
            return cross_entropy(targets, elastic, temperature).sum() / max(1, len(elastic))

        def both(term) -> Tensor:
            if elastic is None:
                return term(intact)
            return self.config.intact_weight * term(intact) + (1 - self.config.intact_weight) * term(elastic)

        losses = {
            "dino_local_crops_loss": both(cross_view_local),
            "dino_global_crops_loss": both(cross_view_global),
            "ibot_loss": both(masked) / 2,
        }
        if elastic is not None:
            losses["distill_local_crops_loss"] = same_view(intact.local, elastic.local)
            losses["distill_global_crops_loss"] = same_view(intact.global_, elastic.global_)
        return losses

    def _weight(self, name: str) -> float:
        """What a logged term counts in the total (golden values' README: `ibot_loss` is logged at half)."""
        if name.startswith("distill"):
            return 1 - self.config.intact_weight
        return 2.0 if name == "ibot_loss" else 1.0


def load_complete(folder: str | Path) -> PoaForPreTraining:
    """`PoaForPreTraining.from_pretrained`, but a folder that lacks any of its parameters is refused with ValueError,
    instead of some being made up at random."""
    config = Path(folder) / "config.json"
    try:
        model_type = json.loads(config.read_text()).get("model_type")
        if model_type != "poa":
            raise ValueError(
                f"{folder} holds a {model_type!r} model, not the teacher and student of a pre-training run."
            )
        model, report = PoaForPreTraining.from_pretrained(folder, output_loading_info=True)
    except (OSError, json.JSONDecodeError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} parameters ({missing[0]}, ...): it is not a whole checkpoint.")
    return model


def assignment_statistics(assignments: Tensor) -> dict[str, Tensor]:
    """How the teacher uses its prototypes for assignments (N, K): mean entropy of a row over its maximum log K, and the
    distinct prototypes that come first in some row over the most that could, min(N, K)."""
    count, num_prototypes = assignments.shape
    entropy = torch.special.entr(assignments).sum(dim=1).mean() / math.log(num_prototypes)
    used = torch.bincount(assignments.argmax(dim=1), minlength=num_prototypes).count_nonzero()
    return {"teacher_entropy": entropy, "prototype_use": used / min(count, num_prototypes)}
