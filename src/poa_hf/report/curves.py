"""The report's section of curves: how quality falls as more of an image is taken away or changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..figures import charts
from ..formatting import capitalised
from ..runs.comparison import Comparison, images_of, one_per_measure
from ..runs.evaluations import Evaluation
from ..runs.facts import RunFacts
from ..runs.metrics import display_order
from ..sub_network import SubNetwork
from . import plots
from .captions import Series
from .section import Chart, Section

_MOST_LINES = plots.LINE_COLORS
_MOST_SERIES = 24  # of one task
_LONGEST_NAME = 60
_TOO_LARGE = 1e100


@dataclass(frozen=True)
class Curve:
    """Values of one size over a ratio or a strength, by the name of the series."""

    x_name: str
    series: dict[str, Series]


Curves = Mapping[SubNetwork, Curve]


def curves_section(facts: RunFacts, costs: Mapping[SubNetwork, Any]) -> Section | None:
    """Make the section that shows the curves of all tasks that record some, or return None without any.

    Each series of a task (a kind of corruption, a choice of patches) has a chart with the sizes as lines: all of them,
    or some from the cheapest to the dearest.

    Args:
        facts: What is known of the run.
        costs: The costs of each size.
    """
    section = Section("curves", "Robustness")
    section.text = "Lines are sizes. The charts of one task on one dataset have the same vertical axis."
    groups: dict[tuple, list[tuple[Comparison, Curves]]] = {}
    compared = one_per_measure(facts.comparisons)
    for comparison in sorted(compared, key=lambda each: (each.example.dataset, display_order(each.example))):
        found = {size: curve for size, record in comparison.records.items() if (curve := read_curve(record))}
        shown = _some(sorted(found, key=lambda size: (costs[size].parameters, costs[size].flops)))
        if shown:
            task = (comparison.example.task, comparison.metric, comparison.example.test_set)
            groups.setdefault(task, []).append((comparison, {size: found[size] for size in shown}))
    for members in groups.values():
        ends = _ends(curves for _, curves in members)
        for comparison, curves in members:
            section.charts += _charts(comparison, curves, ends, facts.steps, len(section.charts) + 1)
    return section if section.charts else None


def read_curve(record: Evaluation) -> Curve | None:
    """Return the curve in a record's details: `{"x_name": str, "x": [..], "series": {name: [..]}}`.

    A series has a value, or null, for each x. What is no curve, as in a file that another program wrote, is left out.
    """
    found = record.details.get("curve")
    if not isinstance(found, dict) or not isinstance(found.get("series"), dict):
        return None
    x, name = found.get("x"), found.get("x_name")
    if not isinstance(x, list) or not x or not all(map(_is_number, x)):
        return None
    series = {}
    for title, values in list(found["series"].items())[:_MOST_SERIES]:
        if isinstance(values, list) and len(values) == len(x):
            points = sorted((at, value) for at, value in zip(x, values, strict=True) if _is_number(value))
            if points:
                series[title[:_LONGEST_NAME]] = [at for at, _ in points], [value for _, value in points]
    return Curve(name[:_LONGEST_NAME] if isinstance(name, str) else "", series) if series else None


def _ends(members: Iterable[Curves]) -> tuple[float, float]:
    """Return where the vertical axis of the charts of some curves begins and ends: at 0 or below, and above all."""
    series = [ys for curves in members for curve in curves.values() for _, ys in curve.series.values()]
    values = [value for ys in series for value in ys]
    return min(0.0, *values), 1.04 * max(values) if max(values) > 0 else 1.0


def _charts(
    comparison: Comparison, curves: Curves, ends: tuple[float, float], step: int | None, first: int
) -> list[Chart]:
    """Make a chart of each series, with names numbered from `first`."""
    names = dict.fromkeys(name for curve in curves.values() for name in curve.series)
    x_name = next(iter(curves.values())).x_name
    options: dict[str, Any] = {"percent": comparison.kind.is_share, "x_name": x_name, "bottom": ends[0], "top": ends[1]}
    record = comparison.example
    at = "" if comparison.step in (None, step) else f" at step {comparison.step:,}"
    made = []
    for number, name in enumerate(names, first):
        lines = {str(size): curve.series[name] for size, curve in curves.items() if name in curve.series}
        measure = capitalised(comparison.metric_name)
        title = f"{measure}: {name.replace('_', ' ')}" if len(names) > 1 else measure
        plot = plots.line_plot(lines, title, **options)
        caption = f"{_largest(lines, comparison)} On {record.dataset}{at} ({images_of(record)})."
        made.append(Chart(f"curve-{number}", title, caption, plot, partial(charts.line_chart, lines=lines, **options)))
    return made


def _largest(lines: Mapping[str, Series], comparison: Comparison) -> str:
    """Say where the line of the largest size begins and ends."""
    name, (x, values) = list(lines.items())[-1]
    first, last = (comparison.kind.shown(value) for value in (values[0], values[-1]))
    if len(x) == 1:
        return f"{name}: {first} at {x[0]:g}."
    return f"{name}: from {first} at {x[0]:g} to {last} at {x[-1]:g}."


def _some(sizes: Sequence[SubNetwork]) -> list[SubNetwork]:
    """Return as many sizes as there are colours, evenly spread."""
    count = min(len(sizes), _MOST_LINES)
    kept = [round(index * (len(sizes) - 1) / max(1, count - 1)) for index in range(count)]
    return [sizes[index] for index in dict.fromkeys(kept)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _TOO_LARGE  # nor NaN
