"""What is to be seen in a chart, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..runs.comparison import Comparison
from ..runs.metrics import Metric
from ..selection.prediction import Prediction
from ..sub_network import SubNetwork

Series = tuple[list[int], list[float]]  # steps, and the value at each


def percent(value: float) -> str:
    """Return a share as a reader would write it.

    Example:
        >>> percent(0.4136)
        '41.4 %'
    """
    return f"{100 * value:.1f} %"


def course(series: Series) -> str:
    """Say where a line begins, where it ends and where it is lowest.

    Example:
        >>> course(([1, 2, 3], [9.0, 7.0, 8.0]))
        'From 9 at step 1 to 8 at step 3; lowest, 7, at step 2.'
    """
    steps, values = series
    if len(steps) == 1:
        return f"{values[0]:.4g} at step {steps[0]:,}."
    text = f"From {values[0]:.4g} at step {steps[0]:,} to {values[-1]:.4g} at step {steps[-1]:,}"
    lowest = min(range(len(values)), key=values.__getitem__)
    if 0 < lowest < len(values) - 1:
        text += f"; lowest, {values[lowest]:.4g}, at step {steps[lowest]:,}"
    return f"{text}."


def latest(lines: Mapping[str, Series]) -> str:
    """Say the last value of each of a few lines, or the range of those of many.

    Example:
        >>> latest({"head 0": ([4], [0.5]), "head 1": ([4], [0.25])})
        'Last values: head 0 at 0.5, head 1 at 0.25.'
    """
    values = {name: points[1][-1] for name, points in lines.items()}
    if len(values) == 1:
        [(steps, numbers)] = lines.values()
        return f"{numbers[-1]:.3g} at step {steps[-1]:,}."
    if len(values) <= 4:
        return f"Last values: {', '.join(f'{name} at {value:.3g}' for name, value in values.items())}."
    return f"Last values: from {min(values.values()):.3g} to {max(values.values()):.3g}."


def peak(series: Series) -> str:
    """Say where a line is highest, and its last value.

    Example:
        >>> peak(([1, 2, 3], [0.001, 0.002, 0.0005]))
        'Highest, 0.002, at step 2; 0.0005 at step 3.'
    """
    steps, values = series
    highest = max(range(len(values)), key=values.__getitem__)
    text = f"Highest, {values[highest]:.2g}, at step {steps[highest]:,}"
    return f"{text}; {values[-1]:.2g} at step {steps[-1]:,}." if highest < len(values) - 1 else f"{text}, the last."


def accuracies(lines: Mapping[str, Series]) -> str:
    """Say which size is the best at the last evaluation, and when the mean was the best.

    Args:
        lines: Accuracies from 0 to 1 by size, and their mean as `mean`.
    """
    sizes = {name: points[1][-1] for name, points in lines.items() if name not in ("mean", "start")}
    parts = []
    if sizes:
        best = max(sizes, key=sizes.__getitem__)
        parts.append(f"At the last evaluation {best} is the best size with {percent(sizes[best])}.")
    if mean := lines.get("mean"):
        steps, values = mean
        at = max(range(len(values)), key=values.__getitem__)
        parts.append(f"The mean is highest at step {steps[at]:,} with {percent(values[at])}.")
    return " ".join(parts)


def over_sizes(measured: Comparison, parameters: Mapping[SubNetwork, float]) -> str:
    """Say which size is the best, and how its quality compares with that of the cheapest one.

    Args:
        measured: The quality of the measured sizes.
        parameters: The parameters of each size.
    """
    values, best = measured.values, measured.best
    text = f"Best: {best} with {measured.kind.shown(values[best])}."
    cheapest = min(values, key=parameters.__getitem__)
    if cheapest == best or values[best] <= 0 or not measured.kind.higher_is_better:
        return text
    kept, share = values[cheapest] / values[best], parameters[cheapest] / parameters[best]
    return f"{text} {cheapest} reaches {100 * kept:.0f} % of that with {100 * share:.0f} % of its parameters."


def on_front(
    worth: Mapping[SubNetwork, float], cost: Mapping[SubNetwork, float], front: Sequence[SubNetwork], percent: bool
) -> str:
    """Say how many sizes no other beats, and the cheapest that is almost as good as the best.

    Args:
        worth: How good each size is, higher is better.
        cost: What each size costs.
        front: The sizes that no other beats.
        percent: Whether worth is a share: almost is within one point of it, otherwise within 2 %.
    """
    text = f"{len(front)} of {len(worth)} sizes {'is' if len(front) == 1 else 'are'} on the line."
    best = max(worth, key=worth.__getitem__)
    within = 0.01 if percent else 0.02 * abs(worth[best])
    near = min((size for size in worth if worth[size] >= worth[best] - within), key=cost.__getitem__)
    if near != best and cost[best] > 0:
        almost = "one point" if percent else "2 %"
        text += f" {near} comes within {almost} of {best} at {100 * cost[near] / cost[best]:.0f} % of its cost."
    return text


def predicted(prediction: Prediction, kind: Metric) -> str:
    """Say which cells are predicted, and how far off such predictions are."""
    points = " points" if kind.is_share else ""
    mean, worst = (kind.shown(error, unit=False) for error in (prediction.mean_error, prediction.worst_error))
    return (
        f"Striped cells with ~ are predicted by a smooth surface over width and depth, fitted to {prediction.measured} "
        f"sizes: {mean}{points} off on average, {worst} at worst, when each measured size is predicted from the others."
    )
