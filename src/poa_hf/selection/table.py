"""A selection as text: a summary, a table of sizes and notes."""

from __future__ import annotations

import numpy as np

from ..formatting import format_quantity
from ..models.elastic_config import image_shape
from ..runs.metrics import Metric
from ..sub_network import SubNetwork
from .search import Search

_FRONT_ROWS = 12


def selection_text(search: Search) -> str:
    """Return a search's result as three paragraphs: how many sizes fit, the best of them, and the conditions."""
    return "\n\n".join([_summary(search), "\n".join(_table(search)), "\n".join(_notes(search))])


def _summary(search: Search) -> str:
    within = search.selection.within
    limits = " and ".join(f"{name} {format_quantity(limit)}" for name, limit in search.budget.limits.items())
    total = len(search.costs)
    count = f"{len(within)} of {total} sizes fit {limits}" if limits else f"All {total} sizes"
    measured = sum(size in search.measured for size in within)
    predicted = sum(size in search.predicted for size in within)
    if search.quality is None or not measured + predicted:
        return f"{count}, ranked by parameters: their quality has not been measured."
    partly = f", measured for {measured} of them" if measured < len(within) else ""
    partly += f"{' and' if partly else ','} predicted for {predicted}" if predicted else ""
    return f"{count}, ranked by {search.quality.name}{partly}."


def _table(search: Search) -> list[str]:
    """Lines of the best size, the runner-up and the rest of the Pareto front."""
    selection, latencies = search.selection, search.latencies
    names = {size: f" ({name})" for name, size in search.config.space.named.items()}

    def row(role: str, size: SubNetwork) -> list[str]:
        costs = search.costs[size]
        cells = [role, f"{size}{names.get(size, '')}", format_quantity(costs.parameters), format_quantity(costs.flops)]
        cells.append(f"{format_quantity(costs.activation_bytes)}B")
        if latencies:
            cells.append(f"{'' if size in latencies.measured else '~'}{latencies[size]:.3g} ms")
        if search.quality:
            cells.append(_quality(search, search.quality.kind, size))
        return cells

    header = ["", "size", "parameters", "FLOPs", "activations"]
    header += (["latency"] if latencies else []) + ([search.quality.title] if search.quality else [])
    rows = [header, row("best", selection.best)]
    if selection.runner_up:
        rows.append(row("runner-up", selection.runner_up))
    rows += [row("front", size) for size in _shown(search)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for cells in rows:
        left = "  ".join(map(str.ljust, cells[:2], widths))
        lines.append(left + "".join(f"  {cell:>{width}}" for cell, width in zip(cells[2:], widths[2:], strict=True)))
    return lines


def _quality(search: Search, kind: Metric, size: SubNetwork) -> str:
    """A measured value, or a predicted one with a tilde, or a dash."""
    for mark, values in (("", search.measured), ("~", search.predicted)):
        if size in values:
            return f"{mark}{kind.shown(values[size])}".replace(" ", "")
    return "-"


def _rest_of_front(search: Search) -> list[SubNetwork]:
    selection = search.selection
    return [size for size in selection.pareto_front if size not in (selection.best, selection.runner_up)]


def _shown(search: Search) -> list[SubNetwork]:
    """The Pareto front without best and runner-up; if it is long, some of it, evenly spread."""
    front = _rest_of_front(search)
    kept = np.linspace(0, len(front) - 1, min(len(front), _FRONT_ROWS)).round().astype(int)
    return [front[index] for index in kept]


def _notes(search: Search) -> list[str]:
    pixels = image_shape(search.config)[1]
    notes = [
        f"FLOPs (a multiply-add counts once) and activations (kept by a training step): one image of {pixels} pixels."
    ]
    if table := search.latencies:
        where = table.conditions
        images = "one image" if where["batch_size"] == 1 else f"{where['batch_size']} images"
        threads = f", threads: {where['threads']}" if where["threads"] else ""
        note = f"Latency: {images} on {where['device']} ({where['device_name']}{threads})"
        if table.mean_error is not None:
            note += (
                f"; ~ is estimated from {len(table.measured)} sizes, {table.mean_error:.1%} off on average, "
                f"{table.worst_error:.1%} at worst"
            )
        notes.append(f"{note}.")
    notes += _predictions(search)
    selection = search.selection
    best = [selection.best] + ([selection.runner_up] if selection.runner_up else [])
    if untrained := search.config.space.untrained([*best, *_shown(search)]):
        notes.append(untrained)
    if len(_rest_of_front(search)) > _FRONT_ROWS:
        count = len(search.selection.pareto_front)
        notes.append(f"The Pareto front has {count} sizes, of which some are shown; --json has them all.")
    return notes


def _predictions(search: Search) -> list[str]:
    """Sentences about the predicted qualities and their error, and a size that promises more than the best one."""
    prediction, quality = search.prediction, search.quality
    shown = [size for size in search.selection.within if size in search.predicted]
    if prediction is None or quality is None or not shown:
        return []
    kind = quality.kind
    error, worst = (kind.shown(value, unit=False) for value in (prediction.mean_error, prediction.worst_error))
    points = " points" if kind.is_share else ""
    sentences = [
        f"{quality.title}: ~ is predicted by a smooth surface over width and depth, fitted to {prediction.measured} "
        f"measured sizes; {error}{points} off on average, {worst} at worst, when each is predicted from the others."
    ]
    best, promising = search.selection.best, shown[0]
    if best in search.measured and kind.worth(search.predicted[promising]) > kind.worth(search.measured[best]):
        value = _quality(search, kind, promising)
        sentences.append(
            f"{promising} is predicted to be better than the best measured size ({value}): measure it by poa evaluate "
            f"--sizes {promising}."
        )
    return sentences
