"""Scores of a backbone's units by which they can be ordered: what is differentiated, and how it is added up.

Each objective is read in one pass over images. For each image (or crop), unit and place where the unit is read, t is
the sum over positions of activation times gradient: the change of the objective without the unit, to first order.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, normalize, softmax

from poa_hf import PoaForPreTraining, PoaTrainingArguments
from poa_hf.data.loader import PretrainingLoader
from poa_hf.models.unit_groups import UnitGroup
from poa_hf.training.preparation import coloured_crops

# By the name of a group: one number per unit.
Scores = dict[str, Tensor]
# What is added up, by name: mean |t|, mean t^2, |mean t|, squared gradients of weights, size of activations, variance.
REDUCTIONS = ("absolute", "squared", "signed", "weights", "activations", "variance")
BATCH = 32


class Reader:
    """Adds up scores of the passes and gradients that are computed within `reading`."""

    def __init__(self, backbone: nn.Module, groups: list[UnitGroup]):
        self.backbone, self.groups = backbone, groups
        zero = {group.name: torch.zeros(group.count, dtype=torch.float64) for group in groups}
        self.totals = {reduction: copy.deepcopy(zero) for reduction in REDUCTIONS}
        self._rows = 0

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        modules = dict(self.backbone.named_modules())
        handles = [self.backbone.register_forward_pre_hook(self._count_rows)]
        for group in self.groups:
            for name in group.inputs_of:
                handles.append(modules[name].register_forward_pre_hook(self._input_hook(group)))
            for name in group.outputs_of:
                handles.append(modules[name].register_forward_hook(self._output_hook(group)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count_rows(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._rows = len(inputs[0])

    def _input_hook(self, group: UnitGroup) -> Callable[..., None]:
        return lambda module, inputs: self._read(group, inputs[0])

    def _output_hook(self, group: UnitGroup) -> Callable[..., None]:
        return lambda module, inputs, output: self._read(group, output)

    def _read(self, group: UnitGroup, activation: Tensor) -> None:
        """Add what the activations say now, and what their gradient says once it is there."""
        rows, values = self._rows, activation.detach()
        last = values.movedim(1, -1) if values.dim() == 4 else values
        flat = last.reshape(-1, last.shape[-1])
        self._add("activations", group, flat.square().mean(dim=0).sqrt()[None])
        self._add("variance", group, flat.var(dim=0)[None])
        if activation.requires_grad:
            activation.register_hook(lambda gradient: self._add_changes(group, values * gradient, rows))

    def _add_changes(self, group: UnitGroup, changes: Tensor, rows: int) -> None:
        if changes.dim() == 4:
            changes = changes.movedim(1, -1)
        per_unit = self._per_unit(group, changes.reshape(rows, -1, changes.shape[-1]).sum(dim=1))  # (rows, count)
        self.totals["absolute"][group.name] += per_unit.abs().sum(dim=0)
        self.totals["squared"][group.name] += per_unit.square().sum(dim=0)
        self.totals["signed"][group.name] += per_unit.sum(dim=0)

    def add_weight_gradients(self) -> None:
        """Add each unit's mean squared gradient of its weights, which the batch's backward pass has left there."""
        gradients = {name: weight.grad for name, weight in self.backbone.named_parameters() if weight.grad is not None}
        for group, of_units in self._weights(gradients):
            self.totals["weights"][group.name] += of_units.square().mean(dim=1).double()

    def magnitudes(self) -> Scores:
        """Return the lengths of the units' weights."""
        weights = {name: weight.detach() for name, weight in self.backbone.named_parameters()}
        squares = {group.name: torch.zeros(group.count) for group in self.groups}
        for group, of_units in self._weights(weights):
            squares[group.name] += of_units.square().sum(dim=1)
        return {name: square.sqrt() for name, square in squares.items()}

    def readers_weights(self) -> Scores:
        """Return the lengths of the weights that read hidden units and heads, for activation times weight."""
        modules = dict(self.backbone.named_modules())
        lengths = {}
        for group in self.groups:
            for name in group.inputs_of:
                weight = modules[name].weight.detach().transpose(0, 1).flatten(1)  # (channels, ...)
                lengths[group.name] = weight.norm(dim=1).view(group.count, -1).sum(dim=1)
        return lengths

    def _weights(self, tensors: dict[str, Tensor]) -> Iterator[tuple[UnitGroup, Tensor]]:
        for group in self.groups:
            for name, axis in group.parameters(tensors):
                moved = tensors[name].movedim(axis.axis, 0)
                entries = (axis.entries or group.entries, *moved.shape[1:])
                by_unit = moved.reshape(axis.copies, group.count, *entries).transpose(0, 1)
                yield group, by_unit.reshape(group.count, -1)

    def _add(self, reduction: str, group: UnitGroup, values: Tensor) -> None:
        self.totals[reduction][group.name] += self._per_unit(group, values).sum(dim=0)

    @staticmethod
    def _per_unit(group: UnitGroup, values: Tensor) -> Tensor:
        return values.double().view(len(values), -1, group.count, group.entries).sum(dim=(1, 3))


