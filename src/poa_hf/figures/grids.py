"""An elastic space as panels of rows and columns, which heat maps draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..elastic import ElasticSpace
from ..sub_network import SubNetwork

Cells = dict[tuple[int, int], float]  # values by (row, column)


@dataclass(frozen=True)
class Grid:
    """One panel.

    Args:
        title: What distinguishes it from the other panels; empty if there is only one.
        row_name: What the rows are.
        column_name: What the columns are.
        rows: The depth or width of each row, in ascending order.
        columns: The depth or width of each column, in ascending order.
        values: (rows, columns), NaN where nothing was measured.
        exists: bool (rows, columns), False where there is no such size.
    """

    title: str
    row_name: str
    column_name: str
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    values: np.ndarray
    exists: np.ndarray


def grids(space: ElasticSpace, values: Mapping[SubNetwork, float], higher_is_better: bool = True) -> list[Grid]:
    """Arrange the values of sizes as panels.

    With one elastic stage there is one panel, of width and depth; with two, one panel for each width, of both depths.
    With more there is one panel of width and total depth, with the best value of each.

    Args:
        space: All sizes.
        values: The values of the sizes that were measured.
        higher_is_better: Whether the best value is the highest.
    """
    stages = [stage for stage, depths in enumerate(zip(*space.depths, strict=True)) if len(set(depths)) > 1]
    if len(stages) == 2:
        first, second = stages
        by_width: dict[int, Cells] = {width: {} for width in space.widths}
        for size in space:
            by_width[size.width][size.depths[first], size.depths[second]] = values.get(size, np.nan)
        names = f"blocks of stage {first + 1}", f"blocks of stage {second + 1}"
        return [_grid(f"width {width}", *names, cells) for width, cells in by_width.items()]
    cells: Cells = {}
    better = np.fmax if higher_is_better else np.fmin
    for size in space:
        depth = sum(size.depths) if len(stages) > 2 else size.depths[stages[0] if stages else 0]
        value = values.get(size, np.nan)
        cells[depth, size.width] = better(cells.get((depth, size.width), np.nan), value)
    if len(stages) > 2:
        return [_grid("the best of each total depth", "blocks of all stages", "width", cells)]
    several_stages = len(space.depths[0]) > 1
    return [_grid("", f"blocks of stage {stages[0] + 1}" if several_stages and stages else "blocks", "width", cells)]


def _grid(title: str, row_name: str, column_name: str, cells: Cells) -> Grid:
    rows, columns = (tuple(sorted(set(axis))) for axis in zip(*cells, strict=True))
    values = np.array([[cells.get((row, column), np.nan) for column in columns] for row in rows], dtype=float)
    exists = np.array([[(row, column) in cells for column in columns] for row in rows])
    return Grid(title, row_name, column_name, rows, columns, values, exists)
