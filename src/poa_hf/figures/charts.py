"""Charts: heat maps over an elastic space, costs and quality of sizes, and lines over the steps of a run.

Each function takes the `Theme` that it draws for and returns a new `matplotlib.figure.Figure`, transparent and small
enough that its text can be read on a phone at full width. They raise ValueError if matplotlib, which comes with
`poa_hf[plots]`, is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..elastic import SubNetwork
from ..formatting import format_quantity
from .blank import blank_figure
from .grids import Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.4, 2.9  # inches
DPI = 200
COLORS = "viridis"
MARKED = 40  # the most points of a line that are marked
MOST_LABELS, CROWD = 5, 100  # the most sizes that are named; among as many points, only the ends of the line are


@dataclass(frozen=True)
class Theme:
    """Colours that can be read on a page's background.

    The colours of lines are Okabe and Ito's, which colour-blind people can tell apart, made darker or lighter where the
    background requires it.
    """

    name: str
    ink: str
    faint: str
    lines: tuple[str, ...]


LIGHT = Theme("light", "#3d4148", "#c9ccd1", ("#0072b2", "#c44e00", "#00795a", "#a8447f", "#8a6d00", "#3a8fbf"))
DARK = Theme("dark", "#c3c7ce", "#4a4f58", ("#56b4e9", "#f0934a", "#35c49a", "#e08fc0", "#e6c84f", "#9fd0f0"))
THEMES = (LIGHT, DARK)


def line_chart(
    theme: Theme,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    limit: tuple[float, str] | None = None,
    bottom: float | None = None,
    top: float | None = None,
    percent: bool = False,
) -> Figure:
    """Draw values over steps.

    Args:
        theme: The colours.
        lines: Steps and values of each line, by name. A single line has no legend.
        limit: A value that should not be crossed, and the text beside it.
        bottom: Where the value axis begins, if not at the smallest value.
        top: Where the value axis ends, if not at the largest value.
        percent: Label the values, from 0 to 1, in per cent.
    """
    figure, axes = _new(theme)
    for color, (name, (steps, values)) in zip(_cycled(theme, len(lines)), lines.items(), strict=True):
        marker = "o" if len(steps) <= MARKED else None
        axes.plot(steps, values, color=color, linewidth=1.4, marker=marker, markersize=2.5, label=name)
    if limit is not None:
        axes.axhline(limit[0], color=theme.lines[1], linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            limit[1], (1, limit[0]), (-2, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va="bottom", color=theme.lines[1], fontsize=8,
        )  # fmt: skip
    axes.set_ylim(bottom, top)
    axes.set_xlabel("step")
    _plain_ticks(axes.xaxis)
    if percent:
        from matplotlib.ticker import PercentFormatter

        axes.yaxis.set_major_formatter(PercentFormatter(1))
    if len(lines) > 1:
        _legend(theme, axes)
    return figure


def heat_map(theme: Theme, grid: Grid, low: float, high: float, title: str) -> Figure:
    """Draw a grid in colours, with numbers in per cent in its cells where they fit.

    The smallest row is at the bottom. Cells that were not measured hold a dot.

    Args:
        theme: The colours of everything but the cells.
        grid: The values, from 0 to 1.
        low: The value of the darkest colour.
        high: The value of the brightest colour.
        title: The text above the grid, before the grid's title.
    """
    rows, columns = grid.values.shape
    # inches
    cell_width = min(0.55, (WIDTH - 1.2) / columns)
    cell_height = max(0.14, min(cell_width, 0.36))
    figure, axes = _new(theme, height=max(1.6, rows * cell_height + 0.85))
    spread = (high - low) or 1
    image = axes.imshow(
        grid.values, origin="lower", cmap=COLORS, vmin=low, vmax=low + spread, aspect="auto", interpolation="nearest"
    )
    for row, column in np.argwhere(grid.exists & np.isnan(grid.values)):
        axes.text(column, row, "·", color=theme.ink, ha="center", va="center", fontsize=8)
    if cell_width >= 0.26 and cell_height >= 0.16:
        for row, column in np.argwhere(~np.isnan(grid.values)):
            value = grid.values[row, column]
            # viridis is dark in its lower part
            color = "white" if (value - low) / spread < 0.6 else "black"
            size = min(8, 21 * cell_width, 34 * cell_height)
            axes.text(column, row, f"{100 * value:.1f}", color=color, ha="center", va="center", fontsize=size)
    for axis, ticks, name in ((axes.xaxis, grid.columns, grid.column_name), (axes.yaxis, grid.rows, grid.row_name)):
        # every third tick, for example, where all of them would overlap
        step = -(-len(ticks) // (12 if axis is axes.xaxis else max(2, int(rows * cell_height / 0.15))))
        places = range(0, len(ticks), step)
        axis.set_ticks(list(places), [str(ticks[place]) for place in places])
        axis.set_label_text(name)
    axes.tick_params(length=0)
    axes.grid(False)
    for side in axes.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(image, ax=axes, fraction=0.06, pad=0.03)
    bar.ax.tick_params(colors=theme.ink, labelsize=8, length=2)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    bar.outline.set_visible(False)
    axes.set_title(
        f"{title}{', ' if title and grid.title else ''}{grid.title}", color=theme.ink, fontsize=9, loc="left"
    )
    return figure


def pareto_chart(
    theme: Theme,
    cost: Mapping[SubNetwork, float],
    quality: Mapping[SubNetwork, float],
    front: Sequence[SubNetwork],
    cost_name: str,
    quality_name: str,
    names: Mapping[SubNetwork, str],
    marked: SubNetwork | None = None,
) -> Figure:
    """Draw measured sizes as points, and a line through those that no other beats, some of them named.

    Args:
        theme: The colours.
        cost: The cost of each measured size.
        quality: The quality of each measured size, from 0 to 1.
        front: The sizes on the line, for example from `pareto_front`.
        cost_name: The title of the axis of costs.
        quality_name: The title of the axis of quality.
        names: Names of sizes; others are called `384x12` and so on.
        marked: A size that gets a ring. Then only this size is named, above the chart.
    """
    figure, axes = _new(theme)
    others = [size for size in quality if size not in set(front)]
    color = theme.lines[0]
    axes.scatter(
        [cost[size] for size in others], [100 * quality[size] for size in others], s=18, color=color, alpha=0.6,
        linewidths=0,
    )  # fmt: skip
    line = sorted(front, key=cost.__getitem__)
    axes.plot(
        [cost[size] for size in line], [100 * quality[size] for size in line], color=color, linewidth=1.2, marker="o",
        markersize=4 if len(line) <= MARKED / 2 else 2.5,
    )  # fmt: skip
    axes.margins(x=0.16, y=0.14)
    _quantities(axes, axes.xaxis, [cost[size] for size in quality])
    axes.set(xlabel=cost_name, ylabel=f"{quality_name}, %")
    if marked is not None:
        _mark(theme, axes, (cost[marked], 100 * quality[marked]), names.get(marked, str(marked)))
        return figure
    kept = np.linspace(0, len(line) - 1, min(len(line), MOST_LABELS if len(quality) < CROWD else 2)).round().astype(int)
    for index in dict.fromkeys(kept.tolist()):
        size = line[index]
        last = index == len(line) - 1 and len(line) > 1
        axes.annotate(
            names.get(size, str(size)), (cost[size], 100 * quality[size]), (-2, 5) if last else (6, -11),
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
    figure, axes = _new(theme)
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

        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: format_quantity(value) if value > 0 else "0")


def _mark(theme: Theme, axes: Axes, point: tuple[float, float], name: str) -> None:
    """Draw a ring around a point, and its name in the same colour above the chart, where nothing covers it."""
    color = theme.lines[1]
    axes.plot(*point, marker="o", markersize=11, markerfacecolor="none", markeredgecolor=color, markeredgewidth=1.8)
    axes.set_title(name, color=color, fontsize=9, fontweight="bold", loc="left")


def _new(theme: Theme, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = blank_figure(WIDTH, height, layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    for name, side in axes.spines.items():
        side.set(visible=name in ("left", "bottom"), color=theme.faint)
    axes.tick_params(colors=theme.ink, labelsize=8, length=3, color=theme.faint)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=theme.ink, fontsize=9)
    axes.grid(color=theme.faint, linewidth=0.5, alpha=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _plain_ticks(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value < 1e4 else format_quantity(value))


def _legend(theme: Theme, axes: Axes) -> None:
    columns = 2 if len(axes.lines) > 3 else 3
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=8, labelcolor=theme.ink, frameon=False,
        borderaxespad=0.2, handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip


def _cycled(theme: Theme, count: int) -> list[str]:
    return [theme.lines[index % len(theme.lines)] for index in range(count)]
