"""A section of a report: text, pictures, and what is missing."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..figures import charts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A picture as PNG files.

    Args:
        name: The name of its file, without the ending.
        caption: What it shows.
        light: The file for light pages.
        dark: The file for dark pages; None if one file serves both.
        wide: Whether it is shown in the width of the page.
    """

    name: str
    caption: str
    light: bytes
    dark: bytes | None = None
    wide: bool = False

    def files(self) -> dict[str, bytes]:
        """Return the content of the PNG files by their names."""
        files = {f"{self.name}.png": self.light}
        return files if self.dark is None else files | {f"{self.name}-dark.png": self.dark}

    def uri(self, dark: bool = False) -> str:
        """Return the picture as a data URI, for a page that holds its pictures itself."""
        content = self.dark if dark and self.dark is not None else self.light
        return "data:image/png;base64," + base64.b64encode(content).decode()


@dataclass
class Section:
    """A section of a report.

    Args:
        id: The anchor in the page.
        title: The heading.
        text: A paragraph below it.
        pictures: Its pictures.
        missing: What is missing: sentences, each with the command that makes it, if one does.
    """

    id: str
    title: str
    text: str = ""
    pictures: list[Picture] = field(default_factory=list)
    missing: list[tuple[str, str | None]] = field(default_factory=list)

    def chart(self, name: str, caption: str, draw: Callable[..., Figure], *args: Any, **options: Any) -> None:
        """Draw a chart for light and for dark pages.

        Args:
            draw: A function of `figures.charts`, which takes a theme and then the other arguments.
        """
        light, dark = (png(draw(theme, *args, **options), charts.DPI) for theme in charts.THEMES)
        self.pictures.append(Picture(name, caption, light, dark))


def png(figure: Figure, dpi: int) -> bytes:
    """Return a figure as a PNG file; the same figure always has the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})  # without the version of matplotlib
    return buffer.getvalue()
