import numpy as np
import pytest

from poa_hf import SubNetwork
from poa_hf.selection.estimate import Estimate, estimate


def test_latencies_that_add_up_are_estimated_exactly_and_others_with_their_error():
    sizes = [SubNetwork(width, depth) for width in range(1, 6) for depth in range(1, 6)]
    features = {s: np.array([1, s.depths[0], s.width**2 * s.depths[0], s.width * s.depths[0]], float) for s in sizes}
    truth = {size: float(values @ [0.5, 0.2, 0.03, 0]) for size, values in features.items()}
    measured = {size: truth[size] for size in sizes[::3]}
    result = estimate(features, measured)
    assert result.milliseconds == pytest.approx(truth)
    assert result.worst_error < 1e-6
    disturbed = measured | {sizes[12]: 2 * truth[sizes[12]]}
    result = estimate(features, disturbed)
    assert result.milliseconds[sizes[12]] == 2 * truth[sizes[12]]  # what was measured stands
    assert 0.4 < result.worst_error < 0.6 and result.mean_error < 0.3
    everything = estimate(features, truth)
    assert everything == Estimate(truth)


def test_no_estimate_is_negative():
    features = {SubNetwork(1, depth): np.array([1, depth, depth**2, depth**3], float) for depth in range(1, 9)}
    measured = {SubNetwork(1, depth): time for depth, time in ((4, 9.0), (5, 3.0), (6, 8.0), (8, 1.0))}
    assert min(estimate(features, measured).milliseconds.values()) > 0
