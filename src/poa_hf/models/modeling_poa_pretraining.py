"""Teacher, intact student and elastic student as one model, whose forward pass gives the loss of a training step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.initialization import no_init_weights
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..objective.branches import Batch, Branch, ImageTokens
from ..objective.distillation import Distillation, DistillationSpec, distillation
from ..objective.early_gradients import GradientSums, differentiated
from ..objective.feature_matching import FeatureProjections, TeacherFeatures
from ..objective.heads import ProjectionHeads, Prototypes, autocast_dtype
from ..objective.losses import several_processes
from ..objective.objective import LossWeights, StepDetails, poa_loss
from ..objective.row_functions import PLAIN
from ..sub_network import SubNetwork
from .compiled_blocks import BlockCompiler
from .configuration_poa import PoaConfig
from .elastic_model import ElasticModelMixin
from .moving_average import follow


@dataclass
class PoaForPreTrainingOutput(ModelOutput):
    """The loss of a step and its parts.

    Attributes:
        loss: The total that is differentiated, a scalar.
        losses: Scalars that the authors log, by their names, detached: `dino_*` (cross-view) and `ibot_*` (masked
            patches) mix both students by lambda, `distill_*` (same-view) belongs to the elastic student only. `ibot_*`
            and `koleo_loss` are half of what enters the total.
        teacher_features: The teacher's features of the global crops (2B, D), detached, for monitoring.
        statistics: On request, scalars from 0 to 1 by head: `teacher_entropy_*` and `prototype_use_*`.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    teacher_features: Tensor | None = None
    statistics: dict[str, Tensor] | None = None


