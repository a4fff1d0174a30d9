"""Axes of the page's charts: from values to places in per cent, with ticks and how values are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..formatting import format_quantity

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
class Axis:
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


def linear(low: float, high: float, label: Callable[[float], str], whole: bool = False, margin: bool = False) -> Axis:
    """Return a linear axis.

    Args:
        low: The lowest value.
        high: The highest value.
        label: How a value is written.
        whole: Whether there are ticks at whole numbers only.
        margin: Whether there is some room beyond both ends.
    """
    from matplotlib.ticker import MaxNLocator

    if low == high:
        half = 0.5 if whole else (abs(low) / 10 or 0.5)
        low, high = low - half, high + half
    elif margin:
        low, high = low - 0.04 * (high - low), high + 0.04 * (high - low)
    places = MaxNLocator(4, integer=whole, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    axis = Axis(low, high, [])
    ticks = [Tick(axis(place), label(float(place))) for place in places if low <= place <= high]
    return Axis(low, high, ticks)


def quantities(low: float, high: float) -> Axis:
    """Return an axis of quantities such as 20M; it is logarithmic if the values differ much."""
    if high <= 8 * low:
        span = (high - low) or low
        return linear(max(0, low - 0.08 * span), high + 0.08 * span, _quantity)
    from matplotlib.ticker import LogLocator

    ratio = (high / low) ** 0.06
    low, high = low / ratio, high * ratio
    for parts in ((1, 2, 5), (1, 3), (1,)):
        places = [float(place) for place in LogLocator(subs=parts).tick_values(low, high) if low <= place <= high]
        if len(places) <= 5:
            break
    axis = Axis(low, high, [], is_logarithmic=True)
    kept = spread(places, 5)
    return Axis(low, high, [Tick(axis(place), _quantity(place)) for place in kept], is_logarithmic=True)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return up to `count` of the items, from the first to the last."""
    kept = np.linspace(0, len(items) - 1, min(len(items), count)).round().astype(int)
    return [items[index] for index in dict.fromkeys(kept.tolist())]


def percent(value: float) -> str:
    """Return a share in per cent, with three digits."""
    return f"{100 * value:.3g} %"


def plain(value: float) -> str:
    """Return a number with four digits."""
    return f"{value:.4g}"


def step_label(value: float) -> str:
    """Return a whole number as a label of an axis."""
    return f"{value:,.0f}" if value < 1e4 else format_quantity(value)


def _quantity(value: float) -> str:
    return format_quantity(value) if value > 0 else "0"
