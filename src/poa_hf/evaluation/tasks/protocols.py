"""Linear evaluation as the authors of DINOv2 and of POA measure it, for numbers that compare with theirs.

Both train 52 classifiers at once on augmented views of all train images: 13 learning rates, on the class token of the
last block or of four blocks, with the mean of the patches beside it or not. The best one on the test images counts, so
their numbers, and those measured here by their protocol, are a little higher than those of a classifier that was chosen
without the test images.

They differ in the four blocks (DINOv2: the last four; POA: at a quarter, a half and three quarters of the depth, and
the last one) and in the batch (8 processes of 128 or 256 images). Families with stages, such as Swin, give the means of
the maps of their four stages.

Sources: `dinov2/eval/linear.py` of facebookresearch/dinov2; `poa/eval/linear.py`, `poa/models/*.py` (
`get_intermediate_layers`) and `shells/eval/eval_linear.sh` of alipay/POA.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ...ranges import COUNT, Range, check_number
from ..images.layer_features import LayerFeatures
from .task import Options

INITIAL_DEVIATION = 0.01
# For batches of 256 images, and in proportion to the batch size for others.
PROTOCOL_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
PROTOCOL_STEPS = 12_500
INPUTS = tuple(product((1, 4), (False, True)))  # how many layers, and whether the mean of the patches is beside them
VIEWS = Range(0, 1000, whole=True)
USUAL_VIEWS = 10  # of a protocol: 12,500 steps of 1024 images are ten epochs of ImageNet-1K


@dataclass(frozen=True)
class Protocol:
    """What the authors' evaluations differ in.

    Args:
        blocks: Which four blocks of a ViT are read, `last` or `spread`.
        batch_size: Images of one step, of all processes together.
    """

    blocks: str
    batch_size: int


PROTOCOLS = {"poa": Protocol("spread", 2048), "dinov2": Protocol("last", 1024)}


@dataclass(frozen=True)
class LinearOptions(Options):
    """The options of the linear probe.

    Args:
        protocol: `poa` or `dinov2`; None means a probe whose learning rate is chosen on held-out train images.
        linear_augmentation: The number of augmented views of each train image that the probe learns from, one in each
            epoch; 0 means the images as they are. None means 10 for a protocol, and 0 otherwise.
        linear_steps: The steps of a protocol; None means the authors' 12,500.
    """

    protocol: str | None = None
    linear_augmentation: int | None = None
    linear_steps: int | None = None


def num_views(options: LinearOptions) -> int:
    """Return how many augmented views of each train image the probe learns from."""
    if options.linear_augmentation is not None:
        return options.linear_augmentation
    return 0 if options.protocol is None else USUAL_VIEWS


def check_linear(options: LinearOptions) -> None:
    """Raise ValueError for options that are not valid."""
    if options.protocol is not None and options.protocol not in PROTOCOLS:
        raise ValueError(f"{options.protocol!r} is not a protocol: choose from {', '.join(PROTOCOLS)}.")
    if options.linear_augmentation is not None:
        check_number("linear_augmentation", options.linear_augmentation, VIEWS)
    if options.linear_steps is not None:
        check_number("linear_steps", options.linear_steps, COUNT)
        if options.protocol is None:
            raise ValueError("linear_steps belongs to a protocol: give --protocol too, or leave it out.")


@dataclass(frozen=True)
class ProtocolClassifiers:
    """The trained classifiers of a protocol.

    Args:
        weights: For each of `INPUTS`, (D + 1, learning rates, classes), the last row being the bias.
        learning_rates: For 256 images.
    """

    weights: list[Tensor]
    learning_rates: Sequence[float]

    def predictions(self, features: LayerFeatures, chunk_size: int = 4096) -> list[Tensor]:
        """Return for each of `INPUTS` the classes that each learning rate's classifier gives, (N, learning rates).

        Classifiers that diverged give -1, which is no class.
        """
        found: list[list[Tensor]] = [[] for _ in self.weights]
        for index in torch.arange(len(features.columns)).split(chunk_size):
            for parts, inputs, weight in zip(found, _inputs(features.rows(index), weights=self.weights), self.weights,
                                             strict=True):  # fmt: skip
                logits = (inputs @ weight.flatten(1)).view(len(index), *weight.shape[1:])  # (C, R, classes)
                classes = logits.argmax(dim=-1)
                parts.append(classes.where(logits.isfinite().all(dim=-1), -1).cpu())
        return [torch.cat(parts) for parts in found]


def fit_protocol(
    views: Sequence[LayerFeatures],
    labels: Tensor,
    num_classes: int,
    batch_size: int,
    steps: int = PROTOCOL_STEPS,
    learning_rates: Sequence[float] = PROTOCOL_RATES,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> ProtocolClassifiers:
    """Train all classifiers of a protocol on the same batches, by SGD with momentum 0.9 and cosine decay to 0.

    Features are not standardised. Epochs follow one another without a gap, so a batch may be larger than an epoch.

    Args:
        views: Features of the N train images: those of one view for each epoch, again from the first when all were
            seen.
        labels: (N,) integers in [0, num_classes).
        num_classes: The number of classes.
        batch_size: Images of one step.
        steps: The number of steps.
        learning_rates: For 256 images.
        seed: The seed of first weights and of the order of images.
        device: Where the classifiers are trained, by default where the features are.
    """
    first = views[0]
    device = torch.device(device or first.columns.device)
    rates = torch.tensor(learning_rates, device=device) * (batch_size / 256)  # (R,)
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for chosen in INPUTS:
        width = first.rows(torch.arange(1)).chosen(*chosen).shape[1]
        weight = INITIAL_DEVIATION * torch.randn(width + 1, len(rates), num_classes, generator=generator)
        weight[-1] = 0
        weights.append(weight.to(device))
    momenta = [torch.zeros_like(weight) for weight in weights]
    batches = _endless_batches(len(labels), batch_size, seed)
    for step in range(steps):
        parts = [(views[epoch % len(views)].rows(index), labels[index]) for epoch, index in next(batches)]
        batch = LayerFeatures(torch.cat([part.columns for part, _ in parts]), first.widths)
        targets = torch.cat([part for _, part in parts]).to(device)
        rate = rates * (1 + torch.cos(torch.tensor(torch.pi * step / steps))).item() / 2
        for weight, momentum, inputs in zip(weights, momenta, _inputs(batch, weights), strict=True):
            momentum.mul_(0.9).add_(gradient(weight, inputs, targets))
            weight -= rate[:, None] * momentum
    return ProtocolClassifiers(weights, learning_rates)


def gradient(weight: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the mean cross-entropy of each learning rate's classifier: (D + 1, R, classes)."""
    logits = (inputs @ weight.flatten(1)).view(len(inputs), *weight.shape[1:])  # (B, R, classes)
    difference = logits.softmax(dim=-1)
    difference[torch.arange(len(inputs), device=labels.device), :, labels] -= 1
    return (inputs.T @ difference.flatten(1)).view_as(weight) / len(inputs)


def _inputs(features: LayerFeatures, weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the input of each of `INPUTS`, (B, D + 1), the last channel being 1, where its weight is."""
    for chosen, weight in zip(INPUTS, weights, strict=True):
        inputs = features.chosen(*chosen).float().to(weight.device)
        yield torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)


def _endless_batches(count: int, batch_size: int, seed: int) -> Iterator[list[tuple[int, Tensor]]]:
    """Yield batches of indices in [0, count), each as parts of one or more epochs: [(epoch, indices), ...]."""
    generator = torch.Generator().manual_seed(seed + 1)
    epoch, rest = 0, torch.randperm(count, generator=generator)
    while True:
        parts, missing = [], batch_size
        while missing:
            part, rest = rest[:missing], rest[missing:]
            parts.append((epoch, part))
            missing -= len(part)
            if not len(rest):
                epoch, rest = epoch + 1, torch.randperm(count, generator=generator)
        yield parts
