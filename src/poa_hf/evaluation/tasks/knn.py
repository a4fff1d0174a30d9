"""k-nearest-neighbour classification of frozen features, the first number that DINO, iBOT and POA report.

An image is compared by cosine similarity with the labelled features of the train split (the memory), and its k nearest
neighbours vote with weight exp(similarity / temperature). Nothing is trained, so the accuracy depends on the features
only.

Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4. DINO's
eval_knn.py uses the same weights, with k = 10, 20, 100 and 200 and temperature 0.07.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import datasets
import evaluate
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize

from ...ranges import COUNT, POSITIVE, check_number
from ..finite import NOT_FINITE
from .task import LabelledFeatures, Options, Score, Task, check_numbers

DEFAULT_KS = (10, 20, 100, 200)  # DINO's


@dataclass(frozen=True)
class KnnOptions(Options):
    """The options of k-NN classification.

    Args:
        k: Numbers of neighbours that vote; None means those of `DEFAULT_KS` that the train split is large enough for.
        temperature: The smaller, the more the nearest neighbours count.
    """

    k: tuple[int, ...] | None = None
    temperature: float = 0.07


def knn_ks(options: KnnOptions, train_images: int) -> list[int]:
    """Return the numbers of neighbours that vote, in ascending order.

    Raises:
        ValueError: If there are fewer train images than a number that was asked for, or than every default.
    """
    if options.k is None:
        fitting = [k for k in DEFAULT_KS if k <= train_images]
        if not fitting:
            count = f"{train_images} image{'' if train_images == 1 else 's'}"
            raise ValueError(f"The train split has only {count}: give k-NN a smaller number with --k.")
        return fitting
    if max(options.k) > train_images:
        raise ValueError(
            f"k = {max(options.k)} neighbours cannot be found among {train_images} train images: give a smaller --k, "
            "or more images."
        )
    return sorted(set(options.k))


def _check_options(options: KnnOptions, train_images: int | None) -> None:
    if options.k is not None:
        check_numbers("k", options.k, COUNT)
    check_number("temperature", options.temperature, POSITIVE)
    if train_images is not None:
        knn_ks(options, train_images)


def _left_out(options: KnnOptions, train_images: int) -> str | None:
    larger = [k for k in DEFAULT_KS if k > train_images]
    if options.k is not None or len(larger) in (0, len(DEFAULT_KS)):  # no number left is an error
        return None
    return f"k-NN with k = {', '.join(map(str, larger))} is left out: there are {train_images} train images."


def _run(
    train: LabelledFeatures, test: LabelledFeatures, num_classes: int, options: KnnOptions, device: torch.device
) -> list[Score]:
    ks = knn_ks(options, len(train.labels))
    memory, temperature = (train.features, train.labels), options.temperature
    voted = knn_predictions(*memory, test.features, ks, temperature, num_classes, chunk_size=4096, device=device)
    correct = {k: (voted[k] == test.labels).double() for k in ks}  # (N,) each
    settings = {"temperature": temperature}
    return [Score("knn_accuracy", correct[k].mean().item(), {"k": k} | settings, outcomes=correct[k]) for k in ks]


KNN = Task("knn", _run, check=_check_options, remark=_left_out)


def knn_predictions(
    memory_features: Tensor,
    memory_labels: Tensor,
    features: Tensor,
    ks: Sequence[int] = DEFAULT_KS,
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk_size: int = 1024,
    device: torch.device | str | None = None,
) -> dict[int, Tensor]:
    """Classify features by a vote of their nearest neighbours, for several numbers of neighbours at once.

    One search, for the largest k, serves all. Of classes with equal votes the smallest label wins. The largest matrices
    that are built are (chunk_size, chunk_size + k) and (chunk_size, num_classes), so memory and queries may both be
    large.

    Args:
        memory_features: (M, D); they are normalised here.
        memory_labels: (M,) integers in [0, num_classes).
        features: (N, D), the queries.
        ks: Numbers of neighbours that vote.
        temperature: The smaller, the more the nearest neighbours count.
        num_classes: The largest label + 1 by default.
        chunk_size: The number of queries, and of memory features, that are compared at a time.
        device: Where the search runs, by default where the memory is. Chunks are moved there one by one, so a GPU can
            search a memory that is larger than its own.

    Returns:
        For each k, the class of each query: (N,) int64, on the memory's device.

    Raises:
        ValueError: For k beyond the size of the memory, shapes that do not match, labels out of range, or features that
            are not finite.

    Example:
        >>> memory = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> queries = torch.tensor([[2.0, 0.3], [0.1, 0.7]])
        >>> knn_predictions(memory, torch.tensor([0, 0, 1]), queries, ks=[1, 3])
        {1: tensor([0, 1]), 3: tensor([0, 1])}
    """
    _check_search(memory_features, memory_labels, features, ks, temperature, chunk_size)
    num_classes = int(memory_labels.max()) + 1 if num_classes is None else num_classes
    if memory_labels.min() < 0 or memory_labels.max() >= num_classes:
        raise ValueError(f"A memory label is not in [0, {num_classes}): drop unlabelled images or raise num_classes.")
    device = torch.device(device or memory_features.device)
    memory_labels = memory_labels.to(device, torch.int64)
    predictions: dict[int, list[Tensor]] = {k: [] for k in ks}
    for queries in features.split(chunk_size):  # (B, D)
        similarities, indices = _nearest(memory_features, queries.to(device), max(ks), chunk_size)  # (B, max k) each
        for k in ks:
            votes = _votes(similarities[:, :k], indices[:, :k], memory_labels, temperature, num_classes)  # (B, classes)
            predictions[k].append(votes.argmax(1).to(memory_features.device))
    return {k: torch.cat(parts) for k, parts in predictions.items()}


def knn_votes(
    memory_features: Tensor,
    memory_labels: Tensor,
    features: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk_size: int = 4096,
) -> Tensor:
    """Return the shares of the votes that each class gets from the k nearest neighbours: (N, num_classes).

    The arguments are those of `knn_predictions`. All tensors are on one device.

    Raises:
        ValueError: As `knn_predictions` does.
    """
    _check_search(memory_features, memory_labels, features, [k], temperature, chunk_size)
    num_classes = int(memory_labels.max()) + 1 if num_classes is None else num_classes
    parts = []
    for queries in features.split(chunk_size):
        similarities, indices = _nearest(memory_features, queries, k, chunk_size)
        votes = _votes(similarities, indices, memory_labels, temperature, num_classes)
        parts.append(votes / votes.sum(dim=1, keepdim=True))
    return torch.cat(parts)


def _check_search(
    memory: Tensor, labels: Tensor, features: Tensor, ks: Sequence[int], temperature: float, chunk_size: int
) -> None:
    if memory.ndim != 2 or features.ndim != 2 or memory.shape[1] != features.shape[1]:
        raise ValueError(
            f"Memory {tuple(memory.shape)} and queries {tuple(features.shape)} cannot be compared: "
            "pass (M, D) and (N, D) features of one model."
        )
    if labels.shape != memory.shape[:1]:
        raise ValueError(f"{len(memory)} memory features need as many labels, but these are {tuple(labels.shape)}.")
    if len(ks) == 0:
        raise ValueError(f"No number of neighbours votes: give at least one k, from 1 to {len(memory)}.")
    for k in ks:
        if not 1 <= k <= len(memory):
            raise ValueError(f"k = {k} neighbours cannot be found among {len(memory)}: choose k from 1 to that number.")
    if not temperature > 0 or chunk_size < 1:
        raise ValueError(f"temperature ({temperature}) and chunk_size ({chunk_size}) must be positive.")


def _nearest(memory: Tensor, queries: Tensor, k: int, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Return cosine similarities and memory indices of the k nearest neighbours, both (B, k), nearest first."""
    queries = normalize(queries.float(), dim=1)  # (B, D)
    similarities = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(memory), chunk_size):
        # Normalised chunk by chunk, again for each chunk of queries: cheaper than a second copy of the memory.
        chunk = normalize(memory[start : start + chunk_size].to(queries.device).float(), dim=1)  # (C, D)
        nearest, positions = (queries @ chunk.T).topk(min(k, len(chunk)))  # (B, C) -> (B, k)
        similarities = torch.cat([similarities, nearest], dim=1)  # (B, 2k)
        indices = torch.cat([indices, positions + start], dim=1)
        similarities, kept = similarities.topk(min(k, similarities.shape[1]))  # (B, k)
        indices = indices.gather(1, kept)
    # topk takes NaN for the largest value, so none is lost on the way here.
    if similarities.isnan().any():
        raise ValueError(NOT_FINITE)
    return similarities, indices


