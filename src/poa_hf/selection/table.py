"""A selection as text: a summary, a table of sizes and notes."""

from __future__ import annotations

import numpy as np

from ..elastic import SubNetwork
from ..formatting import format_quantity
from ..models.elastic_config import image_shape
from .search import Search

_FRONT_ROWS = 12


def selection_text(search: Search) -> str:
    """Return a search's result as three paragraphs: how many sizes fit, the best of them, and the conditions."""
    return "\n\n".join([_summary(search), "\n".join(_table(search)), "\n".join(_notes(search))])


def _summary(search: Search) -> str:
    within, values = search.selection.within, search.accuracies
    limits = " and ".join(f"{name} {format_quantity(limit)}" for name, limit in search.budget.limits.items())
    total = len(search.costs)
    count = f"{len(within)} of {total} sizes fit {limits}" if limits else f"All {total} sizes"
    measured = sum(size in values for size in within)
    if search.quality is None or not measured:
        return f"{count}, ranked by parameters: their accuracy has not been measured."
    partly = f", measured for {measured} of them" if measured < len(within) else ""
    return f"{count}, ranked by {search.quality.name}{partly}."


def _table(search: Search) -> list[str]:
    """Lines of the best size, the runner-up and the rest of the Pareto front."""
    selection, values, latencies = search.selection, search.accuracies, search.latencies
    names = {size: f" ({name})" for name, size in search.config.space.named.items()}

    def row(role: str, size: SubNetwork) -> list[str]:
        costs = search.costs[size]
        cells = [role, f"{size}{names.get(size, '')}", format_quantity(costs.parameters), format_quantity(costs.flops)]
        cells.append(f"{format_quantity(costs.activation_bytes)}B")
        if latencies:
            cells.append(f"{'' if size in latencies.measured else '~'}{latencies[size]:.3g} ms")
        if search.quality:
            cells.append(search.quality.kind.shown(values[size]).replace(" ", "") if size in values else "-")
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
    if len(_rest_of_front(search)) > _FRONT_ROWS:
        count = len(search.selection.pareto_front)
        notes.append(f"The Pareto front has {count} sizes, of which some are shown; --json has them all.")
    return notes
