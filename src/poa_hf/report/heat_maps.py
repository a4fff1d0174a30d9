"""Heat maps of the page: tables of cells whose colours are those of the PNG files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..figures.charts import COLORS
from ..figures.grids import Grid

_PALE, _PALER = "59", "2e"  # opacities of the stripes of predicted cells


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map: what it shows, its colours, and whether it holds the best value."""

    text: str
    background: str = ""
    ink: str = ""
    best: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A grid of values in colours.

    Args:
        rows: The name of each row and its cells; the largest row is the first.
        scale: Colours from the worst to the best value, as CSS.
        low: The worst value.
        high: The best value.
    """

    title: str
    row_name: str
    column_name: str
    columns: tuple[int, ...]
    rows: list[tuple[int, list[Cell | None]]]
    scale: str
    low: str
    high: str


def heat_map(grid: Grid, low: float, high: float, shown: Callable[..., str], predicted: Grid | None = None) -> HeatMap:
    """Arrange a grid of values, with the colours of the PNG file.

    Args:
        grid: The measured values.
        low: The value of the darkest colour, the worst.
        high: The value of the brightest colour, the best.
        shown: Writes a value, without its unit if `unit` is False.
        predicted: Predicted values for the same grid, which are shown striped and pale where nothing was measured.
    """
    import matplotlib

    colors = matplotlib.colormaps[COLORS]
    spread = (high - low) or 1

    def cell(row: int, column: int) -> Cell | None:
        if not grid.exists[row, column]:
            return None
        value = float(grid.values[row, column])
        if not math.isnan(value):
            share = (value - low) / spread
            # viridis is dark in its lower part
            ink = "#fff" if share < 0.5 else "#000"
            return Cell(shown(value, unit=False), _hex(colors(share)), ink, value == high)
        guess = math.nan if predicted is None else float(predicted.values[row, column])
        if math.isnan(guess):
            return Cell("\u00b7")
        color = _hex(colors((guess - low) / spread))
        stripes = f"repeating-linear-gradient(135deg, {color}{_PALE} 0 4px, {color}{_PALER} 4px 8px)"
        return Cell(f"~{shown(guess, unit=False)}", stripes, "inherit")

    rows = [
        (grid.rows[row], [cell(row, column) for column in range(len(grid.columns))])
        for row in reversed(range(len(grid.rows)))
    ]
    scale = ", ".join(_hex(colors(share)) for share in np.linspace(0, 1, 6))
    return HeatMap(grid.title, grid.row_name, grid.column_name, grid.columns, rows, scale, shown(low), shown(high))


def _hex(color: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color[:3])
