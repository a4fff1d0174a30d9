"""The report's section of curves: how quality falls as more of an image is taken away or changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..elastic import SubNetwork
from ..figures import charts
from ..formatting import capitalised
from ..runs.comparison import Comparison, one_per_measure
from ..runs.evaluations import Evaluation
from ..runs.facts import RunFacts
from . import plots
from .captions import Series
from .quality import choice_of
from .section import Chart, Section

_MOST_LINES = plots.LINE_COLORS
_MOST_SERIES = 24  # of one task
_TOO_LARGE = 1e100


@dataclass(frozen=True)
class Curve:
    """Values of one size over a ratio or a strength, by the name of the series."""

    x_name: str
    series: dict[str, Series]


def curves_section(facts: RunFacts, costs: Mapping[SubNetwork, Any]) -> Section | None:
    """Make the section that shows the curves of all tasks that record some, or return None without any.

    Each series of a task (a kind of corruption, a choice of patches) has a chart with the sizes as lines: all of them,
    or some from the cheapest to the dearest.

    Args:
        facts: What is known of the run.
        costs: The costs of each size.
    """
    section = Section("curves", "Robustness")
    section.text = "Lines are sizes. The charts of one task have the same vertical axis."
    for comparison in one_per_measure(facts.comparisons):
        curves = {size: curve for size, record in comparison.records.items() if (curve := read_curve(record))}
        shown = sorted(curves, key=lambda size: (costs[size].parameters, costs[size].flops))
        drawn = {size: curves[size] for size in _some(shown)}
        section.charts += _charts(comparison, drawn, facts.steps, len(section.charts) + 1)
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
                series[str(title)] = [at for at, _ in points], [value for _, value in points]
    return Curve(name if isinstance(name, str) else "", series) if series else None


def _charts(comparison: Comparison, curves: Mapping[SubNetwork, Curve], step: int | None, first: int) -> list[Chart]:
    """Make a chart of each series, with names numbered from `first`."""
    names = dict.fromkeys(name for curve in curves.values() for name in curve.series)
    values = [value for curve in curves.values() for series in curve.series.values() for value in series[1]]
    made = []
    for number, name in enumerate(names, first):
        lines = {str(size): curve.series[name] for size, curve in curves.items() if name in curve.series}
        choice = choice_of(comparison, step)
        title = f"{capitalised(comparison.metric_name)}: {name}" if len(names) > 1 else choice.name
        percent = comparison.kind.is_share
        options: dict[str, Any] = {"percent": percent, "x_name": next(iter(curves.values())).x_name}
        if percent:
            options |= {"bottom": min(0.0, *values), "top": max(values) * 1.04 or 1.0}
        plot = plots.line_plot(lines, title, **options)
        draw = partial(charts.line_chart, lines=lines, **options)
        caption = f"{_ends(lines, comparison)} {comparison.example.dataset}, {comparison.example.test_split}."
        made.append(Chart(f"curve-{number}", title, caption, plot, draw))
    return made


def _ends(lines: Mapping[str, Series], comparison: Comparison) -> str:
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
