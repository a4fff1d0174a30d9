"""The picture on a card: quality and costs of all sizes of a run, with one size marked."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache
from pathlib import Path

from ...figures import charts
from ...formatting import capitalised
from ...report.section import png
from ...selection.pareto import pareto_front
from ...sub_network import SubNetwork
from ..hub.names import published_names
from .facts import CardFacts

PICTURE = "family.png"  # published repositories have it under this name
_DPI = 140  # 616 pixels wide: as wide as a column of text on the Hub
logger = logging.getLogger(__name__)


def draw_sizes(folder: Path, facts: CardFacts, marked: SubNetwork | None = None) -> str:
    """Draw the picture into a folder and return its caption, without a full stop.

    It shows quality against parameters of the measured sizes; if `marked` was not measured, or fewer than two sizes
    were, FLOPs against parameters of all sizes. If the run has only one size, or without matplotlib
    (`poa_hf[plots]`), there is no picture, and the caption is empty.
    """
    if len(facts.space) < 2:
        return ""
    if importlib.util.find_spec("matplotlib") is None:
        _warn_once()
        return ""
    parameters = {size: cost.parameters for size, cost in facts.costs.items()}
    published = published_names(facts.config.backbone_config)
    names = {size: f"{name} ({size})" if name in published else str(size) for name, size in facts.space.named.items()}
    quality = facts.quality
    ring = "; the ring marks this one" if marked is not None else ""
    if quality is not None and len(quality.values) > 1 and (marked is None or marked in quality.values):
        title, values = quality.metric_name, quality.values
        front = pareto_front(quality.worth, [parameters])
        figure = charts.pareto_chart(charts.LIGHT, parameters, values, front, "parameters", title, names, marked)
        caption = f"{capitalised(title)} against parameters: each point is a size that was measured{ring}"
    else:
        flops = {size: (cost.parameters, cost.flops) for size, cost in facts.costs.items()}
        figure = charts.cost_chart(charts.LIGHT, flops, ("parameters", "FLOPs of one image"), names, marked)
        caption = f"FLOPs against parameters: each point is a size{ring}"
    figure.set_facecolor("white")  # the Hub shows one picture on light and dark pages
    (folder / PICTURE).write_bytes(png(figure, _DPI))
    return caption


@cache  # once for all cards of a process
def _warn_once() -> None:
    logger.info("Cards have no picture, because it needs matplotlib: pip install 'poa_hf[plots]'.")
