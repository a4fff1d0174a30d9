"""Whether two models differ: paired differences on the same test images, with intervals and tests.

Two numbers whose intervals overlap may still differ beyond doubt, as most images are easy for both models or hard for
both. So what counts is the difference on each image. By kind of outcomes (`Score.outcomes`):

| outcomes | interval of the difference | test |
| --- | --- | --- |
| 0 or 1 | Bonett and Price's, which is right where few images differ too | McNemar's, exact |
| other numbers | percentile bootstrap over images | sign flips of the differences of images |
| several per image, such as draws of labels | for other images and other draws | t test by the same variance |
| none, such as mutual information or mIoU | paired bootstrap over images (`Score.replicates`) | t test by its error |

Sources: McNemar 1947; Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial
proportions based on paired data"; Holm 1979; Phipson and Smyth 2010 for p values of random permutations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .intervals import CONFIDENCE, ROUNDING, Interval, percentile_interval, resamples, two_way

PERMUTATIONS = 9_999
_AT_ONCE = 2**22  # signs that are in memory at a time

MCNEMAR, SIGN_FLIPS, T_TEST = "McNemar's exact test", "sign-flip permutation test", "two-way t test"
BOOTSTRAP = "t test by the paired bootstrap's error"


@dataclass(frozen=True)
class PairedDifference:
    """How much the mean outcome of one model is above that of another on the same images.

    Args:
        difference: The first mean minus the second.
        interval: The 95 % interval of the difference; None for a single image, or where all images differ alike.
        p_value: How probable a difference at least this large is between equal models.
        test: The name of the test that gives it.
        images: The number of images that count.
        first_better: The number of images on which the first model's outcome is higher; None for a number that is no
            mean over images.
        second_better: The number of images on which the second model's outcome is higher.
    """

    difference: float
    interval: Interval | None
    p_value: float
    test: str
    images: int
    first_better: int | None = None
    second_better: int | None = None


def paired_difference(first: ArrayLike, second: ArrayLike, seed: int = 0) -> PairedDifference:
    """Compare the outcomes of two models on the same images.

    Args:
        first: One number per image, (N,), or one per image and repeat, (N, R). Images with NaN do not count.
        second: The numbers of the other model, in the same order of images and repeats.
        seed: The seed of the bootstrap and of the permutations.

    Raises:
        ValueError: For outcomes of different shapes, or none that count.

    Example:
        >>> found = paired_difference([1.0] * 90 + [0.0] * 10, [1.0] * 80 + [0.0] * 20)
        >>> found.first_better, found.second_better, found.p_value
        (10, 0, 0.001953125)
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim not in (1, 2):
        raise ValueError(f"Outcomes {a.shape} and {b.shape} cannot be paired: give those of the same images.")
    counts = ~np.isnan(a + b).any(axis=tuple(range(1, a.ndim)))
    a, b = a[counts], b[counts]
    if len(a) == 0:
        raise ValueError("There are no outcomes to compare: give those of at least one image.")
    if a.ndim == 2 and (a == a[:, :1]).all() and (b == b[:, :1]).all():
        a, b = a[:, 0], b[:, 0]  # the repeats do not differ
    differences = a - b
    of_images = differences if a.ndim == 1 else differences.mean(axis=1)
    better, worse = int((of_images > 0).sum()), int((of_images < 0).sum())
    if a.ndim == 2:
        interval, p_value = _two_way(differences)
        test = T_TEST
    elif np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        interval = bonett_price_interval(better, worse, len(a))
        p_value, test = mcnemar(better, worse), MCNEMAR
    else:
        interval = _bootstrap(differences, seed)
        p_value, test = sign_flip_test(differences, seed), SIGN_FLIPS
    return PairedDifference(float(of_images.mean()), interval, p_value, test, len(a), better, worse)