def whole_image_scores(
    model: PoaForPreTraining, pixels: Tensor, counts: list[int], seed: int, patches: bool = False, pairs: bool = False
) -> dict[int, dict[str, Scores]]:
    """Differentiate the features of whole images, of length 1, and read scores after so many images.

    Args:
        model: The model.
        pixels: (N, C, H, W), normalised.
        counts: Numbers of images after which the scores are returned.
        seed: Of the directions.
        patches: Whether patches' features count as much as the image's.
        pairs: Whether an image's direction is the difference between the features of two other images, so that it is
            its similarity to them that is differentiated, instead of a random direction.
    """
    backbone = model.teacher
    reader, generator, found = Reader(backbone, backbone.unit_groups()), torch.Generator().manual_seed(seed), {}
    for start in range(0, max(counts), BATCH):
        part = pixels[start : start + BATCH].clone().requires_grad_()
        with reader.reading():
            images, tokens = backbone.image_tokens(backbone(part))
        images = normalize(images, dim=-1)
        directions = torch.randn(images.shape, generator=generator)
        if pairs:
            others = images.detach()
            shift = int(torch.randint(1, len(part) - 1, (), generator=generator))
            further = int(torch.randint(shift + 1, len(part), (), generator=generator))
            directions = others.roll(shift, dims=0) - others.roll(further, dims=0)
        objective = (images * directions).sum()
        if patches:
            tokens = normalize(tokens, dim=-1)
            noise = torch.randn(tokens.shape, generator=generator)
            objective = objective + (tokens * noise).sum() / tokens.shape[1] ** 0.5
        objective.backward()
        backbone.zero_grad()
        if start + BATCH in counts:
            found[start + BATCH] = copy.deepcopy(reader.totals)
    return found


def crop_scores(
    model: PoaForPreTraining, objective: str, dataset: object, args: PoaTrainingArguments, counts: list[int], seed: int
) -> dict[int, dict[str, Scores]]:
    """Differentiate an objective of augmented crops, as in training, and read scores after so many images.

    Args:
        model: The model.
        objective: "loss" (the self-supervised loss, with the model's heads), "agreement" (SnapViT's: the same with
            features instead of heads), or "contrast" (InfoNCE of features at a temperature of 0.1).
        dataset: The images.
        args: How crops are cut.
        counts: Numbers of images after which the scores are returned.
        seed: Of the sample and crops.
    """
    model = copy.deepcopy(model).train()
    model.student.load_state_dict(model.teacher.state_dict())
    student, config = model.student, model.config.backbone_config
    reader, found, seen = Reader(student, student.unit_groups()), {}, 0
    grid = (args.global_crop_size // config.patch_grid,) * 2
    for batch in PretrainingLoader(dataset, args, batch_size=BATCH, mask_grid=grid, seed=seed):
        crops = coloured_crops(batch, args, torch.device("cpu"))
        with reader.reading():
            if objective == "loss":
                masked = batch["masks"].flatten().nonzero().squeeze(1)
                size, temperature = config.space.full, args.teacher_temperature
                model(crops["global"], crops["local"], batch["masks"], size, temperature, masked_patches=masked)
            else:
                views = [crops["global"], *([crops["local"]] if len(crops["local"]) else [])]
                features = [normalize(student.image_tokens(student(view))[0], dim=-1) for view in views]
                value = _agreement(features) if objective == "agreement" else _contrast(features)
                value.backward()
        if objective != "loss":
            reader.add_weight_gradients()
        model.zero_grad()
        seen += BATCH
        if seen in counts:
            found[seen] = copy.deepcopy(reader.totals)
        if seen >= max(counts):
            return found
    return found


def _views(features: list[Tensor]) -> list[Tensor]:
    return [view for kind in features for view in kind.split(BATCH)]


def _agreement(features: list[Tensor]) -> Tensor:
    """The sum over images and pairs of a global view with another one of their cross-entropy, without temperature."""
    views = _views(features)
    pairs = [(one, other) for one in (0, 1) for other in range(len(views)) if one != other]
    targets = [softmax(view.detach(), dim=-1) for view in views[:2]]
    return torch.stack([-(targets[a] * log_softmax(views[b], dim=-1)).sum() for a, b in pairs]).sum()


def _contrast(features: list[Tensor]) -> Tensor:
    """The sum over images and pairs of views of the cross-entropy of finding the image among the batch's."""
    views, value = _views(features), torch.zeros(())
    for one in (0, 1):
        for other in range(len(views)):
            if one != other:
                similarities = views[other] @ views[one].T / 0.1  # (B, B)
                value = value + cross_entropy(similarities, torch.arange(BATCH), reduction="sum")
    return value