class PoaForPreTraining(PreTrainedModel):
    """Teacher, students and their projection heads; the forward pass returns the loss of one training step.

    The elastic student has no weights of its own: it is a slice of the student. The teacher and its heads start as
    copies of the student's and follow them by `update_teacher`; they never get gradients.

    Attributes:
        student: The intact student, a full-size elastic model.
        teacher: The moving average of the student, which is evaluated and published.
        student_head: The students' projection heads.
        teacher_head: The teacher's projection heads.
        distillation: What learns beside the students while they learn from a model of another's (`distil_from`); None
            while they learn from the teacher.

    Example:
        >>> from transformers import set_seed
        >>> set_seed(0)
        >>> backbone = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}
        >>> model = PoaForPreTraining(PoaConfig(backbone_config=backbone, num_prototypes=[64], head_hidden_size=32))
        >>> global_crops, local_crops = torch.rand(2 * 4, 3, 32, 32), torch.rand(6 * 4, 3, 16, 16)  # of 4 images
        >>> masks = torch.rand(2 * 4, 4) < 0.3  # of 2 x 2 patches
        >>> size = model.config.backbone_config.space.sub_network_at(step=0)
        >>> output = model(global_crops, local_crops, masks, size, teacher_temperature=0.07)
        >>> output.loss.backward()
        >>> model.update_teacher(momentum=0.99)
        >>> sorted(output.losses)[:2]
        ['dino_global_crops_loss_0', 'dino_local_crops_loss_0']
    """

    config_class = PoaConfig
    config: PoaConfig
    student: ElasticModelMixin
    teacher: ElasticModelMixin
    student_head: ProjectionHeads
    teacher_head: ProjectionHeads
    distillation: Distillation | None
    base_model_prefix = "student"
    main_input_name = "global_crops"
    input_modalities = ("image",)  # type: ignore[assignment]  # a tuple, as in models of transformers
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: PoaConfig):
        config.complete()
        super().__init__(config)
        self._compiler: BlockCompiler | None = None
        # Initialising at random takes most of the time, so the student is initialised once, by `post_init`, and copied.
        with no_init_weights():
            self.student = AutoModel.from_config(config.backbone_config, trust_remote_code=False)
            teacher = AutoModel.from_config(config.backbone_config, trust_remote_code=False)
            self.register_module("teacher", None)  # keeps its place among the parameters
            self.student_head, teacher_head = self._new_heads(), self._new_heads()
            self.distillation = None
            if config.distillation is not None:
                self.distillation = self._new_distillation(DistillationSpec.read(config.distillation))
        self.post_init()
        self.teacher, self.teacher_head = teacher, teacher_head
        self._start_averages()
        self.train(self.training)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model, or start from an elastic backbone: a teacher that was not saved is a copy of the student."""
        with_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, info = loaded
        for name in ("teacher", "teacher_head"):
            average, source = getattr(model, name), getattr(model, name.replace("teacher", "student"))
            if info["missing_keys"].issuperset(f"{name}.{key}" for key, _ in average.named_parameters()):
                average.load_state_dict(source.state_dict())
        return (model, info) if with_info else model

    def init_weights(self) -> None:
        """Initialise the students at random, and the teacher as their copy."""
        super().init_weights()
        if self.teacher is not None:
            self._start_averages()

    def _start_averages(self) -> None:
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher_head.load_state_dict(self.student_head.state_dict())
        if self.distillation is not None:
            self.distillation.start_averages()

    def _set_gradient_checkpointing(  # type: ignore[override]  # versions differ in further options
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint, **options: Any
    ) -> None:
        # `forward` differentiates within, which reentrant checkpoints do not allow
        if getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            gradient_checkpointing_func = functools.partial(gradient_checkpointing_func, use_reentrant=False)
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **options)

    @property
    def _head_sizes(self) -> tuple[int, int, int, list[int]]:
        config = self.config
        return config.head_num_layers, config.head_hidden_size, config.head_bottleneck_size, config.num_prototypes

    def _new_heads(self) -> ProjectionHeads:
        return ProjectionHeads(self.config.backbone_config.hidden_size, *self._head_sizes)

    def _new_distillation(self, spec: DistillationSpec) -> Distillation:
        return distillation(spec, self.config.backbone_config.hidden_size, self._head_sizes)

    def distil_from(self, spec: DistillationSpec | None) -> None:
        """Let the students learn from a frozen model of another's, whose features are then given to `forward`.

        The student's moving average stays what is evaluated and published.

        Args:
            spec: The features of that model, and how they are matched; None to learn from the moving average again.

        Raises:
            ValueError: If the configuration has an elastic teacher, or weights losses that there are not.
        """
        fields = None if spec is None else dataclasses.asdict(spec)
        self.config.check_distillation(fields)
        if fields == self.config.distillation:
            return
        self.config.distillation = fields
        self.student_head.requires_grad_(True)
        self.distillation = None
        if spec is not None:
            self.distillation = self._new_distillation(spec)
            self.distillation.apply(self._init_weights)
            self.distillation.start_averages()
            self.distillation.to(self.device)
        self.train(self.training)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            initialization.trunc_normal_(module.weight, std=self.config.initializer_range)
            initialization.zeros_(module.bias)
        elif isinstance(module, Prototypes):
            initialization.ones_(module.weight_g)
            # as in nn.Linear, which the authors use for their last layer
            initialization.kaiming_uniform_(module.weight_v, a=5**0.5)

    def train(self, mode: bool = True) -> PoaForPreTraining:
        """Set the students' mode; the teacher stays in evaluation mode and without gradients."""
        super().train(mode)
        self.teacher.eval()
        # set here and not only once, as loading a checkpoint replaces the parameters
        for average, _ in self._averaged():
            average.requires_grad_(False)
        if self._student_heads is not self.student_head:  # it has no part in the loss
            self.student_head.requires_grad_(False)
        return self

    @property
    def _student_heads(self) -> ProjectionHeads | FeatureProjections:
        return self.student_head if self.distillation is None else self.distillation.student_heads(self.student_head)

    def _averaged(self, heads_only: bool = False) -> list[tuple[nn.Module, nn.Module]]:
        """Return the pairs of modules of which the first is a moving average of the second."""
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.teacher_head, self.student_head)]
        if not heads_only:
            pairs.append((self.teacher, self.student))
        return pairs if self.distillation is None else [*pairs, *self.distillation.averaged()]

    def update_teacher(self, momentum: float, skip: Tensor | None = None, heads_only: bool = False) -> None:
        """Set the teacher to momentum * teacher + (1 - momentum) * student.

        Args:
            momentum: From 0 (a copy of the student) to 1 (no change).
            skip: A bool scalar on the device; if it is true, nothing changes. The host does not wait for it.
            heads_only: Whether to leave the backbone as it is.
        """
        follow(self._averaged(heads_only), momentum, skip)

    def compile_blocks(self, compiler: BlockCompiler | None) -> None:
        """Compute losses with compiled blocks and loss functions from now on; with None, without.

        Only the passes of a training step are compiled: `teacher`, `student` and what is extracted stay as they are.
        """
        self._compiler = compiler

    @property
    def compiles_blocks(self) -> bool:
        """Whether losses are computed with compiled blocks."""
        return self._compiler is not None

    @can_return_tuple
    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor,
        masks: Tensor,
        sub_network: SubNetwork | Sequence[SubNetwork],
        teacher_temperature: float,
        predict_masked_patches: bool = True,
        return_statistics: bool = False,
        masked_patches: Tensor | None = None,
        freeze_backbone: bool = False,
        teacher_features: TeacherFeatures | None = None,
        pack_crops: bool = False,
        gram_features: Tensor | None = None,
    ) -> PoaForPreTrainingOutput:
        """Return the loss of one batch of B images.

        The gradients are computed together with the loss (`objective.poa_loss`), but for those of the last pass through
        a backbone, which `loss.backward()` computes and adds.

        Args:
            global_crops: (2B, C, H, W), the first views of all images, then the second ones.
            local_crops: (V * B, C, h, w), one view of all images after the other; V may be 0.
            masks: bool (2B, tokens), the patches of the global crops that are hidden from the students.
            sub_network: The elastic student of this step, a member of `config.backbone_config.space`; or several, which
                share the elastic student's part of the loss equally; or none (an empty tuple), so that the intact
                student has all of the loss.
            teacher_temperature: Softmax temperature of the teacher's targets.
            predict_masked_patches: Whether patches are hidden and predicted.
            return_statistics: Whether to return the teacher's entropy and prototype use of each head.
            masked_patches: `masks.flatten().nonzero().squeeze(1)`. Pass it if the masks were made on the host, as
                computing it on a GPU makes the host wait.
            freeze_backbone: Whether only the heads learn; the backbone's gradients are then 0.
            teacher_features: What the model that the students are distilled from computes of the global crops; None
                without `distillation`.
            pack_crops: Whether a student computes its global and local crops in one pass, which launches a fifth fewer
                kernels in a step of a ViT-L and holds the activations of both. Takes a backbone whose configuration
                `packs_crops`.
            gram_features: What the Gram teacher computes of the patches of the global crops (2B, tokens, D), for a
                `gram_weight` above 0.

        Returns:
            The loss, its parts by name, and the teacher's features of the global crops.
        """
        if masked_patches is None:
            masked_patches = masks.flatten().nonzero().squeeze(1)
        if not predict_masked_patches:
            # empty masks instead of none: every parameter then takes part in every step, as DDP requires
            masks, masked_patches = torch.zeros_like(masks), masked_patches[:0]
        if (teacher_features is None) != (self.distillation is None):
            raise ValueError("teacher_features are given if, and only if, the model learns from another (distil_from).")
        config, student_heads = self.config, self._student_heads
        if (gram_features is None) == (config.gram_weight > 0):
            raise ValueError("gram_features are given if, and only if, the configuration has a gram_weight above 0.")
        given = sub_network if isinstance(sub_network, tuple | list) else (sub_network,)
        elastic_sizes = tuple(map(config.backbone_config.space.resolve, given))
        if config.intact_weight == 1:
            elastic_sizes = ()
        # The weights of each branch are rounded once for all its passes; autocast would do so in every layer and pass.
        dtype = autocast_dtype(global_crops.device)
        functions = PLAIN if self._compiler is None else self._compiler.row_functions()

        def loss(gradients: GradientSums, global_crops: Tensor, local_crops: Tensor) -> tuple[Tensor, StepDetails]:
            def student(size: SubNetwork | None) -> Branch:
                backbone = gradients.on_leaves(self.student.sliced(size, dtype, self._compiler))
                heads = gradients.on_leaves(student_heads.sliced(self.student.feature_size(size), dtype))
                return Branch(
                    self._features_of(backbone, freeze_backbone),
                    heads,
                    self.student_head.prototypes,
                    self._packed_features_of(backbone, freeze_backbone) if pack_crops else None,
                    functools.partial(gradients.start_last_pass, backbone),
                )

            batch = Batch(global_crops, local_crops, masks, masked_patches, gram_features)
            students = student(None), [functools.partial(student, size) for size in elastic_sizes]
            weights = LossWeights(
                config.intact_weight,
                config.koleo_weight,
                config.student_temperature,
                config.gram_weight,
                config.same_view_weight,
            )
            if self.distillation is not None and teacher_features is not None:
                return self.distillation.loss(
                    batch,
                    teacher_features,
                    *students,
                    weights,
                    teacher_temperature,
                    gradients,
                    return_statistics,
                    dtype,
                    functions,
                )

            def teacher(size: SubNetwork | None) -> Branch:
                backbone = self.teacher.sliced(size, dtype, self._compiler)
                heads = self.teacher_head.sliced(self.teacher.feature_size(size), dtype)
                return Branch(self._features_of(backbone), heads, self.teacher_head.prototypes)

            own_sizes = elastic_sizes if config.elastic_teacher else ()
            return poa_loss(
                batch,
                teacher(None),
                *students,
                weights,
                teacher_temperature,
                gradients,
                return_statistics,
                functions=functions,
                elastic_teachers=[functools.partial(teacher, size) for size in own_sizes],
            )

        parameters = [parameter for module in self.learning for parameter in module.parameters()]
        # only averages over processes begin before all gradients are complete; it takes a few kernels a layer
        layers = self.student.layers() if several_processes() else []
        total, details = differentiated(loss, [global_crops, local_crops], parameters, layers)
        return PoaForPreTrainingOutput(total, details.terms, details.teacher_features, details.statistics)

    @property
    def learning(self) -> list[nn.Module]:
        """The modules that are trained: the student, its heads, and what learns beside them."""
        modules = [self.student, self.student_head, self.distillation]
        return [
            module for module in modules if module is not None and any(p.requires_grad for p in module.parameters())
        ]

    def _features_of(
        self, backbone: Callable[..., Any], frozen: bool = False
    ) -> Callable[[Tensor, Tensor | None], ImageTokens]:
        """Return what a branch of the objective computes with a whole or sliced backbone."""

        def features(crops: Tensor, masks: Tensor | None) -> ImageTokens:
            with torch.no_grad() if frozen else nullcontext():
                return self.student.image_tokens(backbone(crops, bool_masked_pos=masks))

        return features

    def _packed_features_of(
        self, backbone: Callable[..., Any], frozen: bool = False
    ) -> Callable[[Sequence[Tensor], Sequence[Tensor | None]], list[ImageTokens]]:
        """Return what a branch computes of crops of several resolutions in one pass."""

        def features(crops: Sequence[Tensor], masks: Sequence[Tensor | None]) -> list[ImageTokens]:
            with torch.no_grad() if frozen else nullcontext():
                return [self.student.image_tokens(output) for output in backbone(crops, bool_masked_pos=masks)]

        return features
