"""The three branches (teacher, intact student, elastic student) and the loss that ties them together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.utils import ModelOutput

from ..elastic import SubNetwork
from ..objective.early_gradients import GradientSums, differentiated
from ..objective.head_losses import HeadLosses
from ..objective.heads import ProjectionHeads, Prototypes
from ..objective.losses import koleo
from .configuration_poa import PoaConfig
from .elastic_model import ElasticModelMixin


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


class PoaForPreTraining(PreTrainedModel):
    """Teacher, student and their heads as one model, whose `forward` gives the loss of one step.

    `teacher` and `teacher_head` start as copies of the student's and follow it by `update_teacher`; they never train.
    """

    config_class = PoaConfig
    config: PoaConfig
    student: ElasticModelMixin
    teacher: ElasticModelMixin
    student_head: ProjectionHeads
    teacher_head: ProjectionHeads
    base_model_prefix = "student"
    main_input_name = "global_crops"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PoaConfig):
        super().__init__(config)
        self._compiled: dict[str, Callable] = {}
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
    def update_teacher(self, momentum: float, skip: Tensor | None = None, heads_only: bool = False) -> None:
        """Teacher = momentum * teacher + (1 - momentum) * student, heads included or alone; unchanged where the flag
        `skip`, a bool on the device, is true."""
        teacher, student = list(self.teacher_head.parameters()), list(self.student_head.parameters())
        if not heads_only:
            teacher += self.teacher.parameters()
            student += self.student.parameters()
        if skip is None:
            torch._foreach_lerp_(teacher, student, 1 - momentum)
        else:
            # a share of 0 does not do alone: the student may hold what is not finite
            share, student = torch.where(skip, 0.0, 1 - momentum), [torch.where(skip, 0, p) for p in student]
            torch._foreach_lerp_(teacher, student, [share] * len(teacher))

    def compile_full_size(self) -> None:
        """From now on run compiled what has the same shapes at every step: teacher and intact student. The elastic
        student is left as it is, as each of its sizes would have to be compiled."""
        # not as attributes of their own: modules would be registered, and saved under other names
        self._compiled = {
            name: torch.compile(module, dynamic=False)
            for name, module in (("teacher", self.teacher), ("student", self.student))
        }

    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor,
        masks: Tensor,
        sub_network: SubNetwork,
        teacher_temperature: float,
        predict_masked_patches: bool = True,
        return_statistics: bool = False,
        masked_patches: Tensor | None = None,
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
            masked_patches: `masks.flatten().nonzero().squeeze(1)`. Give it if the masks were made on the host: to find
                it on a GPU, the host must wait for that.
            freeze_backbone: Whether only the heads learn: the backbone's gradients are then 0.
        """
        if masked_patches is None:
            masked_patches = masks.flatten().nonzero().squeeze(1)
        if not predict_masked_patches:
            # still given to the students: every parameter then takes part in every step, as DDP wants it
            masks, masked_patches = torch.zeros_like(masks), masked_patches[:0]
        with torch.no_grad():
            crops = _Crops(global_crops, local_crops, masks, masked_patches)
            teacher = self._global_tokens(self._compiled.get("teacher", self.teacher), crops, masks=None)
        terms, statistics = {}, {}

        def loss(gradients: GradientSums, global_crops: Tensor, local_crops: Tensor) -> Tensor:
            crops = _Crops(global_crops, local_crops, masks, masked_patches)
            head_losses = HeadLosses(
                self.config,
                self.teacher_head,
                self.student_head,
                teacher,
                crops.patch_weights,
                len(local_crops) // crops.num_images,
                teacher_temperature,
                gradients,
            )
            if return_statistics:
                statistics.update(head_losses.statistics())
            students = [self._compiled.get("student", self.student)]
            if self.config.intact_weight < 1:
                students.append(self.student.sliced(sub_network))
                gradients.put_on_leaves(students[-1])
            if freeze_backbone:
                students = [torch.no_grad()(student.__call__) for student in students]
            koleo_weight = self.config.koleo_weight / len(students)
            total = sum(
                self._student_loss(student, crops, head_losses, gradients, koleo_weight, is_elastic=index > 0)
                for index, student in enumerate(students)
            )
            head_losses.finish()
            terms.update(head_losses.terms)
            return total

        parameters = [*self.student.parameters(), *self.student_head.parameters()]
        total = differentiated(loss, [global_crops, local_crops], parameters)
        return PoaForPreTrainingOutput(total, terms, teacher[: len(global_crops)], statistics)

    def _student_loss(
        self,
        backbone,
        crops: _Crops,
        head_losses: HeadLosses,
        gradients: GradientSums,
        koleo_weight: float,
        is_elastic: bool,
    ) -> Tensor:
        """One kind of crops after the other, so that the activations of one alone exist at a time."""
        tokens = gradients.leaf(self._global_tokens(backbone, crops, crops.masks))
        heads = self.student_head.sliced(tokens.shape[-1])
        for head in heads:
            gradients.put_on_leaves(head)
        total = head_losses.global_crops(heads, tokens, is_elastic)
        if koleo_weight:
            spread = koleo_weight * sum(map(koleo, tokens[: len(crops.global_)].chunk(2)))
            gradients.add([spread])
            spread = spread.detach()
            total = total + spread
            head_losses.terms["koleo_loss"] = head_losses.terms.get("koleo_loss", 0) + spread / 2
        gradients.pass_on(tokens)
        if len(crops.local):
            tokens = gradients.leaf(self._local_tokens(backbone, crops))
            total = total + head_losses.local_crops(heads, tokens, is_elastic)
            gradients.pass_on(tokens)
        return total

    def _global_tokens(self, backbone, crops: _Crops, masks: Tensor | None) -> Tensor:
        """Image features of the global crops and features of their masked patches (2B + M, D); `backbone` is a model or
        its slices, `masks` what is hidden from it."""
        features, patches = self.student.image_tokens(backbone(crops.global_, bool_masked_pos=masks))
        view, patch = crops.masked_patches // patches.shape[1], crops.masked_patches % patches.shape[1]
        return torch.cat([features, patches[view, patch]])

    def _local_tokens(self, backbone, crops: _Crops) -> Tensor:
        """Image features of the local crops (V * B, D)."""
        features, _ = self.student.image_tokens(backbone(crops.local))
        return features


@dataclass
class _Crops:
    """A batch as `PoaForPreTraining.forward` takes it."""

    global_: Tensor
    local: Tensor
    masks: Tensor
    masked_patches: Tensor

    @property
    def num_images(self) -> int:
        return len(self.global_) // 2

    @property
    def patch_weights(self) -> Tensor:
        """What each masked patch counts (M,): those of an image count as one together, whatever their number."""
        return (1 / self.masks.sum(dim=1).clamp(min=1))[self.masked_patches // self.masks.shape[1]]


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
