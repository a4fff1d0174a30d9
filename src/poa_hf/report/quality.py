"""The report's sections of quality: over the sizes, and against cost, for each evaluation of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..figures import charts
from ..figures.grids import Grid, grids
from ..formatting import capitalised
from ..runs.comparison import Comparison, one_per_measure
from ..runs.facts import RunFacts
from ..runs.metrics import METRICS, Metric, measure_in_words
from ..selection.costs import Costs
from ..selection.pareto import pareto_front
from ..selection.search import predicted_quality
from ..sub_network import SubNetwork
from . import captions
from .axes import percent
from .cost_plots import CostPoint, Group, cost_plot
from .heat_maps import heat_map
from .published import published_points
from .section import Chart, Choice, Section

MOST_CHOICES = 32  # evaluations among which a reader chooses


def quality_sections(
    facts: RunFacts,
    measured: Comparison | None,
    costs: Mapping[SubNetwork, Costs],
    latencies: Mapping[str, Mapping[SubNetwork, float]],
    task: str | None,
) -> tuple[Section, Section]:
    """Make the sections that show quality: as a map over widths and depths, and against each cost.

    Where a run was measured in several ways, the reader chooses one for both sections.

    Args:
        facts: What is known of the run.
        measured: The evaluation that is shown first; None if there is none.
        costs: The costs of each size.
        latencies: The measured latencies of sizes, by their titles.
        task: The task or metric that was asked for; None for the default.
    """
    over_sizes, against_cost = Section("quality", "Quality over the sizes"), Section("pareto", "Quality against cost")
    if measured is None:
        for section in (over_sizes, against_cost):
            section.missing.append(_no_quality(facts, task))
    else:
        others = [each for each in one_per_measure(facts.comparisons) if each is not measured]
        for comparison in [measured, *others][:MOST_CHOICES]:
            first = comparison is measured
            over_sizes.choices.append(_heat_maps(facts, comparison, costs, first))
            against_cost.choices.append(_cost_charts(facts, comparison, costs, latencies, first))
        if len(measured.values) < len(facts.space):
            sentence = "The other sizes, predicted or marked with a dot, have not been measured:"
            over_sizes.missing.append((sentence, _evaluate(facts)))
        against_cost.text = "Each point is a size; no size that costs as little is better than those on the line."
    if not latencies and facts.config is not None and not facts.no_model:
        command = facts.command("select", "--device", "cpu")
        against_cost.missing.append(("No latency has been measured (--device cuda: on a GPU):", command))
    return over_sizes, against_cost


def choice_of(measured: Comparison, step: int | None) -> Choice:
    """Return an entry of the list of evaluations, without charts.

    Args:
        measured: The evaluation.
        step: The step of the model; that of an evaluation of another step is said.
    """
    record = measured.example
    parts = [capitalised(measured.metric_name), record.dataset_config, record.test_split]
    if record.holdout is not None:
        parts[-1] = f"{100 * record.holdout:g} % of {record.test_split}"
    if record.step is not None and record.step != step:
        parts.append(f"step {record.step:,}")
    return Choice(record.dataset, ", ".join(part for part in parts if part), f"{capitalised(measured.description)}.")


def _heat_maps(facts: RunFacts, measured: Comparison, costs: Mapping[SubNetwork, Costs], first: bool) -> Choice:
    choice, values, space, kind = choice_of(measured, facts.steps), measured.values, facts.space, measured.kind
    high, low = values[measured.best], kind.worth(min(measured.worth.values()))
    prediction = predicted_quality(space, measured)
    if len(values) < len(space):
        choice.text += f" {len(values)} of the {len(space)} sizes have been measured."
    if prediction is not None:
        choice.text += f" {captions.predicted(prediction, kind)}"
    guesses = grids(space, {} if prediction is None else prediction.values, kind.higher_is_better)
    seen = captions.over_sizes(measured, {size: cost.parameters for size, cost in costs.items()})
    unit = ", %" if kind.is_share else ""
    for index, (grid, guess) in enumerate(zip(grids(space, values, kind.higher_is_better), guesses, strict=True)):
        title = f"{capitalised(measured.metric_name)}{unit}, by {grid.column_name} and {grid.row_name}"
        title = f"{title}: {grid.title}" if grid.title else title
        drawn: dict[str, Any] = {"grid": grid, "low": low, "high": high, "shown": kind.shown, "predicted": guess}
        draw = partial(charts.heat_map, title=measured.metric_name, **drawn) if first else None
        caption = seen if index == 0 else _best_in(grid, kind)
        choice.charts.append(Chart(f"quality-{index + 1}", title, caption, heat_map(**drawn), draw))
    return choice


def _best_in(grid: Grid, kind: Metric) -> str:
    if np.isnan(grid.values).all():
        return "Not measured."
    best = np.nanargmax(grid.values) if kind.higher_is_better else np.nanargmin(grid.values)
    row, column = np.unravel_index(best, grid.values.shape)
    place = f"{grid.column_name} {grid.columns[column]}, {grid.row_name} {grid.rows[row]}"
    return f"Best: {kind.shown(float(grid.values[row, column]))} ({place})."


def _cost_charts(
    facts: RunFacts,
    measured: Comparison,
    costs: Mapping[SubNetwork, Costs],
    latencies: Mapping[str, Mapping[SubNetwork, float]],
    first: bool,
) -> Choice:
    choice = replace(choice_of(measured, facts.steps), text="")
    axes: dict[str, tuple[str, Mapping[SubNetwork, float]]] = {
        "parameters": ("parameters", {size: cost.parameters for size, cost in costs.items()}),
        "flops": ("FLOPs of one image", {size: cost.flops for size, cost in costs.items()}),
    }
    axes |= {f"latency-{index + 1}": latency for index, latency in enumerate(latencies.items())}
    for name, (title, cost) in axes.items():
        if cost.keys() & measured.values.keys():
            paper = published_points(measured.example, name)
            choice.charts.append(_cost_chart(facts, measured, name, title, cost, paper, first))
    return choice


def _cost_chart(
    facts: RunFacts,
    measured: Comparison,
    name: str,
    title: str,
    cost: Mapping[SubNetwork, float],
    paper: Mapping[str, list[tuple[float, float, str]]],
    first: bool,
) -> Chart:
    """Make the chart of one kind of cost, with the paper's models beside the sizes."""
    kind, names = measured.kind, {size: named for named, size in facts.space.named.items()}
    quality = {size: value for size, value in measured.values.items() if size in cost}
    worth = {size: kind.worth(value) for size, value in quality.items()}
    front = sorted(pareto_front(worth, [cost]), key=cost.__getitem__)
    caption = captions.on_front(worth, cost, front, kind.is_share)
    if name == "flops":
        caption += " A multiply-add counts once."
    if len(quality) < len(measured.values):
        caption += f" Shown: the {len(quality)} sizes whose latency was measured (poa select --measure_all: all)."
    intervals = {size: ends for size, ends in measured.intervals.items() if size in quality}
    if intervals:
        caption += " Thin bars: 95 % intervals."
    points = {
        size: CostPoint(cost[size], value, names.get(size, str(size)), intervals.get(size))
        for size, value in quality.items()
    }
    groups = {"this run" if paper else "": Group([*points.values()], [points[size] for size in front])}
    for family, models in paper.items():
        others = [CostPoint(*model) for model in models]
        groups[family] = Group(others, others, is_reference=True)
    if paper:
        caption += " Dashed: what the paper gives for its models."
    shown = kind.shown if not kind.is_share else percent
    plot = cost_plot(groups, title, measured.metric_name, shown=shown)
    figure = partial(
        charts.pareto_chart, cost=cost, quality=quality, front=front, cost_name=title,
        quality_name=measured.metric_name, names=names, intervals=intervals,
        references={family: [model[:2] for model in models] for family, models in paper.items()}, percent=kind.is_share,
    )  # fmt: skip
    heading = f"{capitalised(measured.metric_name)} against {title}"
    return Chart(f"pareto-{name}", heading, caption, plot, figure if first else None)


def _evaluate(facts: RunFacts, measure: str | None = None) -> str:
    """Return the command that measures all sizes on the labelled data that the run names."""
    data = facts.recipe.get("eval_dataset_name") or facts.recipe.get("dataset_name") or "DATASET"
    task = METRICS[measure].task if measure in METRICS else measure
    tasks = [] if task in (None, "knn", "linear") else ["--tasks", str(task)]
    return facts.command("evaluate", "--dataset_name", data, "--sizes", "all", *tasks)


def _no_quality(facts: RunFacts, task: str | None) -> tuple[str, str | None]:
    if facts.no_evaluations:
        return facts.no_evaluations, None
    if facts.no_model:
        return facts.no_model, None
    if facts.evaluations:
        return f"No size has been measured yet by {measure_in_words(task)}:", _evaluate(facts, task)
    return "No size has been measured yet:", _evaluate(facts)
