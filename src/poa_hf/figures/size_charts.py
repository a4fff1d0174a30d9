"""Sizes as points: quality against cost, and one cost against another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..formatting import format_quantity
from ..sub_network import SubNetwork
from .themes import MARKED, Theme, add_legend, line_colors, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MOST_LABELS, CROWD = 5, 100  # the most sizes that are named; among as many points, only the ends of the line are


def pareto_chart(
    theme: Theme,
    cost: Mapping[SubNetwork, float],
    quality: Mapping[SubNetwork, float],
    front: Sequence[SubNetwork],
    cost_name: str,
    quality_name: str,
    names: Mapping[SubNetwork, str],
    marked: SubNetwork | None = None,
    intervals: Mapping[SubNetwork, tuple[float, float]] | None = None,
    references: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    percent: bool = True,
) -> Figure:
    """Draw measured sizes as points, and a line through those that no other beats, some of them named.

    Args:
        theme: The colours.
        cost: The cost of each measured size.
        quality: The quality of each measured size.
        front: The sizes on the line, for example from `pareto_front`.
        cost_name: The title of the axis of costs.
        quality_name: The title of the axis of quality.
        names: Names of sizes; others are called `384x12` and so on.
        marked: A size that gets a ring. Then only this size is named, above the chart.
        intervals: The ends of the interval of some sizes' quality, drawn as thin bars.
        references: Costs and qualities of other models by the name of their dashed line.
        percent: Whether qualities are shares, which are shown in per cent.
    """
    figure, axes = new_axes(theme)
    color, factor = theme.lines[0], 100 if percent else 1
    heights = {size: factor * value for size, value in quality.items()}
    for size, ends in (intervals or {}).items():
        if size in heights:
            axes.vlines(cost[size], factor * ends[0], factor * ends[1], color=color, linewidth=0.7, alpha=0.5)
    others = [size for size in quality if size not in set(front)]
    axes.scatter(
        [cost[size] for size in others], [heights[size] for size in others], s=18, color=color, alpha=0.6, linewidths=0
    )
    line = sorted(front, key=cost.__getitem__)
    axes.plot(
        [cost[size] for size in line], [heights[size] for size in line], color=color, linewidth=1.2, marker="o",
        markersize=4 if len(line) <= MARKED / 2 else 2.5, label="this run",
    )  # fmt: skip
    for other, (name, points) in zip(line_colors(theme, 6)[1:], (references or {}).items(), strict=False):
        xs, ys = zip(*points, strict=True)
        axes.plot(
            xs, [factor * y for y in ys], color=other, linewidth=1, linestyle=(0, (4, 3)), marker="D", markersize=3.5,
            label=name,
        )  # fmt: skip
    axes.margins(x=0.16, y=0.14)
    shown = [cost[size] for size in quality] + [x for each in (references or {}).values() for x, _ in each]
    _quantities(axes, axes.xaxis, shown)
    axes.set(xlabel=cost_name, ylabel=f"{quality_name}, %" if percent else quality_name)
    if references:
        add_legend(theme, axes)
    if marked is not None:
        _mark(theme, axes, (cost[marked], heights[marked]), names.get(marked, str(marked)))
        return figure
    falls = heights[line[-1]] < heights[line[0]]  # an error does
    kept = np.linspace(0, len(line) - 1, min(len(line), MOST_LABELS if len(quality) < CROWD else 2)).round().astype(int)
    for index in dict.fromkeys(kept.tolist()):
        size = line[index]
        last = index == len(line) - 1 and len(line) > 1
        below = last if falls else not last  # the side of the line that is free
        axes.annotate(
            names.get(size, str(size)), (cost[size], heights[size]), (-2 if last else 6, -11 if below else 5),
            textcoords="offset points", ha="right" if last else "left", fontsize=7.5, color=theme.ink,
        )  # fmt: skip
    return figure


def cost_chart(
    theme: Theme,
    costs: Mapping[SubNetwork, tuple[float, float]],
    cost_names: tuple[str, str],
    names: Mapping[SubNetwork, str],
    marked: SubNetwork | None = None,
) -> Figure:
    """Draw sizes as points of two costs.

    Args:
        theme: The colours.
        costs: Both costs of each size.
        cost_names: The titles of both axes.
        names: Names of sizes; others are called `384x12` and so on.
        marked: A size that gets a ring, and whose name stands above the chart.
    """
    figure, axes = new_axes(theme)
    first, second = zip(*costs.values(), strict=True)
    axes.scatter(first, second, s=18, color=theme.lines[0], alpha=0.6, linewidths=0)
    axes.margins(x=0.16, y=0.14)
    _quantities(axes, axes.xaxis, first)
    _quantities(axes, axes.yaxis, second)
    axes.set(xlabel=cost_names[0], ylabel=cost_names[1])
    if marked is not None:
        _mark(theme, axes, costs[marked], names.get(marked, str(marked)))
    return figure


def _quantities(axes: Axes, axis: Axis, values: Sequence[float]) -> None:
    """Label an axis with quantities such as 20M; it is logarithmic if the values differ much."""
    if max(values) > 8 * min(values):
        (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
        from matplotlib.ticker import LogLocator, NullFormatter

        parts = (1, 2, 5) if max(values) < 500 * min(values) else (1,)
        axis.set_major_locator(LogLocator(subs=parts, numticks=8))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: format_quantity(value) if value > 0 else "0")


def _mark(theme: Theme, axes: Axes, point: tuple[float, float], name: str) -> None:
    """Draw a ring around a point, and its name in the same colour above the chart, where nothing covers it."""
    color = theme.lines[1]
    axes.plot(*point, marker="o", markersize=11, markerfacecolor="none", markeredgecolor=color, markeredgewidth=1.8)
    axes.set_title(name, color=color, fontsize=9, fontweight="bold", loc="left")
