"""Charts of the page: places of lines, points and labels, as shares of a box that the browser may make of any width.

A picture of a chart has one size of type at one width only. The page therefore holds lines, which the browser
stretches, and text, which it does not; `plots.html` is their markup. `figures.charts` draws the same as PNG files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from ..figures.charts import COLORS
from ..figures.grids import Grid
from ..formatting import format_quantity

SIDE = 1000  # units of the box, both ways
MOST_POINTS = 600  # of a line; of more, the extremes of as many stretches are shown
LINE_COLORS = 6

Points = tuple[Sequence[float], Sequence[float]]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Tick:
    """A labelled place of an axis.

    Args:
        place: Per cent of the axis.
        label: What stands there.
    """

    place: float
    label: str


@dataclass(frozen=True)
class Line:
    """A line of a plot.

    Args:
        name: What the legend calls it.
        color: The number of its colour.
        path: Its way, as an SVG path in units of the box.
        readings: Of each point, its place from the left and from below (per cent), its step and its value.
        dashed: Whether another line has its colour already.
    """

    name: str
    color: int
    path: str
    readings: tuple[tuple[float, float, str, str], ...] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Dot:
    """A point of a plot: its place in per cent, the number of its colour, a text, and whether it stands out.

    `label` stands beside it; empty for most points.
    """

    left: float
    bottom: float
    color: int
    text: str
    strong: bool = True
    label: str = ""


@dataclass(frozen=True)
class Plot:
    """Lines and points over two axes.

    Args:
        x_name: What the horizontal axis is.
        y_name: What the vertical axis is.
        limit: The place in per cent of a value that should not be crossed, and the text beside it.
    """

    x_name: str
    y_name: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    limit: tuple[float, str] | None = None

    @property
    def has_readings(self) -> bool:
        return any(line.readings for line in self.lines)

    @property
    def readings(self) -> str:
        """The points of all lines, as JSON for the page's script."""
        return json.dumps([{"name": line.name, "points": line.readings} for line in self.lines], separators=(",", ":"))

    @property
    def widest(self) -> str:
        """The longest label of the vertical axis, for which there must be room."""
        return max((tick.label for tick in self.y_ticks), key=len, default="")


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
        scale: Colours from the lowest to the highest value, as CSS.
    """

    title: str
    row_name: str
    column_name: str
    columns: tuple[int, ...]
    rows: list[tuple[int, list[Cell | None]]]
    scale: str
    low: str
    high: str


@dataclass(frozen=True)
class _Axis:
    """From values to places in per cent."""

    low: float
    high: float
    ticks: list[Tick]
    is_logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return round(100 * (value - low) / (high - low), 2)


def line_plot(
    lines: Mapping[str, Points],
    y_name: str,
    limit: tuple[float, str] | None = None,
    bottom: float | None = None,
    top: float | None = None,
    percent: bool = False,
) -> Plot:
    """Plot values over steps.

    Args:
        lines: Steps and values of each line, by name. There is at least one point.
        y_name: What the values are.
        limit: A value that should not be crossed, and the text beside it.
        bottom: Where the value axis begins, if not at the smallest value.
        top: Where the value axis ends, if not at the largest value.
        percent: Label the values, from 0 to 1, in per cent.
    """
    shown = {name: thinned(*points) for name, points in lines.items()}
    steps = [step for xs, _ in shown.values() for step in xs]
    values = [value for _, ys in shown.values() for value in ys] + ([] if limit is None else [limit[0]])
    low, high = (min(values) if bottom is None else bottom), (max(values) if top is None else top)
    x = _linear(min(steps), max(steps), _step_label, whole=True)
    y = _linear(low, high, _percent if percent else _plain, margin=bottom is None or top is None)
    drawn = []
    for index, (name, points) in enumerate(shown.items()):
        readings = tuple(
            (x(step), y(value), f"{step:,}", _percent(value) if percent else _plain(value))
            for step, value in zip(*points, strict=True)
        )
        way = _path([place[:2] for place in readings])
        drawn.append(Line(name, index % LINE_COLORS, way, readings, index >= LINE_COLORS))
    # a line of one point would not be seen
    dots = [Dot(*line.readings[0][:2], line.color, line.name) for line in drawn if len(line.readings) == 1]
    mark = None if limit is None else (y(limit[0]), limit[1])
    return Plot("step", y_name, x.ticks, y.ticks, drawn, dots, mark)


def cost_plot(
    groups: Mapping[str, Sequence[tuple[float, float, str]]],
    fronts: Mapping[str, Sequence[tuple[float, float, str]]],
    x_name: str,
    y_name: str,
    labels: bool = True,
) -> Plot:
    """Plot qualities against costs.

    Args:
        groups: Cost, quality (0 to 1) and name of each point, by the name of the group. There is at least one point.
        fronts: The points of each group that a line joins, in the order of their costs.
        x_name: What the costs are.
        y_name: What the qualities are.
        labels: Whether to name some of the points of each line.
    """
    costs = [cost for group in groups.values() for cost, _, _ in group]
    qualities = [quality for group in groups.values() for _, quality, _ in group]
    x, y = _quantities(min(costs), max(costs)), _linear(min(qualities), max(qualities), _percent, margin=True)
    lines, dots = [], []
    for index, (name, group) in enumerate(groups.items()):
        color, front = index % LINE_COLORS, list(fronts[name])
        named = set(_spread([point[2] for point in front], 4)) if labels else set()
        lines.append(
            Line(name, color, _path([(x(cost), y(quality)) for cost, quality, _ in front]), dashed=index >= LINE_COLORS)
        )
        for cost, quality, size in group:
            on_line = (cost, quality, size) in front
            text = f"{size}: {_percent(quality)}, {format_quantity(cost)}"
            text = f"{name}, {text}" if len(groups) > 1 else text
            dots.append(Dot(x(cost), y(quality), color, text, on_line, size if size in named and on_line else ""))
    return Plot(x_name, y_name, x.ticks, y.ticks, lines, dots)


def heat_map(grid: Grid, low: float, high: float) -> HeatMap:
    """Arrange a grid of values from 0 to 1, with the colours of the PNG file.

    Args:
        grid: The values.
        low: The value of the darkest colour.
        high: The value of the brightest colour.
    """
    import matplotlib

    colors = matplotlib.colormaps[COLORS]
    spread = (high - low) or 1
    rows = []
    for row in reversed(range(len(grid.rows))):
        cells: list[Cell | None] = []
        for column in range(len(grid.columns)):
            value = float(grid.values[row, column])
            if not grid.exists[row, column]:
                cells.append(None)
            elif math.isnan(value):
                cells.append(Cell("·"))
            else:
                share = (value - low) / spread
                # viridis is dark in its lower part
                cells.append(
                    Cell(f"{100 * value:.1f}", _hex(colors(share)), "#fff" if share < 0.5 else "#000", value == high)
                )
        rows.append((grid.rows[row], cells))
    scale = ", ".join(_hex(colors(share)) for share in np.linspace(0, 1, 6))
    return HeatMap(
        grid.title, grid.row_name, grid.column_name, grid.columns, rows, scale, _percent(low), _percent(high)
    )


def thinned(steps: Sequence[float], values: Sequence[float]) -> Points:
    """Return at most `MOST_POINTS` points of a line: the lowest and the highest of as many stretches, and its ends."""
    count = len(steps)
    if count <= MOST_POINTS:
        return steps, values
    kept = {0, count - 1}
    numbers = np.asarray(values)
    for part in np.array_split(np.arange(count), MOST_POINTS // 2 - 1):
        kept |= {int(part[numbers[part].argmin()]), int(part[numbers[part].argmax()])}
    return [steps[index] for index in sorted(kept)], [values[index] for index in sorted(kept)]


def _linear(low: float, high: float, label: Callable[[float], str], whole: bool = False, margin: bool = False) -> _Axis:
    from matplotlib.ticker import MaxNLocator

    if low == high:
        half = 0.5 if whole else (abs(low) / 10 or 0.5)
        low, high = low - half, high + half
    elif margin:
        low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    places = MaxNLocator(4, integer=whole, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    axis = _Axis(low, high, [])
    ticks = [Tick(axis(place), label(float(place))) for place in places if low <= place <= high]
    return _Axis(low, high, ticks)


def _quantities(low: float, high: float) -> _Axis:
    """An axis of quantities such as 20M; it is logarithmic if the values differ much."""
    if high <= 8 * low:
        span = (high - low) or low
        return _linear(max(0, low - 0.08 * span), high + 0.08 * span, _quantity)
    from matplotlib.ticker import LogLocator

    ratio = (high / low) ** 0.06
    low, high = low / ratio, high * ratio
    for parts in ((1, 2, 5), (1, 3), (1,)):
        places = [float(place) for place in LogLocator(subs=parts).tick_values(low, high) if low <= place <= high]
        if len(places) <= 5:
            break
    axis = _Axis(low, high, [], is_logarithmic=True)
    kept = _spread(places, 5)
    return _Axis(low, high, [Tick(axis(place), _quantity(place)) for place in kept], is_logarithmic=True)


def _path(places: Sequence[tuple[float, float]]) -> str:
    """Return an SVG path through places in per cent, with the origin at the bottom left; empty without any."""
    if not places:
        return ""
    return "M" + " ".join(f"{left * SIDE / 100:g},{SIDE - bottom * SIDE / 100:g}" for left, bottom in places)


def _spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return up to `count` of the items, from the first to the last."""
    kept = np.linspace(0, len(items) - 1, min(len(items), count)).round().astype(int)
    return [items[index] for index in dict.fromkeys(kept.tolist())]


def _hex(color: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color[:3])


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _step_label(value: float) -> str:
    return f"{value:,.0f}" if value < 1e4 else format_quantity(value)


def _quantity(value: float) -> str:
    return format_quantity(value) if value > 0 else "0"
