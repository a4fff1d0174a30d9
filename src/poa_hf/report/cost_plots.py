"""Qualities of sizes against their costs, as a plot of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..formatting import format_quantity
from .axes import linear, percent, quantities, spread
from .plots import LINE_COLORS, Dot, Line, Plot, path

Ends = tuple[float, float]


@dataclass(frozen=True)
class CostPoint:
    """A model in a plot.

    Args:
        cost: What it costs.
        value: How good it is.
        name: What it is called, such as `384x12`.
        interval: The ends of the interval of its value, if they are known.
    """

    cost: float
    value: float
    name: str
    interval: Ends | None = None


@dataclass(frozen=True)
class Group:
    """Points of one colour.

    Args:
        points: The points.
        line: Those of them that a line joins, in the order of their costs.
        is_reference: Whether they are others' numbers, whose line is dashed.
    """

    points: Sequence[CostPoint]
    line: Sequence[CostPoint]
    is_reference: bool = False


def cost_plot(
    groups: Mapping[str, Group],
    x_name: str,
    y_name: str,
    labels: bool = True,
    shown: Callable[[float], str] = percent,
) -> Plot:
    """Plot qualities against costs.

    Args:
        groups: The points, by the name of the group. There is at least one point.
        x_name: What the costs are.
        y_name: What the qualities are.
        labels: Whether to name some of the points of each line that is no reference.
        shown: How a quality is written.
    """
    points = [point for group in groups.values() for point in group.points]
    costs = [point.cost for point in points]
    values = [value for point in points for value in (point.value, *(point.interval or ()))]
    x, y = quantities(min(costs), max(costs)), linear(min(values), max(values), shown, margin=True)
    lines, dots = [], []
    for index, (name, group) in enumerate(groups.items()):
        color = index % LINE_COLORS
        way = path([(x(point.cost), y(point.value)) for point in group.line])
        lines.append(Line(name, color, way, dashed=group.is_reference or index >= LINE_COLORS))
        labelled = set(spread(group.line, 4)) if labels and not group.is_reference else set()
        for point in group.points:
            text = f"{point.name}: {shown(point.value)}, {format_quantity(point.cost)}"
            bar = None
            if point.interval is not None:
                text += f" ({' to '.join(map(shown, point.interval))})"
                bar = (y(point.interval[0]), y(point.interval[1]))
            text = f"{name}, {text}" if len(groups) > 1 else text
            place = (x(point.cost), y(point.value))
            dots.append(Dot(*place, color, text, point in group.line, point.name if point in labelled else "", bar))
    line = next(iter(groups.values())).line
    falls = bool(line) and line[-1].value < line[0].value  # as that of an error
    return Plot(x_name, y_name, x.ticks, y.ticks, lines, dots, falls=falls)
