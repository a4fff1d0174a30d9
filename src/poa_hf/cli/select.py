"""`poa select`: the best size of a run within a budget, and the command that extracts it."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import asdict
from pathlib import Path

import numpy as np
from transformers import AutoConfig

from ..elastic import ElasticSpace, SubNetwork
from ..models.elastic_config import elastic_config, image_shape
from ..runs.layout import RunFolder
from ..selection import select as selecting
from ..selection.costs import Costs, costs
from ..selection.latency import LatencyTable, find_device, latency_table
from ..selection.select import Budget, Quality, Selection, format_quantity, read_quality
from .parser import CommandParser

_FRONT_ROWS = 12
# How often a choice that rests on estimated latencies is measured and made anew.
_CONFIRMATIONS = 5


def select(argv: list[str]) -> None:
    """`poa select RUN [--max_params 30M] [--max_flops 5G] [--max_latency_ms 4 --device cpu]`"""
    args = _parse(argv)
    from ..runs.load import resolve_run

    budget = Budget(args.max_params, args.max_flops, args.max_latency_ms)
    folder = resolve_run(args.run)
    run = RunFolder.containing(folder).path
    config = elastic_config(AutoConfig.from_pretrained(folder))
    device = find_device(args.device or "cpu")
    sizes = costs(config)
    quality = read_quality(run, config.space, args.quality)
    table = None
    if args.max_latency_ms is None and args.device is None and not args.measure_all:
        selection = selecting.select(config.space, budget, sizes, quality.values)
    else:
        options = {"full": args.measure_all, "compile": args.compile, "folder": run, "costs_of_sizes": sizes}
        table = latency_table(config, device, args.batch_size, **options)
        selection = selecting.select(config.space, budget, sizes, quality.values, table)
        for _ in range(_CONFIRMATIONS):
            chosen = [size for size in (selection.best, selection.runner_up) if size is not None]
            if all(size in table.measured for size in chosen):
                break
            table = latency_table(config, device, args.batch_size, also=chosen, **options)
            selection = selecting.select(config.space, budget, sizes, quality.values, table)
    if args.json:
        args.json.write_text(json.dumps(_as_json(budget, selection, sizes, quality, table), indent=1) + "\n")
    print(_summary(config.space, budget, selection, quality), "", sep="\n")
    print(*_table(config.space, selection, sizes, quality, table), "", sep="\n")
    print(*_notes(image_shape(config), selection, table), "", sep="\n")
    name = Path(args.run).resolve().name
    command = ["poa", "extract", args.run, "--size", str(selection.best), "--output", f"{name}-{selection.best}"]
    print(f"next: {shlex.join(command)}")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="poa select", description="Find the best size of a run within a budget; without one, the Pareto front."
    )
    parser.add_argument("run", help="output_dir of a run, one of its checkpoints, or any saved elastic model")
    parser.add_argument("--max_params", metavar="30M", help="most parameters of the extracted model")
    parser.add_argument("--max_flops", metavar="5G", help="most FLOPs of one image, multiply-adds counted once")
    parser.add_argument("--max_latency_ms", metavar="4", help="most milliseconds of one forward pass")
    parser.add_argument("--device", metavar="cpu|cuda", help="where latency is measured; default: cpu, if at all")
    parser.add_argument("--batch_size", type=int, default=1, help="images of one forward pass")
    parser.add_argument("--compile", action="store_true", help="measure models compiled by torch.compile")
    parser.add_argument("--measure_all", action="store_true", help="measure every size instead of a grid of them")
    parser.add_argument("--quality", choices=["knn", "linear"], default="knn", help="which accuracy ranks the sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file too, all sizes included")
    args = parser.parse_args(argv)
    if args.json and (args.json.is_dir() or not args.json.absolute().parent.is_dir()):
        raise ValueError(f"{args.json} cannot be a file: give --json the name of one in a folder that exists.")
    if args.batch_size < 1:
        raise ValueError(f"--batch_size {args.batch_size} must be at least 1.")
    return args


def _summary(space: ElasticSpace, budget: Budget, selection: Selection, quality: Quality) -> str:
    limits = " and ".join(f"{name} {format_quantity(limit)}" for name, limit in budget.limits.items())
    count = len(selection.within)
    within = f"{count} of {len(space)} sizes fit {limits}" if limits else f"All {len(space)} sizes"
    measured = sum(size in quality.values for size in selection.within)
    if not measured:
        return f"{within}, ranked by parameters: no accuracy of theirs has been measured."
    return f"{within}, ranked by {quality.name}{f', measured for {measured} of them' if measured < count else ''}."


def _table(
    space: ElasticSpace,
    selection: Selection,
    sizes: dict[SubNetwork, Costs],
    quality: Quality,
    table: LatencyTable | None,
) -> list[str]:
    """Lines: best, runner-up and what else is on the Pareto front."""
    names = {size: f" ({name})" for name, size in space.named.items()}

    def row(role: str, size: SubNetwork) -> list[str]:
        of = sizes[size]
        cells = [role, f"{size}{names.get(size, '')}", format_quantity(of.parameters), format_quantity(of.flops)]
        cells.append(f"{format_quantity(of.activation_bytes)}B")
        if table:
            cells.append(f"{'' if size in table.measured else '~'}{table[size]:.3g} ms")
        if quality.values:
            cells.append(f"{quality.values[size]:.1%}" if size in quality.values else "-")
        return cells

    header = ["", "size", "parameters", "FLOPs", "activations"]
    header += (["latency"] if table else []) + ([quality.title] if quality.values else [])
    rows = [header, row("best", selection.best)]
    if selection.runner_up:
        rows.append(row("runner-up", selection.runner_up))
    rows += [row("front", size) for size in _shown(selection)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(map(str.ljust, cells[:2], widths)) + "".join(map(_right, cells[2:], widths[2:])) for cells in rows
    ]


def _right(cell: str, width: int) -> str:
    return f"  {cell:>{width}}"


def _shown(selection: Selection) -> list[SubNetwork]:
    """The Pareto front without best and runner-up, or some of it, evenly spread, if it is long."""
    front = [size for size in selection.pareto_front if size not in (selection.best, selection.runner_up)]
    kept = np.linspace(0, len(front) - 1, min(len(front), _FRONT_ROWS)).round().astype(int)
    return [front[index] for index in kept]


def _notes(shape: tuple[int, int, int], selection: Selection, table: LatencyTable | None) -> list[str]:
    notes = [
        f"FLOPs (a multiply-add counts once) and activations (kept by a training step): one image of {shape[1]} pixels."
    ]
    if table:
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
    front = set(selection.pareto_front) - {selection.best, selection.runner_up}
    if len(front) > _FRONT_ROWS:
        notes.append(
            f"The Pareto front has {len(selection.pareto_front)} sizes, here thinned out; --json has them all."
        )
    return notes


def _as_json(
    budget: Budget,
    selection: Selection,
    sizes: dict[SubNetwork, Costs],
    quality: Quality,
    table: LatencyTable | None,
) -> dict:
    def facts(size: SubNetwork) -> dict:
        latency = {"latency_ms": table[size], "latency_measured": size in table.measured} if table else {}
        return {"size": str(size), **asdict(sizes[size]), **latency, "quality": quality.values.get(size)}

    return {
        "budget": budget.limits,
        "ranked_by": quality.name if selection.best in quality.values else "parameters",
        "best": facts(selection.best),
        "runner_up": facts(selection.runner_up) if selection.runner_up else None,
        "pareto_front": [str(size) for size in selection.pareto_front],
        "within": [str(size) for size in selection.within],
        "latency": {**table.conditions, "mean_error": table.mean_error, "worst_error": table.worst_error}
        if table
        else None,
        "sizes": [facts(size) for size in sizes],
    }
