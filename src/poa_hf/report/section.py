"""A section of a report: text, charts, pictures, and what is missing."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..figures import charts
from .heat_maps import HeatMap
from .plots import Plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """A chart of the page, which is also written as PNG files.

    Args:
        name: The name of its files, without the ending.
        title: What it shows, in a few words.
        caption: What is to be seen in it.
        plot: What the page draws.
        draw: Makes the figure of the PNG files for a theme; None if there are none.
    """

    name: str
    title: str
    caption: str
    plot: Plot | HeatMap
    draw: Callable[[charts.Theme], Figure] | None = None

    @property
    def is_grid(self) -> bool:
        return isinstance(self.plot, HeatMap)

    def files(self) -> dict[str, bytes]:
        """Return the content of the PNG files, for light and for dark pages, by their names."""
        if self.draw is None:
            return {}
        return {
            f"{self.name}{'' if theme is charts.LIGHT else '-dark'}.png": png(self.draw(theme), charts.DPI)
            for theme in charts.THEMES
        }


@dataclass(frozen=True)
class Picture:
    """A picture of images, as a PNG file and as panels for the page, whose titles are text.

    Args:
        name: The name of its file, without the ending.
        caption: What it shows.
        content: The PNG file, with its titles.
        panels: The PNG files of each column, by its title; there is a row per image.
    """

    name: str
    caption: str
    content: bytes
    panels: dict[str, list[bytes]]

    @property
    def rows(self) -> list[tuple[bytes, ...]]:
        """The panels of each row, from left to right."""
        return [*zip(*self.panels.values(), strict=True)]

    def files(self) -> dict[str, bytes]:
        """Return the content of the PNG file by its name."""
        return {f"{self.name}.png": self.content}


@dataclass
class Choice:
    """Charts of one of several evaluations, of which the reader chooses one.

    Args:
        group: The heading under which it is listed.
        name: What it is called in the list.
        text: A paragraph above the charts.
        charts: Its charts.
    """

    group: str
    name: str
    text: str
    charts: list[Chart] = field(default_factory=list)


@dataclass
class Section:
    """A section of a report.

    Args:
        id: The anchor in the page.
        title: The heading.
        text: A paragraph below it.
        charts: Its charts.
        pictures: Its pictures.
        choices: Charts by evaluation; the first is shown until the reader chooses another.
        missing: What is missing: sentences, each with the command that makes it, if one does.
    """

    id: str
    title: str
    text: str = ""
    charts: list[Chart] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    missing: list[tuple[str, str | None]] = field(default_factory=list)

    def files(self) -> dict[str, bytes]:
        """Return the content of all PNG files of the section by their names."""
        drawn: list[Chart | Picture] = [*self.charts, *self.pictures]
        drawn += [chart for choice in self.choices for chart in choice.charts]
        return {name: content for each in drawn for name, content in each.files().items()}


def uri(content: bytes) -> str:
    """Return a PNG file as a data URI, for a page that holds its pictures itself."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def columns(count: int) -> int:
    """Return how many charts of a section stand in a row where there is room, so that all rows are full.

    Example:
        >>> [columns(count) for count in range(1, 8)]
        [1, 2, 3, 2, 3, 3, 4]
    """
    if count <= 3:
        return count
    return 3 if count % 3 != 1 else 2 if count == 4 else 4


def png(figure: Figure, dpi: int) -> bytes:
    """Return a figure as a PNG file; the same figure always has the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})  # without the version of matplotlib
    return buffer.getvalue()


def png_of(pixels: Any) -> bytes:
    """Return pixels (H, W, 3) from 0 to 1 as a PNG file."""
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((np.asarray(pixels).clip(0, 1) * 255).round().astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
