"""k-means clustering: how well groups of features that are formed without labels match the classes.

Sources: Arthur and Vassilvitskii 2007 (k-means++); Hubert and Arabie 1985 (adjusted Rand index); Strehl and Ghosh 2002
(normalised mutual information, here by the arithmetic mean of the entropies, as in scikit-learn).
"""

from __future__ import annotations

from dataclasses import dataclass

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..statistics.intervals import percentile_interval, resamples
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
            interval=_interval(value, replicates.get(name), len(test.labels)),
            replicates=replicates.get(name),
        )
        for name, value in result.items()
    ]


CLUSTERING = Task("clustering", _run, needs_train=False)


@dataclass
class Clusters:
    """The result of k-means.

    Args:
        assignments: The cluster of each image, (N,) int64.
        centres: (k, D).
        inertia: The sum of the squared distances of the images to their centres.
    """

    assignments: Tensor
    centres: Tensor
    inertia: float


def kmeans(
    features: Tensor,
    k: int,
    restarts: int = 5,
    max_iterations: int = 100,
    seed: int = 0,
    chunk_size: int = 16384,
    device: torch.device | str | None = None,
) -> Clusters:
    """Cluster features by Lloyd's algorithm: several runs, each started by k-means++, of which the one with the
    smallest inertia counts.

    Distances are Euclidean: normalise the features first to compare them by cosine. The largest matrix that is built is
    (chunk_size, k). A cluster that loses all its images starts anew at the image that is farthest from its centre.

    Args:
        features: (N, D).
        k: The number of clusters.
        restarts: The number of runs.
        max_iterations: The most iterations of one run, which ends earlier when no image changes its cluster.
        seed: Decides where the runs start.
        chunk_size: The number of images that are compared with the centres at a time.
        device: Where the clusters are computed, by default where the features are. The result is on the CPU.

    Raises:
        ValueError: For fewer images than clusters, or numbers below 1.
    """
    if features.ndim != 2 or not 1 <= k <= len(features) or min(restarts, max_iterations, chunk_size) < 1:
        raise ValueError(
            f"{k} clusters of {tuple(features.shape)} features cannot be found in {restarts} runs of {max_iterations} "
            "iterations: give (N, D) features, from 1 to N clusters, and numbers of at least 1."
        )
    features = features.to(device or features.device).float()
    starts = (_spread_centres(features, k, seed + restart) for restart in range(restarts))
    runs = (_lloyd(features, centres, max_iterations, chunk_size) for centres in starts)
    best = min(runs, key=lambda run: run.inertia)
    return Clusters(best.assignments.cpu(), best.centres.cpu(), best.inertia)


def _spread_centres(features: Tensor, k: int, seed: int) -> Tensor:
    """Return the first centres (k, D) of k-means++.

    Each next centre is an image drawn with a probability proportional to its squared distance from the centres so far.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(k, generator=generator, dtype=torch.float64).tolist()
    chosen = [int(draws[0] * len(features))]
    distances = (features - features[chosen[0]]).square().sum(dim=1)  # (N,)
    for draw in draws[1:]:
        cumulative = distances.double().cumsum(dim=0)
        index = int(torch.searchsorted(cumulative, draw * cumulative[-1], right=True).clamp(max=len(features) - 1))
        chosen.append(index)
        distances = torch.minimum(distances, (features - features[index]).square().sum(dim=1))
    return features[chosen]


def _lloyd(features: Tensor, centres: Tensor, max_iterations: int, chunk_size: int) -> Clusters:
    previous = None
    for _ in range(max_iterations):
        assignments, distances = _assign(features, centres, chunk_size)
        if previous is not None and torch.equal(assignments, previous):
            break
        previous = assignments
        sums = torch.zeros_like(centres).index_add_(0, assignments, features)  # (k, D)
        counts = torch.bincount(assignments, minlength=len(centres))  # (k,)
        centres = sums / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        if len(empty):
            centres[empty] = features[distances.topk(len(empty)).indices]
    assignments, distances = _assign(features, centres, chunk_size)
    return Clusters(assignments, centres, distances.double().sum().item())


def _assign(features: Tensor, centres: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Return the nearest centre of each image and the squared distance from it, both (N,)."""
    lengths = centres.square().sum(dim=1)  # (k,)
    nearest = [(lengths - 2 * chunk @ centres.T).min(dim=1) for chunk in features.split(chunk_size)]  # (C, k) -> (C,)
    distances = torch.cat([part.values for part in nearest]) + features.square().sum(dim=1)
    return torch.cat([part.indices for part in nearest]), distances.clamp(min=0)


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
    } | {name: measure(_Counts.of_table(table)).item() for name, measure in _MEASURES.items()}


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
    return torch.where(mean == 0, 1.0, ((2 * mean - joint) / mean).clamp(min=0))


def _adjusted_rand_index(counts: _Counts) -> Tensor:
    """Return the share of all pairs of images that both groupings treat alike, corrected for chance."""

    def pairs(numbers: Tensor) -> Tensor:
        return (numbers * (numbers - 1) / 2).sum(dim=-1)

    together, clusters, classes = pairs(counts.pairs), pairs(counts.clusters), pairs(counts.classes)
    by_chance = clusters * classes / pairs(counts.clusters.sum(dim=-1, keepdim=True)).clamp(min=1)
    most = (clusters + classes) / 2
    return torch.where(most == by_chance, 1.0, (together - by_chance) / (most - by_chance))


_MEASURES = {"clustering_nmi": _normalised_mutual_information, "clustering_ari": _adjusted_rand_index}


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
        for name, measure in _MEASURES.items():
            replicates[name].append(measure(_Counts(images, clusters, classes)))
    return {name: torch.cat(parts) for name, parts in replicates.items()}


def _interval(value: float, replicates: Tensor | None, images: int) -> tuple[float, float] | None:
    """Return the 95 % interval of a number, or None where its replicates do not tell, being all alike.

    In a sample that is drawn with replacement, mutual information is too high. So the replicates are moved such that
    their mean is the measured number.
    """
    if replicates is None or replicates.min() == replicates.max():
        return None
    low, high = percentile_interval(replicates - replicates.mean() + value, images)
    return low, min(high, 1.0)


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
