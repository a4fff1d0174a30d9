"""k-means: groups of features that are formed without labels.

Source: Arthur and Vassilvitskii 2007 (k-means++).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..finite import check_finite


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
        ValueError: For fewer images than clusters, numbers below 1, or features that are not finite.
    """
    if features.ndim != 2 or not 1 <= k <= len(features) or min(restarts, max_iterations, chunk_size) < 1:
        raise ValueError(
            f"{k} clusters of {tuple(features.shape)} features cannot be found in {restarts} runs of {max_iterations} "
            "iterations: give (N, D) features, from 1 to N clusters, and numbers of at least 1."
        )
    check_finite(features)
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
