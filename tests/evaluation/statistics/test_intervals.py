import numpy as np
import pytest
from scipy import stats

from poa_hf.evaluation.statistics.intervals import mean_interval, percentile_interval, resamples, wilson_interval


@pytest.mark.parametrize(("right", "count"), [(0, 1), (0, 40), (37, 40), (1, 7), (500, 1000)])
def test_accuracies_get_wilsons_interval(right, count):
    p, z = right / count, stats.norm.ppf(0.975)
    centre = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2))
    expected = pytest.approx((centre - half, centre + half), abs=1e-9)
    assert wilson_interval(right, count) == expected
    assert mean_interval([1.0] * right + [0.0] * (count - right)) == expected


def test_other_means_get_that_of_scipys_bootstrap():
    values = np.random.default_rng(0).beta(0.5, 0.7, 400)
    reference = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    width = reference.high - reference.low
    assert mean_interval(values) == pytest.approx(tuple(reference), abs=0.06 * width)
    assert mean_interval(values) == mean_interval([*values, np.nan]) != mean_interval(values, seed=1)


def test_resamples_draw_every_image_equally_often():
    counts = np.concatenate(list(resamples(7, replicates=4000)))
    assert counts.shape == (4000, 7) and (counts.sum(axis=1) == 7).all()
    assert counts.mean(axis=0) == pytest.approx(1, abs=0.06) and counts.var() == pytest.approx(6 / 7, abs=0.03)
    blocks = [len(block) for block in resamples(2**21, replicates=5)]  # as many as fit into memory
    assert blocks == [2, 2, 1]


def test_what_cannot_be_known_is_not_said():
    assert mean_interval([]) is None and mean_interval([np.nan]) is None and mean_interval([0.4, 0.4]) is None
    assert mean_interval([[0.0, 1.0]]) is None
    low, high = mean_interval([1.0])  # one image that is right says little, but something
    assert low < 0.25 and high == pytest.approx(1)
    assert mean_interval(np.ones((30, 3))) == wilson_interval(30, 30)


def _share_that_holds(truth: float, sample, trials: int = 400) -> float:
    intervals = np.array([mean_interval(sample(np.random.default_rng(trial)), seed=trial) for trial in range(trials)])
    return ((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])).mean()


def test_few_images_are_enough():
    assert _share_that_holds(0.5 / 1.2, lambda generator: generator.beta(0.5, 0.7, 12)) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("between_draws", [0.0, 0.1, 0.2])
def test_intervals_of_repeats_hold_for_other_images_and_other_draws(between_draws):
    def sample(generator):
        images, draws = generator.normal(0, 1, (100, 1)), generator.normal(0.3, between_draws, 3)
        return (images + draws + generator.normal(0, 0.5, (100, 3)) > 0).astype(float)

    truth = stats.norm.cdf(0.3 / np.sqrt(1 + between_draws**2 + 0.25))
    assert _share_that_holds(truth, sample) == pytest.approx(0.95, abs=0.035)
    # an interval for other images alone would not hold
    if between_draws == 0.2:
        assert _share_that_holds(truth, lambda generator: sample(generator).mean(axis=1)) < 0.87


def test_percentiles_of_many_images_are_the_plain_ones():
    replicates = np.random.default_rng(0).normal(size=2000)
    plain = tuple(np.quantile(replicates, [0.025, 0.975]))
    assert percentile_interval(replicates, 10**6) == pytest.approx(plain, abs=1e-3)
    low, high = percentile_interval(replicates, 10)
    assert low < plain[0] and plain[1] < high
