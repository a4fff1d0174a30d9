"""Estimate the latency of sizes that were not measured from what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..sub_network import SubNetwork
from .costs import Costs


@dataclass(frozen=True)
class Estimate:
    """Latencies of every size, measured or estimated.

    Attributes:
        milliseconds: The measured median where there is one, otherwise the estimate.
        mean_error: Mean relative error of the estimates, each measured size being estimated from the other measured
            ones (so partly by extrapolation); None where nothing is estimated.
        worst_error: The largest of these errors; None where nothing is estimated.
    """

    milliseconds: dict[SubNetwork, float]
    mean_error: float | None = None
    worst_error: float | None = None


def latency_features(sub_network: SubNetwork, costs: Costs) -> np.ndarray:
    """Return the quantities (4,) that a forward pass spends time on: the call, the blocks, FLOPs and memory."""
    return np.array([1, sum(sub_network.depths), costs.flops, costs.activation_bytes], dtype=float)


def estimate(features: Mapping[SubNetwork, np.ndarray], measured: Mapping[SubNetwork, float]) -> Estimate:
    """Estimate the latencies of all sizes from those of some.

    An estimate is a weighted sum of features. The weights are not negative and have the least squared relative error
    on the measured sizes.

    Args:
        features: Features of every size, such as `latency_features`.
        measured: Milliseconds of the sizes that were measured.
    """
    sizes = [size for size in features if size in measured]
    inputs = np.array([features[size] for size in sizes])  # (measured sizes, features)
    times = np.array([measured[size] for size in sizes])
    if len(sizes) == len(features):
        return Estimate(dict(zip(sizes, times.tolist(), strict=True)))
    weights = _fit(inputs, times)
    milliseconds = {
        size: measured[size] if size in measured else float(values @ weights) for size, values in features.items()
    }
    errors = []
    for index in range(len(sizes)):
        others = np.arange(len(sizes)) != index
        errors.append(abs(inputs[index] @ _fit(inputs[others], times[others]) / times[index] - 1))
    return Estimate(milliseconds, float(np.mean(errors)), float(np.max(errors)))


def _fit(inputs: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the weights (features,), none negative, with the least squared relative error.

    All subsets of the few features are tried: the best of those whose unconstrained solution is not negative.
    """
    scale = inputs.max(axis=0)
    rows, ones = inputs / scale / times[:, None], np.ones(len(times))
    best, least_error = np.zeros(inputs.shape[1]), np.inf
    for count in range(1, inputs.shape[1] + 1):
        for subset in map(list, combinations(range(inputs.shape[1]), count)):
            solution = np.linalg.lstsq(rows[:, subset], ones, rcond=None)[0]
            error = ((rows[:, subset] @ solution - 1) ** 2).sum()
            if (solution >= 0).all() and error < least_error:
                least_error, best = error, np.zeros(inputs.shape[1])
                best[subset] = solution / scale[subset]
    return best
