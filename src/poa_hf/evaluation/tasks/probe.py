"""The linear probe: how well a linear classifier does on frozen features, with a fairly chosen learning rate.

As in DINOv2's linear evaluation, one classifier per learning rate is trained on the same batches with SGD (momentum
0.9, no weight decay, cosine decay to 0), all at once as a single wide matrix. Here a held-out part of the train split
picks one of them, and only the picked one sees the test split.

Source: Oquab et al. 2023, "DINOv2", appendix B.3, and its `eval/linear.py` for momentum and schedule.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..finite import check_finite
from .protocols import gradient

# For batches of 256 images, and in proportion to the batch size for others. DINOv2's thirteen end at 0.1: they are for
# 12,500 steps, and for features of a thousand channels, whose gradients are larger.
LEARNING_RATES = tuple(10 ** (power / 3) for power in range(-12, 1))
EPOCHS, MIN_STEPS = 10, 1000


@dataclass
class LinearClassifier:
    """A linear classifier of features.

    Args:
        weight: (D, classes).
        bias: (classes,). The logits are `features @ weight + bias`.
    """

    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor, chunk_size: int = 16384) -> Tensor:
        """Return the most likely class of each of (N, D) features: (N,) int64, on the features' device."""
        chunks = features.split(chunk_size)
        logits = (chunk.to(self.weight.device).float() @ self.weight + self.bias for chunk in chunks)  # (C, classes)
        return torch.cat([chunk.argmax(dim=1) for chunk in logits]).to(features.device)


@dataclass
class LinearProbe:
    """The picked classifier, its learning rate (for 256 images), and its accuracy on the held-out images."""

    classifier: LinearClassifier
    learning_rate: float
    held_out_accuracy: float


