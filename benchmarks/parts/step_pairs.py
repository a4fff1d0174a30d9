"""Both ways of each part of a training step, with and without a saving, for step_parts.py."""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from poa_hf import PoaConfig, PoaForPreTraining, PoaViTConfig
from poa_hf.data.masks import block_masks
from poa_hf.training.optimization import parameter_groups

from .plain_losses import Tokens, all_heads_at_once, ours

PRESETS = {
    "cpu": dict(
        backbone=dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=112),
        heads=dict(num_prototypes=[1024, 2048], head_hidden_size=512),
        batch=16, sides=(112, 48), num_local=8, size="192x6",
    ),
    "tiny": dict(
        backbone=dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=32,
                      min_num_hidden_layers=1, image_size=32),
        heads=dict(num_prototypes=[64, 128], head_hidden_size=64, head_bottleneck_size=32),
        batch=4, sides=(32, 16), num_local=8, size="32x1",
    ),
    # both ways of all parts fit into 80 GB
    "vit_large": dict(backbone={}, heads={}, batch=16, sides=(224, 96), num_local=8, size="small"),
}  # fmt: skip
DROP_RATE = 0.2
MASK_RATIO = (0.1, 0.5)
MOMENTUM = 0.992
BF16_TOLERANCE = 0.2
RESIDUAL = "poa_hf.models.modeling_poa_vit.add_residual"


class Pair(NamedTuple):
    """Two ways to compute something. Each returns its results, which differ by no more than `tolerance`, relative to
    the largest entry; None: not compared, as random choices differ."""

    saving: str
    instead_of: str
    without: Callable[[], list[Tensor]]
    with_: Callable[[], list[Tensor]]
    tolerance: float | None = 1e-2


