"""A part of a report: text, pictures, and what is missing."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..figures import charts

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """PNGs for light and for dark pages; the same for both where `dark` is None."""

    name: str
    caption: str
    light: bytes
    dark: bytes | None = None
    wide: bool = False

    def files(self) -> dict[str, bytes]:
        files = {f"{self.name}.png": self.light}
        return files if self.dark is None else files | {f"{self.name}-dark.png": self.dark}

    def uri(self, dark: bool = False) -> str:
        return "data:image/png;base64," + base64.b64encode(self.dark if dark else self.light).decode()


@dataclass
class Section:
    """Text, pictures, and of what is missing a sentence and the command that makes it, if one does."""

    id: str
    title: str
    text: str = ""
    pictures: list[Picture] = field(default_factory=list)
    missing: list[tuple[str, str | None]] = field(default_factory=list)

    def chart(self, name: str, caption: str, draw: Callable[..., Figure], *args, **options) -> None:
        """Draw a chart for light and for dark pages."""
        light, dark = (png(draw(theme, *args, **options), charts.DPI) for theme in charts.THEMES)
        self.pictures.append(Picture(name, caption, light, dark))


def png(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    # without the version of matplotlib: the same figure has the same bytes
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
