"""What all charts share: colours for light and dark pages, axes and legends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .blank import blank_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.4, 2.9  # inches
DPI = 200
COLORS = "viridis"
MARKED = 40  # the most points of a line that are marked


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


def new_axes(theme: Theme, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Return a figure, and axes in the colours of a theme."""
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


def add_legend(theme: Theme, axes: Axes) -> None:
    """Write the names of the lines above the axes."""
    columns = 2 if len(axes.lines) > 3 else 3
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=8, labelcolor=theme.ink, frameon=False,
        borderaxespad=0.2, handlelength=1.4, columnspacing=1.2,
    )  # fmt: skip


def line_colors(theme: Theme, count: int) -> list[str]:
    """Return the colours of so many lines; from the seventh on they come again."""
    return [theme.lines[index % len(theme.lines)] for index in range(count)]