def resampled_difference(
    values: tuple[float, float], replicates: tuple[ArrayLike, ArrayLike], images: int
) -> PairedDifference:
    """Compare a number of two models that is no mean over images, by the same resamples of the test images.

    Args:
        values: The number of the first and of the second model.
        replicates: The numbers of both on each resample (`Score.replicates`).
        images: The number of images.

    Raises:
        ValueError: For replicates that do not belong together.
    """
    first, second = (np.asarray(part, dtype=np.float64) for part in replicates)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"Replicates {first.shape} and {second.shape} cannot be paired: give those of one seed.")
    difference = values[0] - values[1]
    if images < 2:
        return PairedDifference(difference, None, 1.0, BOOTSTRAP, images)
    spread = first - second
    error = spread.std(ddof=1)
    if error <= ROUNDING:
        return PairedDifference(difference, *_all_alike(difference, images), BOOTSTRAP, images)
    interval = percentile_interval(spread - spread.mean() + difference, images)  # without the bootstrap's bias
    p_value = float(2 * stats.t.sf(abs(difference) / error, images - 1))
    return PairedDifference(difference, interval, p_value, BOOTSTRAP, images)


def mcnemar(first_only: int, second_only: int) -> float:
    """Return the p value of McNemar's exact test, from the numbers of images that only one of two models gets right."""
    if first_only + second_only == 0:
        return 1.0
    return float(stats.binomtest(first_only, first_only + second_only, 0.5).pvalue)


def bonett_price_interval(first_only: int, second_only: int, images: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of the difference of two proportions of the same images.

    A bootstrap would give an interval without any width where the models agree on every image.

    Args:
        first_only: The number of images that only the first model gets right.
        second_only: The number of images that only the second model gets right.
        images: The number of all images.
        confidence: The share of such intervals that hold the true difference.
    """
    first, second = ((count + 1) / (images + 2) for count in (first_only, second_only))
    half = stats.norm.ppf((1 + confidence) / 2) * np.sqrt((first + second - (first - second) ** 2) / (images + 2))
    return float(max(first - second - half, -1.0)), float(min(first - second + half, 1.0))


def sign_flip_test(differences: ArrayLike, seed: int = 0, permutations: int = PERMUTATIONS) -> float:
    """Return how often the mean of differences is as far from 0 when the sign of each is drawn at random.

    Under the hypothesis that two models are equal, each image's difference could as well have had the other sign. The
    measured signs count as one of the draws, so the p value is never 0.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if len(values) == 0:
        return 1.0
    generator = np.random.default_rng(seed)
    limit = abs(values.sum()) * (1 - 1e-12)  # sums in another order differ by rounding
    as_large, at_once = 1, max(1, _AT_ONCE // len(values))
    for start in range(0, permutations, at_once):
        size = min(at_once, permutations - start)
        signs = 2.0 * generator.integers(2, size=(size, len(values)), dtype=np.int8) - 1
        as_large += int((np.abs(signs @ values) >= limit).sum())
    return as_large / (permutations + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values for several comparisons at once, by Holm's method.

    Of those below 0.05, all are right with a probability of at least 95 %, whatever the comparisons have in common.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _bootstrap(differences: NDArray[np.float64], seed: int) -> Interval | None:
    count = len(differences)
    if count == 1:
        return None
    means = np.concatenate([counts @ differences / count for counts in resamples(count, seed=seed)])
    return percentile_interval(means, count)


def _all_alike(difference: float, images: int) -> tuple[Interval | None, float]:
    """Return interval and p value where nothing varies, so that no error is known: only how many images agree."""
    if abs(difference) <= ROUNDING:
        return (0.0, 0.0), 1.0
    return None, mcnemar(images, 0)


def _two_way(differences: NDArray[np.float64]) -> tuple[Interval | None, float]:
    if len(differences) == 1:
        return None, 1.0
    mean = differences.mean()
    error, freedom = two_way(differences)
    if error <= ROUNDING:
        return _all_alike(float(mean), len(differences))
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error
    interval = float(max(mean - half, differences.min())), float(min(mean + half, differences.max()))
    return interval, float(2 * stats.t.sf(abs(mean) / error, freedom))
