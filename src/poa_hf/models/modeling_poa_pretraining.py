"""The three branches (teacher, intact student, elastic student) and the loss that ties them together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.utils import ModelOutput

from ..elastic import SubNetwork
from ..objective.early_gradients import GradientSums, differentiated
from ..objective.head_losses import Head
from ..objective.heads import ProjectionHeads, Prototypes
from ..objective.objective import Batch, Branch, LossWeights, StepDetails, poa_loss
from ..slicing import SlicedModel
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
        config = self.config

        def loss(gradients: GradientSums, global_crops: Tensor, local_crops: Tensor) -> tuple[Tensor, StepDetails]:
            elastic = None
            if config.intact_weight < 1:
                sliced = self.student.sliced(sub_network)
                width = (sliced.plain if isinstance(sliced, SlicedModel) else sliced).config.hidden_size
                heads = [gradients.on_leaves(head) for head in self.student_head.sliced(width)]
                elastic = self._branch(gradients.on_leaves(sliced), heads, freeze_backbone)
            return poa_loss(
                Batch(global_crops, local_crops, masks, masked_patches),
                self._branch(self._compiled.get("teacher", self.teacher), self.teacher_head),
                self._branch(self._compiled.get("student", self.student), self.student_head, freeze_backbone),
                elastic,
                LossWeights(config.intact_weight, config.koleo_weight, config.student_temperature),
                teacher_temperature,
                gradients,
                return_statistics,
            )

        parameters = [*self.student.parameters(), *self.student_head.parameters()]
        total, details = differentiated(loss, [global_crops, local_crops], parameters)
        return PoaForPreTrainingOutput(total, details.terms, details.teacher_features, details.statistics)

    def _branch(self, backbone: Callable[..., ModelOutput], heads: Iterable[Head], frozen: bool = False) -> Branch:
        """A model, compiled or not, or the slices of one, and its heads as the objective takes them."""

        def features(crops: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
            with torch.no_grad() if frozen else nullcontext():
                return self.student.image_tokens(backbone(crops, bool_masked_pos=masks))

        return Branch(features, list(heads))


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
