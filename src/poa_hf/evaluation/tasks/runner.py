"""The tasks that tell how good features are, each from features and labels to a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .clustering import ClusteringScores, kmeans
from .knn import KnnAccuracy
from .lowshot import low_shot_accuracies
from .probe import LinearAccuracy, fit_linear_probe
from .retrieval import RetrievalMap

TASKS = ("knn", "linear", "lowshot", "clustering", "retrieval")
DEFAULT_KS = (10, 20, 100, 200)  # DINO's


@dataclass(frozen=True)
class TaskOptions:
    """`k` None means those of `DEFAULT_KS` that the memory is large enough for; `label_shares` are low-shot's."""

    k: tuple[int, ...] | None = None
    temperature: float = 0.07
    label_shares: tuple[float, ...] = (0.01, 0.1)
    label_draws: int = 3
    retrieval_k: tuple[int, ...] = (1, 10)
    kmeans_restarts: int = 5
    seed: int = 0


@dataclass(frozen=True)
class LabelledFeatures:
    """Features (N, D) and labels (N,), whole numbers from 0, of one split."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Score:
    """A number with what it depends on (`settings`) and what came out beside it (`details`)."""

    metric: str
    value: float
    settings: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def check_tasks(tasks: Sequence[str], options: TaskOptions, train_images: int | None) -> None:
    """ValueError for tasks that don't exist or options that make no sense, before any work."""
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise ValueError(f"{(unknown or ['nothing'])[0]!r} is not a task: choose from {', '.join(TASKS)}.")
    if options.k is not None and (not options.k or min(options.k) < 1):
        raise ValueError(f"k is {list(options.k)}: give numbers of at least 1.")
    if "knn" in tasks and train_images is not None:
        knn_ks(options, train_images)


def knn_ks(options: TaskOptions, train_images: int) -> list[int]:
    """The numbers of neighbours to vote. ValueError if one that was asked for, or every usual one, is too many."""
    if options.k is None:
        fitting = [k for k in DEFAULT_KS if k <= train_images]
        if not fitting:
            raise ValueError(f"The train split has only {train_images} images: give k-NN a smaller number with --k.")
        return fitting
    if max(options.k) > train_images:
        raise ValueError(
            f"k = {max(options.k)} neighbours can't be found among {train_images} train images: give a smaller --k, or "
            "more images."
        )
    return sorted(set(options.k))


def run_task(
    task: str,
    train: LabelledFeatures | None,
    test: LabelledFeatures,
    num_classes: int,
    options: TaskOptions,
    device: torch.device,
) -> list[Score]:
    """The scores of one task. `train` may be None for clustering alone."""
    if task == "knn":
        return _knn(train, test, num_classes, options, device)
    if task == "linear":
        return _linear(train, test, num_classes, options, device)
    if task == "lowshot":
        return _low_shot(train, test, num_classes, options, device)
    if task == "clustering":
        return _clustering(test, options, device)
    return _retrieval(train, test, options, device)


def _knn(train, test, num_classes, options, device) -> list[Score]:
    ks = knn_ks(options, len(train.labels))
    metric = KnnAccuracy(train.features, train.labels, ks, options.temperature, num_classes, 4096, device, **_IN_MEMORY)
    result = metric.compute(predictions=test.features, references=test.labels)
    settings = {"temperature": options.temperature}
    return [Score("knn_accuracy", result[f"knn_accuracy_{k}"], {"k": k} | settings) for k in ks]


def _linear(train, test, num_classes, options, device) -> list[Score]:
    probe = fit_linear_probe(train.features, train.labels, num_classes, seed=options.seed, device=device)
    metric = LinearAccuracy(probe.classifier, **_IN_MEMORY)
    result = metric.compute(predictions=test.features, references=test.labels)
    details = {"learning_rate": probe.learning_rate, "held_out_accuracy": probe.held_out_accuracy}
    return [Score("linear_accuracy", result["linear_accuracy"], {"seed": options.seed}, details)]


def _low_shot(train, test, num_classes, options, device) -> list[Score]:
    scores = []
    for share in options.label_shares:
        accuracies, labels = low_shot_accuracies(
            train.features,
            train.labels,
            test.features,
            test.labels,
            share,
            options.label_draws,
            num_classes,
            options.seed,
            device,
        )
        settings = {"label_share": share, "draws": options.label_draws, "seed": options.seed}
        mean = sum(accuracies) / len(accuracies)
        scores.append(Score("lowshot_accuracy", mean, settings, {"labels": labels, "accuracies": accuracies}))
    return scores


def _clustering(test, options, device) -> list[Score]:
    clusters = len(test.labels.unique())
    found = kmeans(normalize(test.features, dim=1), clusters, options.kmeans_restarts, seed=options.seed, device=device)
    result = ClusteringScores(**_IN_MEMORY).compute(predictions=found.assignments, references=test.labels)
    settings = {"clusters": clusters, "restarts": options.kmeans_restarts, "seed": options.seed}
    return [Score(name, value, settings) for name, value in result.items()]


def _retrieval(train, test, options, device) -> list[Score]:
    ks = [k for k in options.retrieval_k if k <= len(train.labels)]
    metric = RetrievalMap(train.features, train.labels, ks, device, **_IN_MEMORY)
    result = metric.compute(predictions=test.features, references=test.labels)
    details = {"queries": result["queries"]}
    scores = [Score("retrieval_map", result["retrieval_map"], {}, details)]
    return scores + [Score("retrieval_precision", result[f"retrieval_precision_{k}"], {"k": k}, details) for k in ks]


# The tables are small, and processes that share files would have to lock them.
_IN_MEMORY = {"keep_in_memory": True}
