"""Charts of the page: places of lines, points and labels, as shares of a box that the browser may make of any width.

A picture of a chart has one size of type at one width only. The page therefore holds lines, which the browser
stretches, and text, which it does not; `plots.html` is their markup. `figures.charts` draws the same as PNG files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .axes import Tick, linear, plain, step_label
from .axes import percent as in_percent

SIDE = 1000  # units of the box, both ways
MOST_POINTS = 600  # of a line; of more, the extremes of as many stretches are shown
LINE_COLORS = 6

Points = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Line:
    """A line of a plot.

    Args:
        name: What the legend calls it.
        color: The number of its colour.
        path: Its way, as an SVG path in units of the box.
        readings: Of each point, its place from the left and from below (per cent), where it is and its value.
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

    `label` stands beside it; empty for most points. `bar` is the places from below of the ends of its interval.
    """

    left: float
    bottom: float
    color: int
    text: str
    strong: bool = True
    label: str = ""
    bar: tuple[float, float] | None = None


@dataclass(frozen=True)
class Plot:
    """Lines and points over two axes.

    Args:
        x_name: What the horizontal axis is.
        y_name: What the vertical axis is.
        limit: The place in per cent of a value that should not be crossed, and the text beside it.
        falls: Whether the first line falls, so that labels stand on its other side.
    """

    x_name: str
    y_name: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)
    limit: tuple[float, str] | None = None
    falls: bool = False

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


def line_plot(
    lines: Mapping[str, Points],
    y_name: str,
    limit: tuple[float, str] | None = None,
    bottom: float | None = None,
    top: float | None = None,
    percent: bool = False,
    x_name: str = "step",
) -> Plot:
    """Plot values over steps, or over something else.

    Args:
        lines: Steps and values of each line, by name. There is at least one point.
        y_name: What the values are.
        limit: A value that should not be crossed, and the text beside it.
        bottom: Where the value axis begins, if not at the smallest value.
        top: Where the value axis ends, if not at the largest value.
        percent: Label the values, from 0 to 1, in per cent.
        x_name: What the values are over.
    """
    shown_y = in_percent if percent else plain
    shown = {name: thinned(*points) for name, points in lines.items()}
    steps = [step for xs, _ in shown.values() for step in xs]
    values = [value for _, ys in shown.values() for value in ys] + ([] if limit is None else [limit[0]])
    low, high = (min(values) if bottom is None else bottom), (max(values) if top is None else top)
    whole = all(step == int(step) for step in steps)
    x = linear(min(steps), max(steps), step_label if whole else plain, whole=whole)
    y = linear(low, high, shown_y, margin=bottom is None or top is None)
    drawn = []
    for index, (name, points) in enumerate(shown.items()):
        readings = tuple(
            (x(step), y(value), f"{step:,.10g}", shown_y(value)) for step, value in zip(*points, strict=True)
        )
        way = path([place[:2] for place in readings])
        drawn.append(Line(name, index % LINE_COLORS, way, readings, index >= LINE_COLORS))
    # a line of one point would not be seen
    dots = [Dot(*line.readings[0][:2], line.color, line.name) for line in drawn if len(line.readings) == 1]
    mark = None if limit is None else (y(limit[0]), limit[1])
    return Plot(x_name, y_name, x.ticks, y.ticks, drawn, dots, mark)


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


def path(places: Sequence[tuple[float, float]]) -> str:
    """Return an SVG path through places in per cent, with the origin at the bottom left; empty without any."""
    if not places:
        return ""
    return "M" + " ".join(f"{left * SIDE / 100:g},{SIDE - bottom * SIDE / 100:g}" for left, bottom in places)
