"""A small picture of all sizes of a run: what each gives for what it costs, with one of them marked."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from pathlib import Path

from ...elastic import SubNetwork
from ...figures import charts
from ...report.section import png
from ...selection.pareto import pareto_front
from .facts import CardFacts

FILE_NAME = "family.png"
DPI = 140  # 616 pixels wide: as wide as a column of text on the Hub
logger = logging.getLogger(__name__)


def draw_family(folder: Path, facts: CardFacts, marked: SubNetwork | None = None) -> str | None:
    """Write `family.png` and give its caption.

    Quality against parameters of the measured sizes; or, where `marked` was not measured or fewer than two were, FLOPs
    against parameters of all. None, and no picture, without matplotlib (`poa_hf[plots]`) or of one size alone.
    """
    space = facts.space
    if len(space) < 2:
        return None
    if importlib.util.find_spec("matplotlib") is None:
        _say_what_is_missing()
        return None
    parameters = {size: of.parameters for size, of in facts.costs.items()}
    names = {size: f"{name} ({size})" for name, size in space.named.items()}
    quality = facts.quality
    this = "; the ring marks this one" if marked is not None else ""
    if quality is not None and len(quality.values) > 1 and (marked is None or marked in quality.values):
        title, values = quality.metric_name, quality.values
        front = pareto_front(values, [parameters])
        figure = charts.pareto_chart(charts.LIGHT, parameters, values, front, "parameters", title, names, marked)
        caption = f"{title[0].upper()}{title[1:]} against parameters: each point is a size that was measured{this}"
    else:
        flops = {size: (of.parameters, of.flops) for size, of in facts.costs.items()}
        figure = charts.cost_chart(charts.LIGHT, flops, ("parameters", "FLOPs of one image"), names, marked)
        caption = f"FLOPs against parameters: each point is a size{this}"
    figure.set_facecolor("white")  # the Hub shows one picture on light and dark pages
    (folder / FILE_NAME).write_bytes(png(figure, DPI))
    return caption


@cache  # once for all cards
def _say_what_is_missing() -> None:
    logger.info("Cards have no picture, which needs matplotlib: install poa_hf[plots].")
