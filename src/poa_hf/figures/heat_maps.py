"""Heat maps over an elastic space."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .grids import Grid
from .themes import COLORS, WIDTH, Theme, new_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch


def _percent(value: float, unit: bool = True) -> str:
    return f"{100 * value:.1f}" + (" %" if unit else "")


def heat_map(
    theme: Theme,
    grid: Grid,
    low: float,
    high: float,
    title: str,
    shown: Callable[..., str] = _percent,
    predicted: Grid | None = None,
) -> Figure:
    """Draw a grid in colours, with the values in its cells where they fit.

    The smallest row is at the bottom. Cells that were not measured are hatched and pale where their value was
    predicted, and hold a dot otherwise.

    Args:
        theme: The colours of everything but the cells.
        grid: The measured values.
        low: The value of the darkest colour, the worst.
        high: The value of the brightest colour, the best; for an error it is the lower one.
        title: The text above the grid, before the grid's title.
        shown: Writes a value, without its unit if `unit` is False; by default in per cent.
        predicted: Predicted values for the same grid.
    """
    rows, columns = grid.values.shape
    # inches
    cell_width = min(0.55, (WIDTH - 1.2) / columns)
    cell_height = max(0.14, min(cell_width, 0.36))
    figure, axes = new_axes(theme, height=max(1.6, rows * cell_height + 0.85))
    spread = (high - low) or 1
    # of an error, the lowest value is the brightest
    colors, least, most = (COLORS, low, low + spread) if spread > 0 else (f"{COLORS}_r", high, low)
    image = axes.imshow(
        grid.values, origin="lower", cmap=colors, vmin=least, vmax=most, aspect="auto", interpolation="nearest"
    )
    guesses = np.full_like(grid.values, np.nan) if predicted is None else predicted.values
    guesses = np.where(grid.exists & np.isnan(grid.values), guesses, np.nan)
    for row, column in np.argwhere(grid.exists & np.isnan(grid.values) & np.isnan(guesses)):
        axes.text(column, row, "·", color=theme.ink, ha="center", va="center", fontsize=8)
    for row, column in np.argwhere(~np.isnan(guesses)):
        axes.add_patch(_hatched(row, column, image.to_rgba(guesses[row, [column]])[0, :3]))
    if cell_width >= 0.26 and cell_height >= 0.16:
        size = min(8, 21 * cell_width, 34 * cell_height)
        for row, column in np.argwhere(~np.isnan(grid.values)):
            value = grid.values[row, column]
            # viridis is dark in its lower part
            color = "white" if (value - low) / spread < 0.6 else "black"
            text = shown(value, unit=False)
            axes.text(column, row, text, color=color, ha="center", va="center", fontsize=size)
        for row, column in np.argwhere(~np.isnan(guesses)):
            text = f"~{shown(guesses[row, column], unit=False)}"
            axes.text(column, row, text, color=theme.ink, ha="center", va="center", fontsize=0.85 * size)
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
    bar.ax.yaxis.set_major_formatter(lambda value, _: shown(value))
    bar.outline.set_visible(False)
    axes.set_title(
        f"{title}{', ' if title and grid.title else ''}{grid.title}", color=theme.ink, fontsize=9, loc="left"
    )
    return figure


def _hatched(row: int, column: int, color: np.ndarray) -> Patch:
    """Return a pale cell with stripes of its colour."""
    from matplotlib.patches import Rectangle

    red, green, blue = color.tolist()
    return Rectangle(
        (column - 0.5, row - 0.5), 1, 1, facecolor=(red, green, blue, 0.25), edgecolor=(red, green, blue, 0.45),
        hatch="////", linewidth=0,
    )  # fmt: skip
