"""k-means clustering: how well groups of features that are formed without labels match the classes.

Sources: Arthur and Vassilvitskii 2007 (k-means++); Hubert and Arabie 1985 (adjusted Rand index); Strehl and Ghosh 2002
(normalised mutual information, here by the arithmetic mean of the entropies, as in scikit-learn).
"""

from __future__ import annotations

from dataclasses import dataclass

import datasets
import evaluate
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .task import IN_MEMORY, LabelledFeatures, Options, Score, Task


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
    result = ClusteringScores(**IN_MEMORY).compute(predictions=clusters.assignments, references=test.labels)
    settings = {"clusters": k, "restarts": options.kmeans_restarts, "seed": options.seed}
    return [Score(name, value, settings) for name, value in result.items()]


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
    if assignments.ndim != 1 or assignments.shape != labels.shape or len(labels) == 0:
        raise ValueError(
            f"Clusters {tuple(assignments.shape)} and labels {tuple(labels.shape)} do not match: pass (N,) and (N,), "
            "with at least one image."
        )
    if min(assignments.min(), labels.min()) < 0:
        raise ValueError("Clusters and labels must be whole numbers from 0: drop unlabelled images.")
    num_classes = int(labels.max()) + 1
    pairs = torch.bincount(assignments.long() * num_classes + labels.long(), minlength=num_classes)
    # (clusters, classes): the number of images of each pair
    table = torch.nn.functional.pad(pairs, (0, -len(pairs) % num_classes)).view(-1, num_classes).double()
    return {
        "clustering_accuracy": _matched_images(table) / len(labels),
        "clustering_nmi": _normalised_mutual_information(table),
        "clustering_ari": _adjusted_rand_index(table),
    }


def _matched_images(table: Tensor) -> float:
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    return table[rows, columns].sum().item()


def _normalised_mutual_information(table: Tensor) -> float:
    joint = table / table.sum()
    entropies = [torch.special.entr(joint.sum(dim=dim)).sum().item() for dim in (0, 1)]
    information = sum(entropies) - torch.special.entr(joint).sum().item()
    mean = sum(entropies) / 2
    # one class and one cluster agree
    return 1.0 if mean == 0 else max(0.0, information / mean)


def _adjusted_rand_index(table: Tensor) -> float:
    """Return the share of all pairs of images that both groupings treat alike, corrected for chance."""

    def pairs(counts: Tensor) -> float:
        return (counts * (counts - 1) / 2).sum().item()

    together, clusters, classes = pairs(table), pairs(table.sum(dim=1)), pairs(table.sum(dim=0))
    by_chance = clusters * classes / max(1.0, pairs(table.sum()))
    most = (clusters + classes) / 2
    return 1.0 if most == by_chance else (together - by_chance) / (most - by_chance)


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