class Parts:
    """A model, a batch, and both ways of each part of a step."""

    def __init__(self, preset: str, batch: int | None, bf16: bool, device: torch.device):
        preset = PRESETS[preset]
        self.device, self.bf16, self.batch = device, bf16, batch or preset["batch"]
        self.sides, self.num_local = preset["sides"], preset["num_local"]
        torch.manual_seed(0)
        # LayerScale as after training, so that the blocks count in what is compared
        self.model, self.dropping = (
            PoaForPreTraining(
                PoaConfig(
                    backbone_config=PoaViTConfig(drop_path_rate=rate, layerscale_value=0.1, **preset["backbone"]),
                    **preset["heads"],
                )
            ).to(device).train()
            for rate in (0.0, DROP_RATE)
        )  # fmt: skip
        space = self.model.config.backbone_config.space
        self.full, self.size = space.full, space.resolve(preset["size"])
        self.global_crops, self.local_crops = (
            torch.randn(count * self.batch, 3, side, side, device=device)
            for count, side in zip((2, self.num_local), self.sides, strict=True)
        )
        grid = (self.sides[0] // self.model.config.backbone_config.patch_size,) * 2
        masks = torch.from_numpy(block_masks(2 * self.batch, grid, np.random.default_rng(0), MASK_RATIO))
        places = masks.flatten().nonzero().squeeze(1)
        weights = (1 / masks.sum(dim=1).clamp(min=1))[places // masks.shape[1]]
        self.masks, self.places, self.patch_weights = (tensor.to(device) for tensor in (masks, places, weights))
        # the rows of DINOv2's buffer, which holds as many as the masks' shares allow at most
        edges = np.linspace(*MASK_RATIO, self.batch + 1)[1:]
        self.most_masked = int((masks.shape[1] * edges).astype(int).sum())
        self._gradients: dict[tuple, Tensor] = {}

    def pairs(self) -> Iterator[Pair]:
        student, size = self.model.student, self.size
        dropping = self.dropping.student
        yield Pair(
            f"images dropped ({DROP_RATE}) left out", "computed, then zeroed",
            lambda: self.trained(dropping, residual=add_zeroed_residual), lambda: self.trained(dropping),
        )  # fmt: skip
        yield Pair("teacher: global crops", "all crops", lambda: self.teacher(local=True), self.teacher)
        yield from self.head_pairs()
        yield Pair(
            "one pass per size of crops", "one per crop",
            lambda: self.trained(student, per_crop=True), lambda: self.trained(student),
        )  # fmt: skip
        yield Pair(
            "slices once per step", "once per call",
            lambda: self.trained(student, lambda *args, **masks: student(*args, sub_network=size, **masks)),
            lambda: self.trained(student, student.sliced(size)),
        )  # fmt: skip
        yield from self.update_pairs()
        recomputing, eager = copy.deepcopy(student), copy.deepcopy(student)
        recomputing.activation_checkpointing_enable()
        eager.set_attn_implementation("eager")
        yield Pair("sdpa", "eager attention", lambda: self.trained(eager), lambda: self.trained(student))
        yield Pair(
            "activations computed again", "kept", lambda: self.trained(student), lambda: self.trained(recomputing)
        )
        yield Pair(
            "bfloat16 autocast", "float32",
            lambda: self.trained(student, bf16=False), lambda: self.trained(student, bf16=True), BF16_TOLERANCE,
        )  # fmt: skip
        yield Pair(
            "activations of one pass at a time", "of all passes",
            lambda: self.differentiated(self.kept_loss), lambda: self.differentiated(self.loss),
        )  # fmt: skip
        loops, fused = adamw(self.dropping, fused=False, foreach=False), adamw(self.dropping, fused=True)
        yield Pair(
            "the whole step", "none of these",
            lambda: self.plain_step(self.dropping, loops), lambda: self.step(self.dropping, fused), tolerance=None,
        )  # fmt: skip

    # -- backbones

    def autocast(self, bf16: bool | None = None):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16 if bf16 is None else bf16)

    def features(self, backbone, local_crops: Tensor, masks: Tensor | None = None, per_crop=False) -> Tokens:
        def passes(crops: Tensor, masks: Tensor | None = None):
            rows = self.batch if per_crop else max(1, len(crops))
            for start in range(0, len(crops), rows):
                part = slice(start, start + rows)
                output = backbone(crops[part], **({} if masks is None else {"bool_masked_pos": masks[part]}))
                yield self.model.student.image_tokens(output)

        global_, patches = (torch.cat(outputs) for outputs in zip(*passes(self.global_crops, masks), strict=True))
        local = torch.cat([global_[:0], *(features for features, _ in passes(local_crops))])
        return Tokens(global_, local, patches.flatten(0, 1)[self.places])

    @torch.no_grad()
    def teacher(self, backbone=None, local=False) -> list[Tensor]:
        """The features that the loss reads."""
        local_crops = self.local_crops if local else self.local_crops[:0]
        with self.autocast():
            features = self.features(self.model.teacher if backbone is None else backbone, local_crops)
        return [features.global_, features.masked]

    def trained(self, student, backbone=None, per_crop=False, bf16=None, residual=None) -> list[Tensor]:
        """Forward and backward pass of all crops: features, and gradients of the student."""
        torch.manual_seed(0)  # the same images are dropped
        with patch(RESIDUAL, residual) if residual else nullcontext():
            with self.autocast(bf16):
                backbone = student if backbone is None else backbone
                features = self.features(backbone, self.local_crops, self.masks, per_crop)
            torch.autograd.backward(features, [self.gradient(tensor) for tensor in features])
        gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
        student.zero_grad()
        return [*(tensor.detach() for tensor in features), *gradients]

    def gradient(self, tensor: Tensor) -> Tensor:
        key = (tensor.shape, tensor.dtype)
        if key not in self._gradients:
            generator = torch.Generator(self.device).manual_seed(0)
            self._gradients[key] = torch.randn(tensor.shape, generator=generator, device=self.device).to(tensor.dtype)
        return self._gradients[key]

    # -- heads

    def head_pairs(self) -> Iterator[Pair]:
        """One student's heads: class tokens, and the patches of the global crops that are given."""
        model = self.model
        width, count = self.full.width, (2 + self.num_local) * self.batch
        class_tokens = torch.randn(count, width, device=self.device)
        patches = torch.randn(self.masks.numel(), width, device=self.device)

        def heads(places: Tensor, weights: Tensor) -> list[Tensor]:
            tokens = torch.cat([class_tokens, patches[places]])
            weights = torch.cat([weights.new_ones(count), weights])
            losses = []
            for head in model.student_head:
                with self.autocast():
                    losses.append((weights * head(tokens).float().logsumexp(dim=1)).sum())
                losses[-1].backward()
            gradients = [parameter.grad for parameter in model.student_head.parameters()]
            model.student_head.zero_grad()
            return [torch.stack(losses).detach(), *gradients]

        padding = (0, self.most_masked - len(self.places))
        padded = [nn.functional.pad(tensor, padding) for tensor in (self.places, self.patch_weights)]
        every = torch.arange(len(patches), device=self.device)
        all_weights = torch.zeros(len(patches), device=self.device).index_put_((self.places,), self.patch_weights)
        for name, rows in (("padded to the most possible", padded), ("all patches", (every, all_weights))):
            yield Pair(
                "heads: masked patches alone", name,
                lambda rows=rows: heads(*rows), lambda: heads(self.places, self.patch_weights),
            )  # fmt: skip

    # -- optimizer and moving average

    def update_pairs(self) -> Iterator[Pair]:
        for kind, foreach in (("foreach", True), ("for-loop", False)):
            yield Pair(
                "AdamW: fused", kind,
                adamw_step(self.model, fused=False, foreach=foreach), adamw_step(self.model, fused=True),
            )  # fmt: skip
        student = [*self.model.student.parameters(), *self.model.student_head.parameters()]
        teacher = [*self.model.teacher.parameters(), *self.model.teacher_head.parameters()]
        teacher_copy = [parameter.clone() for parameter in teacher]
        yield Pair(
            "moving average: foreach", "for-loop",
            lambda: average_by_loop(teacher_copy, student),
            lambda: self.model.update_teacher(MOMENTUM) or teacher,
        )  # fmt: skip

    # -- whole steps

    def loss(self, model) -> Tensor:
        with self.autocast():
            return model(
                self.global_crops, self.local_crops, self.masks, self.size, 0.07, masked_patches=self.places
            ).loss

    def kept_loss(self, model) -> Tensor:
        """The same heads and losses on features of all passes."""
        with self.autocast():
            with torch.no_grad():
                teacher = self.features(model.teacher, self.local_crops[:0])
            students = [
                self.features(backbone, self.local_crops, self.masks)
                for backbone in (model.student, model.student.sliced(self.size))
            ]
            return ours(model, teacher, *students, self.patch_weights, 0.07)

    def differentiated(self, loss: Callable[[nn.Module], Tensor]) -> list[Tensor]:
        value = loss(self.model)
        value.backward()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.requires_grad]
        self.model.zero_grad()
        return [value.detach(), *gradients]

    def plain_loss(self, model) -> Tensor:
        student = model.student
        with self.autocast():
            with torch.no_grad():
                teacher = self.features(model.teacher, self.local_crops, per_crop=True)
            intact, elastic = (
                self.features(backbone, self.local_crops, self.masks, per_crop=True)
                for backbone in (student, lambda *args, **masks: student(*args, sub_network=self.size, **masks))
            )
            teacher = teacher._replace(local=teacher.local[:0])
            return all_heads_at_once(model, teacher, intact, elastic, self.patch_weights, 0.07)

    def step(self, model, optimizer) -> list[Tensor]:
        loss = self.loss(model)
        optimised(model, loss, optimizer)
        model.update_teacher(MOMENTUM)
        return [loss.detach()]

    def plain_step(self, model, optimizer) -> list[Tensor]:
        with patch(RESIDUAL, add_zeroed_residual):
            loss = self.plain_loss(model)
            optimised(model, loss, optimizer)
        student = [*model.student.parameters(), *model.student_head.parameters()]
        average_by_loop([*model.teacher.parameters(), *model.teacher_head.parameters()], student)
        return [loss.detach()]


