"""Charts: heat maps over an elastic space, costs and quality of sizes, and lines over the steps of a run.

Each function takes the `Theme` that it draws for and returns a new `matplotlib.figure.Figure`, transparent and small
enough that its text can be read on a phone at full width. They raise ValueError if matplotlib, which comes with
`poa_hf[plots]`, is not installed.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

from ..formatting import format_quantity
from .heat_maps import heat_map
from .size_charts import cost_chart, pareto_chart
from .themes import COLORS, DARK, DPI, HEIGHT, LIGHT, MARKED, THEMES, WIDTH, Theme, add_legend, line_colors, new_axes

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "COLORS", "DARK", "DPI", "HEIGHT", "LIGHT", "THEMES", "WIDTH", "Theme", "cost_chart", "heat_map", "line_chart",
    "pareto_chart",
]  # fmt: skip


def line_chart(
    theme: Theme,
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    limit: tuple[float, str] | None = None,
    bottom: float | None = None,
    top: float | None = None,
    percent: bool = False,
    x_name: str = "step",
    y_name: str | None = None,
    dashed: Container[str] = (),
) -> Figure:
    """Draw values over steps, or over something else.

    Args:
        theme: The colours.
        lines: Steps and values of each line, by name. A single line has no legend.
        limit: A value that should not be crossed, and the text beside it.
        bottom: Where the value axis begins, if not at the smallest value.
        top: Where the value axis ends, if not at the largest value.
        percent: Label the values, from 0 to 1, in per cent.
        x_name: What the values are over.
        y_name: What the values are; None where a heading says it.
        dashed: Names of lines that are dashed, each in the colour of the line before it.
    """
    figure, axes = new_axes(theme)
    colors = iter(line_colors(theme, sum(name not in dashed for name in lines)))
    color = None
    for name, (steps, values) in lines.items():
        color = color if name in dashed and color is not None else next(colors)
        marker, style = "o" if len(steps) <= MARKED else None, "--" if name in dashed else "-"
        axes.plot(steps, values, style, color=color, linewidth=1.4, marker=marker, markersize=2.5, label=name)
    if limit is not None:
        axes.axhline(limit[0], color=theme.lines[1], linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            limit[1], (1, limit[0]), (-2, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", va="bottom", color=theme.lines[1], fontsize=8,
        )  # fmt: skip
    axes.set_ylim(bottom, top)
    axes.set_xlabel(x_name)
    if y_name is not None:
        axes.set_ylabel(y_name)
    if all(step == int(step) for steps, _ in lines.values() for step in steps):
        _plain_ticks(axes.xaxis)
    if percent:
        from matplotlib.ticker import PercentFormatter

        axes.yaxis.set_major_formatter(PercentFormatter(1))
    if len(lines) > 1:
        add_legend(theme, axes)
    return figure


def _plain_ticks(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value < 1e4 else format_quantity(value))
