"""An empty figure to draw on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def blank_figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    """Return a transparent figure of `width` x `height` inches that is not part of pyplot's global state.

    Raises:
        ValueError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("Figures need matplotlib: install poa_hf[plots].") from error
    return Figure(figsize=(width, height), facecolor="none", layout=layout)