def fit_linear_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int | None = None,
    learning_rates: Sequence[float] = LEARNING_RATES,
    held_out: float = 0.1,
    batch_size: int | None = None,
    epochs: int = EPOCHS,
    min_steps: int = MIN_STEPS,
    seed: int = 0,
    device: torch.device | str | None = None,
    held_out_images: Tensor | None = None,
    views: Sequence[Tensor] = (),
) -> LinearProbe:
    """Train one classifier per learning rate, and return the one that does best on held-out images.

    Features are standardised with the mean and deviation of the images that train, so that one list of learning rates
    suits every model. Weights start at 0.

    Args:
        features: (N, D).
        labels: (N,) integers in [0, num_classes).
        num_classes: The largest label + 1 by default.
        held_out: The share of each class that is held out: at least one image of every class that has two.
        batch_size: By default a hundredth of the images, but at least 128 and at most DINOv2's 1024.
        epochs: Passes over the images, but never fewer than `min_steps` steps.
        seed: Decides which images are held out, and the order of the others.
        device: Where the classifiers are trained, by default where the features are. Batches are moved there one by
            one.
        held_out_images: Which images are held out, (N,) bool, instead of a random share of each class.
        views: Features (N, D) of augmented views of the same images. If there are any, each epoch trains on those of
            the next view instead of `features`.

    Raises:
        ValueError: For shapes that do not match, labels out of range, learning rates or a share that are not valid, if
            no class has two images, or if training diverges with every learning rate.
    """
    num_classes = check_labelled(features, labels, num_classes)
    if not learning_rates or min(learning_rates) <= 0 or not 0 < held_out < 1:
        raise ValueError(
            f"learning_rates {list(learning_rates)} must be positive, and held_out ({held_out}) between 0 and 1."
        )
    device = torch.device(device or features.device)
    is_held_out = held_out_images
    if is_held_out is None:
        is_held_out = stratified_sample(labels, held_out, seed, leave_one=True)
    if not is_held_out.any():
        raise ValueError("No class has two labelled images, so none can be held out: give more images of each class.")
    held_out_index, training_index = (part.nonzero()[:, 0] for part in (is_held_out, ~is_held_out))
    mean, deviation = standardisation(features, training_index)
    count = len(training_index)
    batch_size = min(batch_size or min(max(128, count // 100), 1024), count)
    steps = max(min_steps, epochs * count // batch_size)
    rates = torch.tensor(learning_rates, device=device) * (batch_size / 256)  # (R,)

    def inputs_of(index: Tensor, source: Tensor = features) -> Tensor:
        standardised = ((source[index].float() - mean) / deviation).to(device)
        return torch.cat([standardised, standardised.new_ones(len(index), 1)], dim=1)  # (B, D + 1), the last: the bias

    weight = torch.zeros(features.shape[1] + 1, len(rates), num_classes, device=device)  # (D + 1, R, classes)
    momentum = torch.zeros_like(weight)
    order = _endless_order(count, batch_size, seed)
    for step in range(steps):
        epoch, place = next(order)
        batch, source = training_index[place], views[epoch % len(views)] if views else features
        rate = rates * (1 + torch.cos(torch.tensor(torch.pi * step / steps))).item() / 2
        momentum.mul_(0.9).add_(gradient(weight, inputs_of(batch, source), labels[batch].to(device)))
        weight -= rate[:, None] * momentum
    batches = ((inputs_of(part), labels[part].to(device)) for part in held_out_index.split(4096))
    accuracy, loss = _scores(weight, batches)
    # of equally accurate ones, which are common among few held-out images, the one with the lowest loss
    best = max(range(len(rates)), key=lambda rate: (accuracy[rate].item(), -loss[rate].item()))
    if not loss[best].isfinite():
        raise ValueError(f"Training diverged with every learning rate ({list(learning_rates)}): give smaller ones.")
    mean, deviation = mean.to(device), deviation.to(device)
    # the standardisation becomes part of the classifier
    picked = weight[:-1, best] / deviation[:, None]  # (D, classes)
    classifier = LinearClassifier(picked, weight[-1, best] - mean @ picked)
    return LinearProbe(classifier, learning_rates[best], accuracy[best].item())


def _scores(weight: Tensor, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return accuracy and mean cross-entropy of each learning rate's classifier, both (R,).

    Classifiers that diverged get the worst values.
    """
    correct = loss = torch.zeros(weight.shape[1], dtype=torch.float64, device=weight.device)
    images = 0
    for inputs, labels in batches:
        logits = (inputs @ weight.flatten(1)).view(len(inputs), *weight.shape[1:])  # (B, R, classes)
        correct = correct + (logits.argmax(dim=-1) == labels[:, None]).double().sum(dim=0)
        targets = labels[:, None].expand(logits.shape[:2])  # (B, R)
        loss = loss + cross_entropy(logits.transpose(1, 2), targets, reduction="none").double().sum(dim=0)
        images += len(inputs)
    finite = loss.isfinite()
    return (correct / images).where(finite, -1.0), (loss / images).where(finite, torch.inf)


def _endless_order(count: int, batch_size: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Yield epochs and batches of indices in [0, count).

    Each epoch is reshuffled and drops an incomplete last batch.
    """
    generator = torch.Generator().manual_seed(seed)
    for epoch in itertools.count():
        order = torch.randperm(count, generator=generator)[: count // batch_size * batch_size]
        yield from ((epoch, batch) for batch in order.split(batch_size))


def standardisation(features: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of each channel, both (D,) float32.

    The deviation is never smaller than what rounding gives a constant channel.

    Args:
        features: (N, D).
        chosen: Indices of the images that count, all by default.
    """
    index = torch.arange(len(features), device=features.device) if chosen is None else chosen
    parts = index.split(65536)  # a double-precision copy of all features may not fit into memory
    sums = torch.zeros(features.shape[1], dtype=torch.float64, device=features.device)
    mean = sum((features[part].double().sum(dim=0) for part in parts), sums) / len(index)  # (D,)
    variance = sum(((features[part].double() - mean).square().sum(dim=0) for part in parts), sums) / len(index)
    return mean.float(), variance.sqrt().clamp(min=1e-5 * mean.abs().max().item() + 1e-12).float()


def stratified_sample(labels: Tensor, share: float, seed: int, leave_one: bool = False) -> Tensor:
    """Return which images belong to a random `share` of every class, at least one of each: (N,) bool.

    Args:
        labels: (N,).
        leave_one: Leave at least one image of each class outside the sample, also the only one of a class.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    labels = labels.cpu()
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        count = min(max(1, round(share * len(members))), len(members) - leave_one)
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return chosen.to(labels.device)


def check_labelled(features: Tensor, labels: Tensor, num_classes: int | None) -> int:
    """Return the number of classes of features (N, D) with labels (N,).

    Raises:
        ValueError: For shapes that do not match, labels that are not in [0, num_classes), or features that are not
            finite.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"Features {tuple(features.shape)} and labels {tuple(labels.shape)} do not match: pass (N, D) and (N,), "
            "with at least one image."
        )
    if labels.min() < 0 or (num_classes is not None and labels.max() >= num_classes):
        raise ValueError(f"A label is not in [0, {num_classes or 'classes'}): drop unlabelled images.")
    check_finite(features)
    return int(labels.max()) + 1 if num_classes is None else num_classes


class LinearAccuracy(evaluate.Metric):
    """Accuracy of a fitted linear classifier, as an `evaluate` metric that needs no network.

    The predictions it takes are features (B, D), which are classified at once. The result is
    `{"linear_accuracy": ...}`.

    Args:
        classifier: For example `fit_linear_probe(...).classifier`.
        **kwargs: Arguments of `evaluate.Metric`.
    """

    def __init__(self, classifier: LinearClassifier, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.classifier = classifier

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy of a linear classifier on frozen features.",
            citation="Oquab et al. 2023, DINOv2: Learning Robust Visual Features without Supervision.",
            inputs_description="\n\npredictions: (N, D) features; references: (N,) labels.",
            # the table's columns, not the arguments
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def add_batch(self, *, predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> None:
        """Classify features (B, D), and keep their classes and the labels (B,)."""
        classes = self.classifier.predict(torch.as_tensor(predictions)).cpu()
        super().add_batch(predictions=classes, references=torch.as_tensor(references).cpu(), **kwargs)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        correct = torch.tensor(predictions) == torch.tensor(references)
        return {"linear_accuracy": correct.double().mean().item()}
