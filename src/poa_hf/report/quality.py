"""The report's sections of quality: over the sizes, and against cost, for each evaluation of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ..elastic import SubNetwork
from ..figures import charts
from ..figures.grids import Grid, grids
from ..formatting import capitalised
from ..runs.comparison import Comparison, one_per_measure
from ..runs.facts import RunFacts
from ..selection.costs import Costs
from ..selection.pareto import pareto_front
from . import captions, plots
from .section import Chart, Choice, Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CHOICES = 16  # evaluations among which a reader chooses


def quality_sections(
    facts: RunFacts,
    measured: Comparison | None,
    costs: Mapping[SubNetwork, Costs],
    latencies: Mapping[str, Mapping[SubNetwork, float]],
    task: str,
) -> tuple[Section, Section]:
    """Make the sections that show quality: as a map over widths and depths, and against each cost.

    Where a run was measured in several ways, the reader chooses one for both sections.

    Args:
        facts: What is known of the run.
        measured: The evaluation that is shown first; None if there is none.
        costs: The costs of each size.
        latencies: The measured latencies of sizes, by their titles.
        task: The task that `measured` is of, `knn` or `linear`.
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
            over_sizes.missing.append(("The other sizes, marked with a dot, have not been measured:", _evaluate(facts)))
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
    choice, values, space = choice_of(measured, facts.steps), measured.values, facts.space
    low, high = min(values.values()), max(values.values())
    if len(values) < len(space):
        choice.text += f" {len(values)} of the {len(space)} sizes have been measured."
    seen = captions.over_sizes(values, {size: cost.parameters for size, cost in costs.items()})
    for index, grid in enumerate(grids(space, values)):
        title = f"{capitalised(measured.metric_name)}, %, by {grid.column_name} and {grid.row_name}"
        draw = partial(charts.heat_map, grid=grid, low=low, high=high, title=measured.metric_name) if first else None
        title = f"{title}: {grid.title}" if grid.title else title
        caption = seen if index == 0 else _best_in(grid)
        choice.charts.append(Chart(f"quality-{index + 1}", title, caption, plots.heat_map(grid, low, high), draw))
    return choice


def _best_in(grid: Grid) -> str:
    if np.isnan(grid.values).all():
        return "Not measured."
    row, column = np.unravel_index(np.nanargmax(grid.values), grid.values.shape)
    place = f"{grid.column_name} {grid.columns[column]}, {grid.row_name} {grid.rows[row]}"
    return f"Best: {captions.percent(grid.values[row, column])} ({place})."


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
    named = {size: name for name, size in facts.space.named.items()}
    for name, (title, cost) in axes.items():
        quality = {size: value for size, value in measured.values.items() if size in cost}
        if not quality:
            continue
        front = pareto_front(quality, [cost])
        caption = captions.on_front(quality, cost, front)
        if name == "flops":
            caption += " A multiply-add counts once."
        if len(quality) < len(measured.values):
            caption += f" Shown: the {len(quality)} sizes whose latency was measured (poa select --measure_all: all)."
        options = (cost, quality, front, title, measured.metric_name, named)
        points = {size: (cost[size], quality[size], named.get(size, str(size))) for size in quality}
        along = sorted(front, key=cost.__getitem__)
        plot = plots.cost_plot(
            {"": [*points.values()]}, {"": [points[size] for size in along]}, title, measured.metric_name
        )
        heading = f"{capitalised(measured.metric_name)} against {title}"
        draw = _pareto_figure(options) if first else None
        choice.charts.append(Chart(f"pareto-{name}", heading, caption, plot, draw))
    return choice


def _pareto_figure(options: tuple) -> Callable[[charts.Theme], Figure]:
    return lambda theme: charts.pareto_chart(theme, *options)


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
