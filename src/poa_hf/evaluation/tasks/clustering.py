"""k-means clustering: how well groups of features that are formed without labels match the classes.

Sources: Hubert and Arabie 1985 (adjusted Rand index); Strehl and Ghosh 2002 (normalised mutual information, here by the
arithmetic mean of the entropies, as in scikit-learn).
"""

from __future__ import annotations

from dataclasses import dataclass

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...ranges import COUNT, check_number
from ..statistics.intervals import replicated_interval, resamples
from .kmeans import Clusters as Clusters
from .kmeans import kmeans
from .task import LabelledFeatures, Options, Score, Task


@dataclass(frozen=True)
class ClusteringOptions(Options):
    """The options of clustering.

    Args:
        kmeans_restarts: Runs of k-means, of which the best counts.
    """

    kmeans_restarts: int = 5


def _run(
    train: LabelledFeatures, test: LabelledFeatures, num_classes: int, options: ClusteringOptions, device: torch.device
) -> list[Score]:
    k = len(test.labels.unique())
    clusters = kmeans(normalize(test.features, dim=1), k, options.kmeans_restarts, seed=options.seed, device=device)
    result = clustering_scores(clusters.assignments, test.labels)
    replicates = clustering_replicates(clusters.assignments, test.labels, options.seed)
    settings = {"clusters": k, "restarts": options.kmeans_restarts, "seed": options.seed}
    matched = matched_images(clusters.assignments, test.labels).double()
    outcomes = {"clustering_accuracy": matched}
    return [
        Score(
            name,
            value,
            settings,
            outcomes=outcomes.get(name),
            interval=_interval(name, value, replicates.get(name), len(test.labels)),
            replicates=replicates.get(name),
        )
        for name, value in result.items()
    ]


def _check(options: ClusteringOptions, train_images: int | None) -> None:
    check_number("kmeans_restarts", options.kmeans_restarts, COUNT)


CLUSTERING = Task("clustering", _run, needs_train=False, check=_check)


def clustering_scores(assignments: Tensor, labels: Tensor) -> dict[str, float]:
    """Measure how well clusters match classes.

    Args:
        assignments: (N,) clusters, whole numbers from 0. Where there are more clusters than classes, or fewer, some
            have no match.
        labels: (N,) classes, whole numbers from 0.

    Returns:
        `clustering_accuracy` with the best one-to-one match of clusters and classes, `clustering_nmi` (normalised
        mutual information), both from 0 to 1, and `clustering_ari` (adjusted Rand index), from -0.5 to 1.

    Raises:
        ValueError: For shapes that do not match, negative numbers or no images.
    """
    table = _contingency(assignments, labels)
    rows, columns = _best_match(table)
    return {
        "clustering_accuracy": table[rows, columns].sum().item() / len(labels),
    } | {name: _measured(name, _Counts.of_table(table)).item() for name in _MEASURES}


def matched_images(assignments: Tensor, labels: Tensor) -> Tensor:
    """Return which images are in the cluster that is matched with their class: (N,) bool.

    Their share is `clustering_accuracy` of `clustering_scores`, which says what the arguments are.
    """
    table = _contingency(assignments, labels)
    rows, columns = _best_match(table)
    class_of = torch.full((len(table),), -1)
    class_of[rows] = columns
    return class_of[assignments] == labels


def _contingency(assignments: Tensor, labels: Tensor) -> Tensor:
    """Return the number of images of each cluster and class, (clusters, classes)."""
    if assignments.ndim != 1 or assignments.shape != labels.shape or len(labels) == 0:
        raise ValueError(
            f"Clusters {tuple(assignments.shape)} and labels {tuple(labels.shape)} do not match: pass (N,) and (N,), "
            "with at least one image."
        )
    if min(assignments.min(), labels.min()) < 0:
        raise ValueError("Clusters and labels must be whole numbers from 0: drop unlabelled images.")
    num_classes = int(labels.max()) + 1
    pairs = torch.bincount(assignments.long() * num_classes + labels.long(), minlength=num_classes)
    return torch.nn.functional.pad(pairs, (0, -len(pairs) % num_classes)).view(-1, num_classes).double()


def _best_match(table: Tensor) -> tuple[Tensor, Tensor]:
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    return torch.from_numpy(rows), torch.from_numpy(columns)


