"""Predict the quality of sizes that were not evaluated, by a smooth surface over width and depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..elastic import ElasticSpace
from ..sub_network import SubNetwork

# Penalties of the squared weights, of which leave-one-out chooses; every term has a standard deviation of 1.
_PENALTIES = (0.0, *np.geomspace(1e-3, 1e2, 6))


@dataclass(frozen=True)
class Prediction:
    """Predicted values of sizes that were not measured.

    Attributes:
        values: The prediction of each size that lies among the measured ones; sizes beyond them have none.
        measured: The number of measured sizes that the surface was fitted to.
        mean_error: The mean absolute error, in the unit of the values, of predicting each measured size from the other
            ones, with everything chosen anew from these others.
        worst_error: The largest of these errors.
    """

    values: dict[SubNetwork, float]
    measured: int
    mean_error: float
    worst_error: float


def predict(
    space: ElasticSpace, measured: Mapping[SubNetwork, float], low: float = -np.inf, high: float = np.inf
) -> Prediction | None:
    """Predict the values of the sizes of a space that were not measured.

    The surface is a polynomial of the logarithms of the width and of the depths that vary in the space: linear, with
    products or with squares or with both, and at most as many terms as measured sizes less one. The terms and a ridge
    penalty are those with the least squared error by leave-one-out. A size is predicted only if that does not
    extrapolate: it is within the measured widths and depths, and its leverage (its distance from the measured sizes in
    the space of the terms) is at most the largest one of a measured size.

    Args:
        space: All sizes.
        measured: The values of those that were measured.
        low: The least value that there is.
        high: The largest value that there is.

    Returns:
        The predictions, or None where they are of no use: nothing is left to predict, fewer sizes were measured than
        the linear surface has terms plus two, they do not vary in width and in each depth independently, or the
        mean error by leave-one-out is not smaller than that of predicting the mean of the other sizes, by one standard
        error of the difference at least.

    Example:
        >>> space = ElasticSpace((32, 48, 64), ((2,), (3,), (4,)))
        >>> measured = {size: 0.1 * np.log(size.width) for size in space if size != SubNetwork(48, 3)}
        >>> {str(size): float(round(value / np.log(48), 3)) for size, value in predict(space, measured).values.items()}
        {'48x3': 0.1}
    """
    sizes = [size for size in space if size in measured]
    others = [size for size in space if size not in measured]
    axes = _axes(space)
    if not others or not axes.shape[1] or len(sizes) < axes.shape[1] + 3:
        return None
    rows = {size: row for row, size in enumerate(space)}
    at, values = [rows[size] for size in sizes], np.array([measured[size] for size in sizes], dtype=float)
    forms = list(_forms(axes))
    if np.linalg.matrix_rank(forms[0][at] - forms[0][at].mean(0)) < axes.shape[1]:
        return None
    errors, plain_errors = np.empty(len(sizes)), np.empty(len(sizes))
    for left_out, row in enumerate(at):
        kept = np.arange(len(at)) != left_out
        fit = _best_fit([form[at][kept] for form in forms], values[kept])
        if fit is None:
            return None
        errors[left_out] = abs(np.clip(fit(forms[fit.form][row]), low, high) - values[left_out])
        plain_errors[left_out] = abs(values[kept].mean() - values[left_out])
    fit = _best_fit([form[at] for form in forms], values)
    gains = plain_errors - errors
    if fit is None or not gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains)):
        return None
    terms = forms[fit.form]
    leverages = _leverages(terms, terms[at])
    inside = leverages <= leverages[at].max() + 1e-9
    inside &= ((axes >= axes[at].min(0)) & (axes <= axes[at].max(0))).all(1)
    predicted = {size: float(np.clip(fit(terms[rows[size]]), low, high)) for size in others if inside[rows[size]]}
    if not predicted:
        return None
    return Prediction(predicted, len(sizes), float(errors.mean()), float(errors.max()))


@dataclass(frozen=True)
class _Fit:
    """A fitted surface: the number of its form, its weights, and the point through which it goes."""

    form: int
    weights: np.ndarray
    centre: np.ndarray
    mean: float

    def __call__(self, terms: np.ndarray) -> float:
        return float(self.mean + (terms - self.centre) @ self.weights)


def _axes(space: ElasticSpace) -> np.ndarray:
    """Return the logarithms of what varies in a space, width and depths (sizes, axes), from -1 to 1 each."""
    columns = np.log([(size.width, *size.depths) for size in space])
    low, high = columns.min(0), columns.max(0)
    varies = high > low
    return 2 * (columns[:, varies] - low[varies]) / (high - low)[varies] - 1


def _forms(axes: np.ndarray) -> Iterator[np.ndarray]:
    """Return the terms (sizes, terms) of each form of the surface, without the constant; fewer terms first."""
    products = [axes[:, [one]] * axes[:, [other]] for one, other in combinations(range(axes.shape[1]), 2)]
    # an axis of two values has no square
    squares = [axes[:, [axis]] ** 2 for axis in range(axes.shape[1]) if len(np.unique(axes[:, axis])) > 2]
    yield axes / axes.std(0)
    for more in filter(None, (squares, products, products + squares if products and squares else [])):
        terms = np.hstack([axes, *more])
        yield terms / terms.std(0)


def _best_fit(forms: list[np.ndarray], values: np.ndarray) -> _Fit | None:
    """Return the fit of the form and the penalty with the least squared error by leave-one-out.

    The errors are exact: a residual over one minus the leverage, as the constant is not penalised.
    """
    best, least_error = None, np.inf
    count, mean = len(values), values.mean()
    for number, terms in enumerate(forms):
        if terms.shape[1] + 1 > count - 1:
            continue
        centre = terms.mean(0)
        left, scales, right = np.linalg.svd(terms - centre, full_matrices=False)
        along = left.T @ (values - mean)
        for penalty in _PENALTIES:
            if penalty == 0 and scales[-1] < 1e-6 * scales[0]:
                continue
            kept = scales**2 / (scales**2 + penalty)
            residuals = values - mean - left @ (kept * along)
            leverages = 1 / count + (left**2) @ kept
            if leverages.max() > 1 - 1e-6:  # a size that determines a term alone says nothing about its error
                continue
            error = ((residuals / (1 - leverages)) ** 2).sum()
            if error < least_error:
                weights = right.T @ (scales / (scales**2 + penalty) * along)
                best, least_error = _Fit(number, weights, centre, float(mean)), error
    return best


def _leverages(terms: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return the leverage of each row of `terms` in a fit to the measured rows."""
    centre = measured.mean(0)
    inverse = np.linalg.pinv((measured - centre).T @ (measured - centre))
    return 1 / len(measured) + np.einsum("ij,jk,ik->i", terms - centre, inverse, terms - centre)
