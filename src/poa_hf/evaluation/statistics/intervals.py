"""How sure a measured number is: 95 % intervals, for other test images of the same kind.

Accuracies get Wilson's interval, which is right for few images and near 0 and 1 too; means of other outcomes a
percentile bootstrap over images; outcomes that were measured several times per image, such as with several draws of
the labels, an interval that covers both other images and other draws. Numbers that are no means, such as mutual
information, are computed again on `resamples` of the images and given to `replicated_interval`.

Sources: Wilson 1927; Efron and Tibshirani 1993, chapter 13; Hesterberg 2015, "What teachers should know about the
bootstrap", section 3.3 (percentiles widened as Student's t is, for few images); Satterthwaite 1946.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
REPLICATES = 1000
_AT_ONCE = 2**22  # image counts of replicates that are in memory at a time
ROUNDING = 1e-9  # by how much equal numbers may differ that were summed in other orders

Interval = tuple[float, float]


def mean_interval(outcomes: ArrayLike, seed: int = 0, confidence: float = CONFIDENCE) -> Interval | None:
    """Return the interval of the mean of outcomes.

    Args:
        outcomes: One number per image, (N,), or several, (N, R), from R independent repeats such as draws of the
            labels. Images with NaN do not count.
        seed: The seed of the bootstrap. The same seed gives the same interval.
        confidence: The share of such intervals that hold the true mean.

    Returns:
        The interval, or None where the outcomes do not tell: none at all, or all alike and neither 0 nor 1.

    Example:
        >>> mean_interval([1.0] * 90 + [0.0] * 10)
        (0.8256343384950865, 0.9447708629393249)
    """
    values = np.asarray(outcomes, dtype=np.float64)
    values = values[~np.isnan(values).any(axis=tuple(range(1, values.ndim)))]
    if values.ndim == 2 and (values == values[:, :1]).all():  # the repeats do not differ
        values = values[:, 0]
    if len(values) == 0:
        return None
    if values.ndim == 2:
        return _repeated_interval(values, confidence)
    if np.isin(values, (0, 1)).all():
        return wilson_interval(int(values.sum()), len(values), confidence)
    if (values == values[0]).all():
        return None
    means = np.concatenate([counts @ values / len(values) for counts in resamples(len(values), seed=seed)])
    return percentile_interval(means, len(values), confidence)


def wilson_interval(successes: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Return Wilson's interval of a proportion."""
    interval = stats.binomtest(successes, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def resamples(count: int, replicates: int = REPLICATES, seed: int = 0) -> Iterator[NDArray[np.float64]]:
    """Yield bootstrap replicates: how often each image is in them, (B, count), B replicates at a time.

    `counts @ values / count` is the mean of each replicate. The replicates depend on `count` and `seed` only, so
    numbers that are measured on the same images can be compared replicate by replicate.
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // count)
    for start in range(0, replicates, at_once):
        size = min(at_once, replicates - start)
        drawn = generator.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)


def percentile_interval(replicates: ArrayLike, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval between two percentiles of bootstrap replicates.

    The percentiles are further out than `confidence` says, as Student's t is wider than the normal distribution:
    plain ones hold the true value too seldom with few images.

    Args:
        replicates: The number of each replicate.
        count: The number of images, at least 2.
    """
    tail = (1 - confidence) / 2
    tail = stats.norm.cdf(np.sqrt(count / (count - 1)) * stats.t.ppf(tail, count - 1))
    low, high = np.quantile(np.asarray(replicates), [tail, 1 - tail])
    return float(low), float(high)


def replicated_interval(
    replicates: ArrayLike, count: int, mean: float | None = None, bounds: Interval = (0.0, 1.0)
) -> Interval | None:
    """Return the 95 % interval of a number that was computed again on `resamples` of the images.

    Args:
        replicates: The number on each of them.
        count: The number of images.
        mean: Where to move the mean of the replicates, if they are too high or too low on average.
        bounds: The least and the greatest number that there can be.

    Returns:
        The interval, or None where the replicates do not tell, being all alike but for rounding.
    """
    values = np.asarray(replicates, dtype=np.float64)
    if np.ptp(values) <= ROUNDING:
        return None
    moved = values if mean is None else values - values.mean() + mean
    low, high = np.clip(percentile_interval(moved, count), *bounds)
    return float(low), float(high)


def two_way(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the standard error of the mean of (N, R) values of N images and R repeats, both drawn at random.

    The variance of the mean is that of a two-way layout with random effects, the degrees of freedom are
    Satterthwaite's. A bootstrap of three repeats would find a third too little variance between them. The mean square
    between images is expected to be at least the residual one, so the larger of the two counts: few images may have
    equal means by chance.

    Args:
        values: (N, R), both at least 2.

    Returns:
        The standard error, and its degrees of freedom.
    """
    images, repeats = values.shape
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    residuals = values - rows[:, None] - columns + values.mean()
    between_repeats = images * columns.var(ddof=1)
    residual = (residuals**2).sum() / ((images - 1) * (repeats - 1))
    between_images = max(repeats * rows.var(ddof=1), residual)
    variance = between_images + max(between_repeats - residual, 0.0)
    spread = between_images**2 / (images - 1) + between_repeats**2 / (repeats - 1)
    freedom = variance**2 / spread if spread > 0 else images - 1
    return float(np.sqrt(variance / values.size)), float(freedom)


def _repeated_interval(values: NDArray[np.float64], confidence: float) -> Interval | None:
    if len(values) == 1:
        return None
    mean = values.mean()
    error, freedom = two_way(values)
    half = stats.t.ppf((1 + confidence) / 2, freedom) * error
    # no mean is outside of the values
    return float(max(mean - half, values.min())), float(min(mean + half, values.max()))
