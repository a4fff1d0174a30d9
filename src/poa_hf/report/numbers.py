"""The report's sections of numbers: quality over sizes and against cost, losses, signs of collapse."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from ..elastic import SubNetwork
from ..figures import charts
from ..runs.records import RunRecords
from ..selection.costs import Costs
from ..selection.pareto import pareto_front
from ..selection.select import Quality
from ..training.monitoring import collapse_warning
from .section import Section


def heat_map_section(records: RunRecords, measured: Quality, task: str) -> Section:
    section = Section("quality", "Quality over the sizes")
    if not measured.values:
        section.missing.append(_no_quality(records, task))
        return section
    space = records.config.space
    low, high = min(measured.values.values()), max(measured.values.values())
    some = len(measured.values) < len(space)
    section.text = f"{measured.name}, of {f'{len(measured.values)} of the' if some else 'all'} {len(space)} sizes."
    if some:
        section.missing.append(("The other sizes, marked with a dot, have not been measured:", _evaluate(records)))
    for index, grid in enumerate(charts.grids(space, measured.values)):
        caption = f"{measured.title} accuracy by {grid.column_name} and {grid.row_name}"
        caption += f", {grid.title}." if grid.title else "."
        section.chart(f"quality-{index + 1}", caption, charts.heat_map, grid, low, high, f"{measured.title} accuracy")
    return section


def pareto_section(
    records: RunRecords,
    measured: Quality,
    sizes: Mapping[SubNetwork, Costs],
    latencies: Mapping[str, Mapping[SubNetwork, float]],
    task: str,
) -> Section:
    section = Section("pareto", "Quality against cost")
    if measured.values:
        section.text = "Each point is a size; those on the line are not beaten in quality by any that costs as little."
        axes = {
            "parameters": ("parameters", {size: of.parameters for size, of in sizes.items()}),
            "flops": ("FLOPs of one image (a multiply-add counts once)", {s: of.flops for s, of in sizes.items()}),
        }
        axes |= {f"latency-{index + 1}": latency for index, latency in enumerate(latencies.items())}
        named = {size: name for name, size in records.config.space.named.items()}
        for name, (title, cost) in axes.items():
            quality = {size: value for size, value in measured.values.items() if size in cost}
            if not quality:
                continue
            caption = f"{measured.title} accuracy against {title}"
            if len(quality) < len(measured.values):
                caption += f": the {len(quality)} sizes whose latency was measured (poa select --measure_all: all)"
            front = pareto_front(quality, [cost])
            options = (cost, quality, front, title, f"{measured.title} accuracy", named)
            section.chart(f"pareto-{name}", f"{caption}.", charts.pareto_chart, *options)
    else:
        section.missing.append(_no_quality(records, task))
    if not latencies and records.config is not None and records.without_model is None:
        command = records.command("select", "--device", "cpu")
        section.missing.append(("No latency has been measured (--device cuda: on a GPU):", command))
    return section


def loss_section(records: RunRecords) -> Section:
    section = Section("loss", "Loss")
    if not records.lines:
        section.missing.append(_no_log(records))
        return section
    section.chart("loss", "Total loss.", charts.line_chart, {"loss": records.series(lambda line: line.get("loss"))})
    terms = {
        "cross-view": ("dino_local_crops_loss", "dino_global_crops_loss"),
        "same-view": ("distill_local_crops_loss", "distill_global_crops_loss"),
        "masked patches": ("ibot_loss",),
    }
    lines = {}
    for title, names in terms.items():
        if title == "masked patches":  # logged at half, and as 0 until it begins
            lines[title] = records.series(
                lambda line, names=names: _term(line, names, 2) if line.get("predict_masked_patches", True) else None
            )
        else:
            lines[title] = records.series(lambda line, names=names: _term(line, names))
    if lines := {title: points for title, points in lines.items() if points[0]}:
        caption = "The loss's terms, means over the heads, before they are weighted against each other."
        section.chart("loss-terms", caption, charts.line_chart, lines, bottom=0)
    rate = records.series(lambda line: line.get("learning_rate"))
    if rate[0]:
        section.chart("learning-rate", "Learning rate.", charts.line_chart, {"learning rate": rate}, bottom=0)
    knn = records.all_series("knn_")
    if knn:
        caption = "k-NN accuracy of the teacher while it trains."
        section.chart("knn", caption, charts.line_chart, knn, percent=True)
    else:
        command = shlex.join(["poa", "pretrain", "--config", "FILE.yaml", "--eval_steps", "1000"])
        section.missing.append(
            ("The accuracy was not measured while the model trained; a further run does it with", command)
        )
    return section


def _term(line: Mapping, names: tuple[str, ...], factor: float = 1) -> float | None:
    """The sum of some terms, as a mean over the heads; None for a line without them."""
    values = [value for name, value in line.items() if name.startswith(names)]
    heads = sum(name.startswith(names[0]) for name in line)
    return factor * sum(values) / heads if heads else None


def collapse_section(records: RunRecords) -> Section:
    section = Section("collapse", "Signs of collapse")
    known = [line for line in records.lines if "feature_spread" in line and "effective_rank" in line]
    if not known:
        section.missing.append(_no_log(records))
        return section
    if (batch := records.arguments.get("per_device_train_batch_size", 8)) < 8:
        section.text = f"Batches of {batch} images say little about how far features lie apart."
    else:
        fine = "No sign of collapse: features spread, in many directions, and targets tell images apart."
        section.text = f"Step {known[-1]['step']:,}: {collapse_warning(known[-1]) or fine}"
    for name, caption, options in (
        ("feature_spread", "Spread of the teacher's features: 0 if all images have one feature, 1 if directions are "
         "uniform.", dict(limit=(0.02, "collapsed below"), bottom=0)),
        ("effective_rank", "Effective rank: the number of directions in use.",
         dict(limit=(2, "collapsed below"), bottom=0)),
    ):  # fmt: skip
        lines = {name: records.series(lambda line, name=name: line.get(name))}
        section.chart(name.replace("_", "-"), caption, charts.line_chart, lines, **options)
    for prefix, caption, options in (
        ("teacher_entropy_", "Entropy of the teacher's targets over its maximum, by head; at 1 they are uniform.",
         dict(limit=(0.999, "collapsed above"), bottom=0, top=1.1)),
        ("prototype_use_", "Share of the prototypes in use that a batch could use, by head.", dict(bottom=0, top=1.05)),
    ):  # fmt: skip
        lines = {f"head {index}": points for index, points in records.all_series(prefix).items()}
        if lines:
            section.chart(prefix.strip("_").replace("_", "-"), caption, charts.line_chart, lines, **options)
    return section


def _evaluate(records: RunRecords) -> str:
    return records.command("evaluate", "--dataset_name", records.labelled_data, "--sizes", "all")


def _no_quality(records: RunRecords, task: str) -> tuple[str, str | None]:
    if records.broken:
        return records.broken, None
    if records.without_model is not None:
        return records.without_model, None
    if records.evaluations:
        return f"No size has been measured yet by {'k-NN' if task == 'knn' else 'a linear probe'}:", _evaluate(records)
    return "No size has been measured yet:", _evaluate(records)


def _no_log(records: RunRecords) -> tuple[str, str | None]:
    return "The run has no log (metrics.jsonl), which pre-training writes:", "poa pretrain --config FILE.yaml"
