"""Predicted qualities of sizes against NumPy's least squares, on simulated surfaces and on the records of a run."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from poa_hf import ElasticSpace, PoaSwinConfig, PoaViTConfig, SubNetwork
from poa_hf.models.configuration_poa_resnet import PoaResNetConfig
from poa_hf.runs.comparison import compare, one_per_measure
from poa_hf.runs.evaluations import load_evaluations
from poa_hf.selection.prediction import predict

VIT = PoaViTConfig().space
RECORDS = Path(__file__).parents[2] / "benchmarks/results/2026-11-25-cifar10/evaluations.json"
CIFAR10 = ElasticSpace((32, 48, 64), ((2,), (3,), (4,)))


def corners(space: ElasticSpace) -> list[SubNetwork]:
    """The smallest, a middle and the largest of each axis, all combined."""
    stages = [sorted(set(axis)) for axis in zip(*((size.width, *size.depths) for size in space), strict=True)]
    kept = [sorted({axis[0], axis[len(axis) // 2], axis[-1]}) for axis in stages]
    return [SubNetwork(width, depths) for width, *depths in product(*kept)]


def logs(sizes) -> np.ndarray:
    return np.log([(size.width, *size.depths) for size in sizes])


def test_a_plane_is_that_of_least_squares():
    """Noise about a plane whose slopes differ from 0: without a penalty, the weights are those of lstsq."""
    sizes = [SubNetwork(width, depth) for width in (384, 704, 1024) for depth in (12, 24)]
    noise = 1e-4 * np.array([1, -1, 2, -2, 1, -1])
    values = 0.5 + logs(sizes) @ [0.1, 0.05] + noise
    found = predict(VIT, dict(zip(sizes, values, strict=True)))

    def design(sizes):
        return np.column_stack([np.ones(len(sizes)), logs(sizes)])

    weights = np.linalg.lstsq(design(sizes), values, rcond=None)[0]
    others = list(found.values)
    assert len(others) == len(VIT) - len(sizes)
    np.testing.assert_allclose(list(found.values.values()), design(others) @ weights, atol=3e-4)
    errors = []
    for index in range(len(sizes)):
        kept = [i for i in range(len(sizes)) if i != index]
        weights = np.linalg.lstsq(design(sizes)[kept], values[kept], rcond=None)[0]
        errors.append(abs(design(sizes)[index] @ weights - values[index]))
    assert found.measured == 6 and found.mean_error == pytest.approx(np.mean(errors), abs=5e-4)


@pytest.mark.parametrize("space", [VIT, PoaSwinConfig().space, PoaResNetConfig().space], ids=["vit", "swin", "resnet"])
def test_smooth_surfaces_are_found_again(space):
    """A surface of saturating returns, measured at the corners and middles of the space, with noise and without."""

    def surface(sizes):
        axes = logs(sizes) - logs([space.smallest])
        return 0.5 + 0.3 * (1 - np.exp(-axes.sum(1) - 0.5 * axes[:, 0] * axes[:, -1]))

    sizes = corners(space)
    noise = np.random.default_rng(0).normal(size=len(sizes))
    for scale, error in ((0, 0.006), (0.002, 0.008)):
        measured = dict(zip(sizes, surface(sizes) + scale * noise, strict=True))
        found = predict(space, measured)
        others = [size for size in space if size not in measured]
        assert set(found.values) <= set(others) and len(found.values) > 0.9 * len(others)
        off = np.abs(np.array(list(found.values.values())) - surface(list(found.values)))
        assert off.mean() < error and off.mean() < found.mean_error <= found.worst_error


def test_values_stay_between_their_limits():
    measured = {size: min(1.0, 0.9 + 0.06 * np.log(size.width / 384)) for size in corners(VIT)}
    found = predict(VIT, {**measured, SubNetwork(1024, 12): 1.0}, high=0.95)
    assert max(found.values.values()) == 0.95


def test_what_does_not_help_is_not_predicted():
    sizes, generator = corners(VIT), np.random.default_rng(1)
    slope = {size: float(np.log(size.width * size.depths[0])) for size in VIT}
    assert predict(VIT, slope) is None  # nothing is left
    assert predict(VIT, {size: slope[size] for size in VIT.named.values()}) is None  # too few
    assert predict(VIT, {size: slope[size] for size in sizes[:4]}) is None
    assert predict(VIT, {size: slope[size] for size in [*sizes[:4], sizes[-1]]}) is not None
    narrow = {size: slope[size] for size in VIT if size.width == 384}
    assert predict(VIT, narrow) is None  # says nothing of other widths
    diagonal = [SubNetwork(width, 12 + at) for at, width in enumerate(sorted({size.width for size in VIT}))]
    assert predict(VIT, {size: slope[size] for size in diagonal}) is None  # nor this of wide and shallow ones
    assert predict(VIT, dict.fromkeys(sizes, 0.5)) is None  # the mean is as good
    offered = sum(predict(VIT, {size: generator.normal() for size in sizes}) is not None for _ in range(40))
    assert offered <= 6  # noise
    assert predict(ElasticSpace((8,), ((2,), (3,), (4,))), {SubNetwork(8, 2): 0.5}) is None
    assert predict(ElasticSpace((8,), ((2,),)), {}) is None


def test_sizes_beyond_the_measured_ones_are_left_out():
    inner = [SubNetwork(width, depth) for width in (384, 512, 640) for depth in (12, 14, 16)]
    found = predict(VIT, {size: float(np.log(size.width * size.depths[0])) for size in inner})
    assert {(size.width, size.depths[0]) for size in found.values} == set(
        product((384, 448, 512, 576, 640), range(12, 17))
    ) - {(size.width, size.depths[0]) for size in inner}


def test_a_run_on_cifar10_is_predicted_within_the_stated_error():
    """Each size of the recorded run from the eight others: mostly nearer than the mean is, and as near as stated."""
    comparisons = [
        each for each in one_per_measure(compare(load_evaluations(RECORDS), CIFAR10)) if len(each.values) > 8
    ]
    assert len(comparisons) > 8
    shares = []
    for comparison in comparisons:
        for size, value in comparison.values.items():
            others = {other: known for other, known in comparison.values.items() if other != size}
            found = predict(CIFAR10, others)
            if found is not None and size in found.values:
                shares.append(abs(found.values[size] - value) / found.worst_error)
    assert len(shares) > 15 and np.median(shares) < 0.5 and np.mean(np.array(shares) < 1.2) > 0.9
