import numpy as np
import pytest
from scipy import stats

from poa_hf.evaluation.statistics.intervals import mean_interval, resamples
from poa_hf.evaluation.statistics.paired import (
    BOOTSTRAP,
    MCNEMAR,
    SIGN_FLIPS,
    T_TEST,
    bonett_price_interval,
    holm,
    mcnemar,
    paired_difference,
    resampled_difference,
    sign_flip_test,
)


def test_mcnemars_test_is_that_of_a_textbook():
    # Agresti 2002, section 10.1: 150 and 86 voters changed their mind; the exact p value is a sum of binomials
    tail = sum(float(stats.binom.pmf(k, 236, 0.5)) for k in range(87))
    assert mcnemar(150, 86) == mcnemar(86, 150) == pytest.approx(2 * tail, rel=1e-9)
    assert mcnemar(150, 86) == pytest.approx(3.7e-5, rel=0.05)
    assert mcnemar(0, 0) == 1 and mcnemar(5, 5) == 1 and mcnemar(1, 0) == 1 and mcnemar(6, 0) == 2 / 64


def test_sign_flips_are_scipys_permutation_test():
    differences = np.random.default_rng(0).normal(0.3, 1, 12)
    exact = stats.permutation_test(
        (differences, np.zeros(12)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip_test(differences) == pytest.approx(exact.pvalue, abs=0.015)
    assert sign_flip_test([0.0] * 5) == sign_flip_test([]) == 1
    assert sign_flip_test([0.5]) == 1 and sign_flip_test(np.full(40, 0.1)) == 1e-4
    assert sign_flip_test(differences) == sign_flip_test(-differences)


@pytest.mark.parametrize("images", [20, 200])
def test_intervals_of_accuracies_hold_also_where_few_images_differ(images):
    for first, second in ((0.02, 0.01), (0.2, 0.1), (0.0, 0.0)):
        draws = np.random.default_rng(0).multinomial(images, [first, second, 1 - first - second], size=2000)
        held = [low <= first - second <= high
                for low, high in (bonett_price_interval(*draw[:2], images) for draw in draws)]  # fmt: skip
        assert np.mean(held) > 0.93
    low, high = bonett_price_interval(0, 0, images)
    assert low < 0 < high  # a bootstrap of no differences would be sure of it


def _pairs(generator: np.random.Generator, images: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of two equally good models, on images that are easy or hard for both."""
    shape = (images, 3) if kind == T_TEST else (images,)
    hard = generator.normal(0, 1, shape[:1] + (1,) * (len(shape) - 1))
    draws = generator.normal(0, 0.1, (2, shape[-1])) if kind == T_TEST else np.zeros((2, 1))
    first, second = (hard + part + generator.normal(0, 0.7, shape) for part in draws)
    return (first, second) if kind == SIGN_FLIPS else ((first > 0).astype(float), (second > 0).astype(float))


@pytest.mark.parametrize("kind", [MCNEMAR, SIGN_FLIPS, T_TEST])
def test_of_equal_models_no_more_than_five_per_cent_seem_to_differ(kind):
    found = []
    for trial in range(300):
        generator = np.random.default_rng(trial)
        found.append(paired_difference(*_pairs(generator, 60, kind), seed=trial))
    assert {each.test for each in found} == {kind}
    assert np.mean([each.p_value < 0.05 for each in found]) < 0.075
    held = np.mean([each.interval[0] <= 0 <= each.interval[1] for each in found])
    assert held == pytest.approx(0.955, abs=0.03)


def test_a_small_difference_shows_on_the_same_images_only():
    generator = np.random.default_rng(0)
    second = (generator.random(1000) < 0.6).astype(float)
    first = second.copy()
    first[np.flatnonzero(second == 0)[:20]] = 1
    found = paired_difference(first, second)
    assert found.difference == pytest.approx(0.02) and found.p_value < 1e-5 and found.interval[0] > 0
    assert (found.first_better, found.second_better, found.images) == (20, 0, 1000)
    unpaired = stats.fisher_exact([[first.sum(), 1000 - first.sum()], [second.sum(), 1000 - second.sum()]])
    assert unpaired.pvalue > 0.3
    reverse = paired_difference(second, first)
    assert reverse.p_value == found.p_value and reverse.interval == pytest.approx(
        tuple(-x for x in found.interval[::-1])
    )


def test_images_that_do_not_count_are_left_out_and_nonsense_is_refused():
    values = np.array([0.2, 0.5, np.nan, 0.9])
    found = paired_difference(values, values[::-1])
    assert found.images == 2 and found.difference == 0
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="no outcomes to compare"):
        paired_difference([np.nan], [1.0])


def test_numbers_that_are_no_means_are_compared_by_the_same_resamples():
    """Ratios of sums, of which a paired bootstrap is the usual test: the error rate of equal models, and coverage."""
    small, held = [], []
    for trial in range(200):
        generator = np.random.default_rng(trial)
        size = generator.uniform(1, 3, 60)
        parts = [
            size * np.clip(generator.normal(0.5, 0.1, 60) + shift, 0, 1) for shift in generator.normal(0, 0.2, (2, 60))
        ]
        weights = np.concatenate(list(resamples(60, seed=trial)))
        replicates = tuple(weights @ part / (weights @ size) for part in parts)
        found = resampled_difference(tuple(part.sum() / size.sum() for part in parts), replicates, 60)
        small.append(found.p_value < 0.05)
        held.append(found.interval[0] <= 0 <= found.interval[1])
    assert found.test == BOOTSTRAP and np.mean(small) < 0.1 and np.mean(held) > 0.9
    same = resampled_difference((0.5, 0.5), (replicates[0], replicates[0]), 60)
    assert (same.difference, same.p_value) == (0, 1)
    assert resampled_difference((0.5, 0.4), ([0.5], [0.4]), 1).interval is None
    with pytest.raises(ValueError, match="give those of one seed"):
        resampled_difference((0.5, 0.4), ([0.5, 0.4], [0.4]), 10)


def test_equal_outcomes_differ_in_nothing():
    for outcomes in (np.ones(30), np.linspace(0, 1, 30), np.random.default_rng(0).integers(2, size=(30, 3))):
        found = paired_difference(outcomes, outcomes)
        assert (found.difference, found.p_value) == (0, 1) and found.interval[0] <= 0 <= found.interval[1]


@pytest.mark.parametrize("images", [2, 3, 5])
def test_few_images_that_agree_by_chance_show_nothing(images):
    """In each draw another image may be right, so equal means of images say nothing of other images."""
    small = 0
    for trial in range(200):
        first, second = np.random.default_rng(trial).random((2, images, 3)) < 0.6
        found = paired_difference(first, second)
        assert found.p_value > 0 and (found.difference == 0 or found.interval[0] < found.interval[1])
        small += found.p_value < 0.05
    assert small <= 10
    identity = np.eye(images)
    low, high = paired_difference(identity, np.zeros_like(identity)).interval
    assert low <= 0 and high >= 2 / images and mean_interval(identity) == (low, high)


def test_images_that_all_differ_alike_count_as_often_as_they_are():
    draws = np.random.default_rng(0).random((12, 3))
    for found in (
        paired_difference(draws + 0.1, draws),
        resampled_difference((0.8, 0.7), (draws.ravel() + 0.1, draws.ravel()), 12),
    ):
        assert found.p_value == pytest.approx(stats.binomtest(12, 12).pvalue) and found.interval is None
    same = resampled_difference((0.5, 0.5 + 1e-16), (draws.ravel() + 1e-15, draws.ravel()), 12)
    assert (same.p_value, same.interval) == (1, (0, 0))  # all but for rounding


def test_holm_is_the_step_down_method():
    p_values = [0.01, 0.02, 0.03, 0.5, 0.005]
    # by hand: 5 x 0.005, 4 x 0.01, 3 x 0.02, 2 x 0.03, 1 x 0.5, each at least the one before
    assert holm(p_values) == pytest.approx([0.04, 0.06, 0.06, 0.5, 0.025])
    assert holm([]) == [] and holm([0.3]) == [0.3] and holm([0.9, 0.8]) == [1.0, 1.0]
    # of four true hypotheses, one at least is rejected in at most 5 per cent of cases
    draws = np.random.default_rng(0).random((4000, 4))
    assert np.mean([min(holm(list(draw))) < 0.05 for draw in draws]) < 0.058