@dataclass(frozen=True)
class _Counts:
    """Numbers of images, of one sample (...) or of each of several, as float64.

    Args:
        pairs: Of each pair of a cluster and a class that occurs, (..., P).
        clusters: Of each cluster, (..., K).
        classes: Of each class, (..., L).
    """

    pairs: Tensor
    clusters: Tensor
    classes: Tensor

    @classmethod
    def of_table(cls, table: Tensor) -> _Counts:
        return cls(table.flatten(), table.sum(dim=1), table.sum(dim=0))


def _normalised_mutual_information(counts: _Counts) -> Tensor:
    total = counts.clusters.sum(dim=-1, keepdim=True)
    joint, *entropies = (
        torch.special.entr(part / total).sum(dim=-1) for part in (counts.pairs, counts.clusters, counts.classes)
    )
    mean = (entropies[0] + entropies[1]) / 2
    # one class and one cluster agree
    return torch.where(mean == 0, 1.0, (2 * mean - joint) / mean)


def _adjusted_rand_index(counts: _Counts) -> Tensor:
    """Return the share of all pairs of images that both groupings treat alike, corrected for chance."""

    def pairs(numbers: Tensor) -> Tensor:
        return (numbers * (numbers - 1) / 2).sum(dim=-1)

    together, clusters, classes = pairs(counts.pairs), pairs(counts.clusters), pairs(counts.classes)
    by_chance = clusters * classes / pairs(counts.clusters.sum(dim=-1, keepdim=True)).clamp(min=1)
    most = (clusters + classes) / 2
    return torch.where(most == by_chance, 1.0, (together - by_chance) / (most - by_chance))


# with the least and the greatest number that there can be
_MEASURES = {
    "clustering_nmi": (_normalised_mutual_information, (0.0, 1.0)),
    "clustering_ari": (_adjusted_rand_index, (-0.5, 1.0)),
}


def _measured(name: str, counts: _Counts) -> Tensor:
    measure, bounds = _MEASURES[name]
    return measure(counts).clamp(*bounds)  # which rounding may leave


def clustering_replicates(assignments: Tensor, labels: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Return mutual information and Rand index on resamples of the images, whose clusters stay: (R,) each.

    Args:
        assignments: (N,) clusters, see `clustering_scores`.
        labels: (N,) classes.
        seed: The seed of the resamples.
    """
    table = _contingency(assignments, labels)
    number = assignments.long() * table.shape[1] + labels.long()  # of each image's pair of cluster and class, (N,)
    order = number.argsort()
    pairs, sizes = number[order].unique_consecutive(return_counts=True)  # (P,)
    starts = (sizes.cumsum(dim=0) - sizes).numpy()
    replicates: dict[str, list[Tensor]] = {name: [] for name in _MEASURES}
    for counts in resamples(len(labels), seed=seed):
        images = torch.from_numpy(np.add.reduceat(counts[:, order.numpy()], starts, axis=1))  # (B, P)
        clusters, classes = (images.new_zeros(len(images), size) for size in table.shape)
        clusters.index_add_(1, pairs // table.shape[1], images)
        classes.index_add_(1, pairs % table.shape[1], images)
        for name, parts in replicates.items():
            parts.append(_measured(name, _Counts(images, clusters, classes)))
    return {name: torch.cat(parts) for name, parts in replicates.items()}


def _interval(name: str, value: float, replicates: Tensor | None, images: int) -> tuple[float, float] | None:
    """Return the 95 % interval of a number that has replicates, if they tell.

    In a sample that is drawn with replacement, mutual information is too high. So the replicates are moved such that
    their mean is the measured number.
    """
    if replicates is None:
        return None
    return replicated_interval(replicates.numpy(), images, mean=value, bounds=_MEASURES[name][1])


class ClusteringScores(evaluate.Metric):
    """How well clusters match classes, as an `evaluate` metric that needs no network.

    Predictions are clusters and references are labels. The result is that of `clustering_scores`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy by the best match, normalised mutual information and adjusted Rand index.",
            citation="Hubert and Arabie 1985, Comparing partitions; Strehl and Ghosh 2002, Cluster ensembles.",
            inputs_description="\n\npredictions: (N,) clusters; references: (N,) labels.",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return clustering_scores(torch.tensor(predictions), torch.tensor(references))