def add_zeroed_residual(hidden_states: Tensor, branch: Callable, drop_rate: float) -> Tensor:
    """`add_residual` of the same images, but with the others computed too, as stock Dinov2DropPath does."""
    batch_size = len(hidden_states)
    kept = max(1, int(batch_size * (1 - drop_rate)))
    order = torch.randperm(batch_size, device=hidden_states.device)
    scale = hidden_states.new_zeros(batch_size, 1, 1)
    scale[order[:kept]] = batch_size / kept
    return hidden_states + scale * branch(hidden_states, torch.arange(batch_size, device=hidden_states.device))


def adamw(model: nn.Module, **kind) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameter_groups(model, 0.9, 0.2), lr=1e-5, weight_decay=0.04, **kind)


def adamw_step(model: nn.Module, **kind) -> Callable[[], list[Tensor]]:
    """The optimizer's step on copies of the parameters."""
    optimizer, copies = adamw(model, **kind), []
    for group in optimizer.param_groups:
        group["params"] = [parameter.detach().clone().requires_grad_() for parameter in group["params"]]
        copies += group["params"]
    for parameter in copies:
        parameter.grad = torch.full_like(parameter, 1e-3)
    return lambda: optimizer.step() or copies


def optimised(model: nn.Module, loss: Tensor, optimizer: torch.optim.AdamW) -> None:
    loss.backward()
    for module in (model.student, model.student_head):
        nn.utils.clip_grad_norm_(module.parameters(), 1.5)
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def average_by_loop(teacher: list[Tensor], student: list[Tensor]) -> list[Tensor]:
    for target, source in zip(teacher, student, strict=True):
        target.mul_(MOMENTUM).add_(source, alpha=1 - MOMENTUM)
    return teacher