def _votes(similarities: Tensor, indices: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """Return sums of exp(similarity / temperature) by class, up to a factor per query: (B, num_classes)."""
    # Relative to the nearest neighbour, so that a small temperature does not overflow.
    weights = ((similarities - similarities[:, :1]) / temperature).exp()  # (B, k)
    return weights.new_zeros(len(weights), num_classes).scatter_add_(1, labels[indices], weights)


class KnnAccuracy(evaluate.Metric):
    """Accuracy of the weighted k-NN vote, as an `evaluate` metric that needs no network.

    The predictions it takes are features (B, D). They vote at once and only the classes are stored, so the features of
    a whole validation set are never in memory (nor in the tables of `evaluate`, which are slow with vectors).

    Args:
        memory_features: (M, D), the features of the train split.
        memory_labels: (M,), their labels.
        k: The number of neighbours that vote, or a list of them: one search serves all.
        **kwargs: Arguments of `evaluate.Metric`, such as `keep_in_memory`, `num_process` and `process_id`.

    The other arguments are those of `knn_predictions`.

    Raises:
        ValueError: As `knn_predictions` does, when features are added.

    Example:
        >>> memory, labels = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> metric = KnnAccuracy(memory, labels, k=1, keep_in_memory=True)
        >>> for features, classes in [([[1.0, 0.2]], [0]), ([[0.3, 1.0]], [0])]:
        ...     metric.add_batch(predictions=features, references=classes)
        >>> metric.compute()
        {'knn_accuracy': 0.5}

        With several numbers of neighbours, each has its own accuracy:

        >>> metric = KnnAccuracy(memory, labels, k=[1, 3], keep_in_memory=True)
        >>> metric.compute(predictions=[[1.0, 0.2], [0.3, 1.0]], references=[0, 1])
        {'knn_accuracy_1': 1.0, 'knn_accuracy_3': 1.0}
    """

    def __init__(
        self,
        memory_features: ArrayLike,
        memory_labels: ArrayLike,
        k: int | Sequence[int] = 20,
        temperature: float = 0.07,
        num_classes: int | None = None,
        chunk_size: int = 1024,
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        # mypy does not count int as Integral, which NumPy's whole numbers are
        self.ks = [int(k)] if isinstance(k, int | Integral) else list(k)
        self.names = ["knn_accuracy"] if isinstance(k, int | Integral) else [f"knn_accuracy_{k}" for k in self.ks]
        super().__init__(**kwargs)
        self.memory_features = torch.as_tensor(memory_features)
        self.memory_labels = torch.as_tensor(memory_labels)
        self.temperature, self.num_classes = temperature, num_classes
        self.chunk_size, self.device = chunk_size, device

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy of a weighted k-nearest-neighbour vote over frozen features (cosine similarity).",
            citation="Wu et al. 2018, Unsupervised Feature Learning via Non-Parametric Instance Discrimination.",
            inputs_description="\n\npredictions: (N, D) features; references: (N,) labels.",
            # The table's columns, not the arguments: for each k the class that the features were voted into.
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("int64")), "references": datasets.Value("int64")}
            ),
        )

    def add_batch(self, *, predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> None:
        """Let features (B, D) vote, and keep their classes and the labels (B,)."""
        memory, features = (self.memory_features, self.memory_labels), torch.as_tensor(predictions)
        voted = knn_predictions(
            *memory, features, self.ks, self.temperature, self.num_classes, self.chunk_size, self.device
        )
        classes = torch.stack([voted[k] for k in self.ks], dim=1).cpu()  # (B, number of ks)
        super().add_batch(predictions=classes.numpy(), references=torch.as_tensor(references).cpu(), **kwargs)

    def add(self, *, prediction: ArrayLike, reference: int, **kwargs: Any) -> None:
        """Let one image's features (D,) vote, and keep the class and the label."""
        self.add_batch(predictions=torch.as_tensor(prediction)[None], references=[reference], **kwargs)

    def _compute(self, predictions: list[list[int]], references: list[int]) -> dict[str, float]:
        correct = torch.tensor(predictions) == torch.tensor(references)[:, None]  # (N, number of ks)
        return dict(zip(self.names, correct.double().mean(dim=0).tolist(), strict=True))
