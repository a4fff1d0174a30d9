"""The report's sections of numbers: quality over the sizes and against cost, losses, signs of collapse."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from ..elastic import SubNetwork
from ..figures import charts
from ..figures.grids import grids
from ..formatting import capitalised
from ..runs.comparison import Comparison
from ..runs.facts import RunFacts
from ..selection.costs import Costs
from ..selection.pareto import pareto_front
from ..training.monitoring import (
    MAX_TEACHER_ENTROPY,
    MIN_BATCH_SIZE,
    MIN_EFFECTIVE_RANK,
    MIN_FEATURE_SPREAD,
    collapse_warning,
)
from .section import Section

Series = tuple[list[int], list[float]]  # steps, and the value at each


def heat_map_section(facts: RunFacts, measured: Comparison | None, task: str) -> Section:
    """Make the section that shows quality as a map over widths and depths."""
    section = Section("quality", "Quality over the sizes")
    if measured is None:
        section.missing.append(_no_quality(facts, task))
        return section
    space, values = facts.space, measured.values
    low, high = min(values.values()), max(values.values())
    section.text = f"{capitalised(measured.description)}."
    if len(values) < len(space):
        section.text += f" {len(values)} of the {len(space)} sizes have been measured."
        section.missing.append(("The other sizes, marked with a dot, have not been measured:", _evaluate(facts)))
    for index, grid in enumerate(grids(space, values)):
        caption = f"{capitalised(measured.metric_name)} by {grid.column_name} and {grid.row_name}"
        caption += f", {grid.title}." if grid.title else "."
        section.chart(f"quality-{index + 1}", caption, charts.heat_map, grid, low, high, measured.metric_name)
    return section


def pareto_section(
    facts: RunFacts,
    measured: Comparison | None,
    costs: Mapping[SubNetwork, Costs],
    latencies: Mapping[str, Mapping[SubNetwork, float]],
    task: str,
) -> Section:
    """Make the section that shows quality against parameters, FLOPs and each measured latency."""
    section = Section("pareto", "Quality against cost")
    if measured is not None:
        section.text = "Each point is a size; no size that costs as little is better than those on the line."
        axes: dict[str, tuple[str, Mapping[SubNetwork, float]]] = {
            "parameters": ("parameters", {size: cost.parameters for size, cost in costs.items()}),
            "flops": (
                "FLOPs of one image (a multiply-add counts once)",
                {size: cost.flops for size, cost in costs.items()},
            ),
        }
        axes |= {f"latency-{index + 1}": latency for index, latency in enumerate(latencies.items())}
        named = {size: name for name, size in facts.space.named.items()}
        for name, (title, cost) in axes.items():
            quality = {size: value for size, value in measured.values.items() if size in cost}
            if not quality:
                continue
            caption = f"{capitalised(measured.metric_name)} against {title}"
            if len(quality) < len(measured.values):
                caption += f": the {len(quality)} sizes whose latency was measured (poa select --measure_all: all)"
            front = pareto_front(quality, [cost])
            options = (cost, quality, front, title, measured.metric_name, named)
            section.chart(f"pareto-{name}", f"{caption}.", charts.pareto_chart, *options)
    else:
        section.missing.append(_no_quality(facts, task))
    if not latencies and facts.config is not None and not facts.no_model:
        command = facts.command("select", "--device", "cpu")
        section.missing.append(("No latency has been measured (--device cuda: on a GPU):", command))
    return section


def loss_section(facts: RunFacts) -> Section:
    """Make the section that shows the loss, its terms, the learning rate and the accuracy over the steps."""
    section = Section("loss", "Loss")
    log = facts.log
    if not log:
        section.missing.append(_no_log())
        return section
    section.chart("loss", "Total loss.", charts.line_chart, {"loss": _series(log, _entry("loss"))})
    lines = {
        "cross-view": _series(log, lambda line: _term(line, ("dino_local_crops_loss", "dino_global_crops_loss"))),
        "same-view": _series(log, lambda line: _term(line, ("distill_local_crops_loss", "distill_global_crops_loss"))),
        "masked patches": _series(log, _masked_patches),
        "features of images": _series(log, _entry("feature_image_loss")),  # of a foreign teacher
        "features of patches": _series(log, _entry("feature_patch_loss")),
    }
    lines = {title: points for title, points in lines.items() if points[0]}
    if lines:
        caption = "The terms of the loss, means over the heads, before they are weighted against each other."
        section.chart("loss-terms", caption, charts.line_chart, lines, bottom=0)
    rate = _series(log, _entry("learning_rate"))
    if rate[0]:
        section.chart("learning-rate", "Learning rate.", charts.line_chart, {"learning rate": rate}, bottom=0)
    knn = _all_series(log, "knn_")
    if knn:
        caption = "k-NN accuracy of the teacher during training."
        section.chart("knn", caption, charts.line_chart, knn, percent=True)
    else:
        command = shlex.join(["poa", "pretrain", "--config", "FILE.yaml", "--eval_steps", "1000"])
        section.missing.append(("The accuracy was not measured during training; a further run does so with", command))
    return section


def _term(line: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    """Return the sum of some terms of the loss, as a mean over the heads; None for a line without them."""
    values = [value for name, value in line.items() if name.startswith(names)]
    heads = sum(name.startswith(names[0]) for name in line)
    return sum(values) / heads if heads else None


def _masked_patches(line: Mapping[str, Any]) -> float | None:
    """Return the term of the masked patches, which is logged at half its value; None until masked prediction begins."""
    term = _term(line, ("ibot_loss",))
    return None if term is None or not line.get("predict_masked_patches", True) else 2 * term


def collapse_section(facts: RunFacts) -> Section:
    """Make the section of statistics that show whether the features of the teacher have collapsed."""
    section = Section("collapse", "Signs of collapse")
    log = facts.log
    known = [line for line in log if "feature_spread" in line and "effective_rank" in line]
    if not known:
        section.missing.append(_no_log())
        return section
    if (batch := facts.arguments.get("per_device_train_batch_size", MIN_BATCH_SIZE)) < MIN_BATCH_SIZE:
        section.text = f"Batches of {batch} images say little about how far features lie apart."
    else:
        fine = "No sign of collapse: features spread, in many directions, and targets tell images apart."
        section.text = f"Step {known[-1]['step']:,}: {collapse_warning(known[-1]) or fine}"
    for name, caption, limit in (
        (
            "feature_spread",
            "Spread of the teacher's features: 0 if all images have one feature, 1 if directions are uniform.",
            MIN_FEATURE_SPREAD,
        ),
        ("effective_rank", "Effective rank: the number of directions in use.", MIN_EFFECTIVE_RANK),
    ):
        lines = {name: _series(log, _entry(name))}
        drawn = {"limit": (limit, "collapsed below"), "bottom": 0}
        section.chart(name.replace("_", "-"), caption, charts.line_chart, lines, **drawn)
    entropy = {f"head {index}": points for index, points in _all_series(log, "teacher_entropy_").items()}
    if entropy:
        caption = "Entropy of the teacher's targets over its maximum, by head; at 1 they are uniform."
        drawn = {"limit": (MAX_TEACHER_ENTROPY, "collapsed above"), "bottom": 0, "top": 1.1}
        section.chart("teacher-entropy", caption, charts.line_chart, entropy, **drawn)
    use = {f"head {index}": points for index, points in _all_series(log, "prototype_use_").items()}
    if use:
        caption = "Prototypes in use, as a share of those that a batch could use, by head."
        section.chart("prototype-use", caption, charts.line_chart, use, bottom=0, top=1.05)
    return section


def _series(log: list[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> Series:
    """Return the steps and values of the lines that have a value."""
    points = [(line["step"], value(line)) for line in log]
    found = [(step, number) for step, number in points if isinstance(number, int | float)]
    return [step for step, _ in found], [number for _, number in found]


def _entry(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda line: line.get(name)


def _all_series(log: list[dict[str, Any]], prefix: str) -> dict[str, Series]:
    """Return the series of each name with a prefix, by the rest of the name."""
    names = dict.fromkeys(name for line in log for name in line if name.startswith(prefix))
    return {name.removeprefix(prefix): _series(log, _entry(name)) for name in names}


def _evaluate(facts: RunFacts) -> str:
    """Return the command that measures all sizes on the labelled data that the run names."""
    data = facts.recipe.get("eval_dataset_name") or facts.recipe.get("dataset_name") or "DATASET"
    return facts.command("evaluate", "--dataset_name", data, "--sizes", "all")


def _no_quality(facts: RunFacts, task: str) -> tuple[str, str | None]:
    if facts.no_evaluations:
        return facts.no_evaluations, None
    if facts.no_model:
        return facts.no_model, None
    if facts.evaluations:
        return f"No size has been measured yet by {'k-NN' if task == 'knn' else 'a linear probe'}:", _evaluate(facts)
    return "No size has been measured yet:", _evaluate(facts)


def _no_log() -> tuple[str, str | None]:
    return "The run has no log (metrics.jsonl), which pre-training writes:", "poa pretrain --config FILE.yaml"
