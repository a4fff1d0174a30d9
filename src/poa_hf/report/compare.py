"""A start page for several runs: a table of them, their losses and their qualities in the same charts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..formatting import capitalised, format_quantity
from ..locations import leads_outside
from ..runs.comparison import Comparison, images_of, one_per_measure
from ..runs.facts import RunFacts
from ..runs.layout import REPORT
from ..runs.metrics import display_order
from ..selection.pareto import pareto_front
from . import plots
from .axes import percent as in_percent
from .captions import percent
from .content import RunContent
from .cost_plots import CostPoint, Group, cost_plot
from .numbers import entry, series
from .quality import MOST_CHOICES, choice_of
from .rendering import check_folder, check_request, rendered, write_page
from .section import Chart, Choice, Section

Contents = Mapping[str, RunContent]  # by the name of the run


@dataclass(frozen=True)
class RunRow:
    """A run in the table.

    Args:
        name: What distinguishes it from the other runs.
        color: The number of its colour in the charts.
        cells: What is known of it, in the order of the table's columns, each with what it is sorted by.
        best: The best size and its quality, by choice; None where the run was not measured like that.
        report: Where its own report lies, seen from the page; empty if there is none.
    """

    name: str
    color: int
    cells: list[tuple[str, float | str]]
    best: list[tuple[str, float] | None] = field(default_factory=list)
    report: str = ""


def write_comparison(runs: Sequence[str | Path], output: str | Path | None = None, quality: str | None = None) -> Path:
    """Write a page that compares runs: a table of them, their losses, and their qualities against parameters.

    Args:
        runs: What `write_report` takes, twice or more.
        output: The folder to write into; by default `report` beside the runs.
        quality: The task or metric that is shown first, as for `write_report`.

    Returns:
        The path of the page.

    Raises:
        ValueError: If there is no such run, one is given twice, matplotlib is not installed, or the folder cannot be
            written to or holds another page.
    """
    facts = dict(zip(names_of(runs), map(RunFacts.read, runs), strict=True))
    check_request(quality, facts.values())
    contents = {name: RunContent.of(known, quality) for name, known in facts.items()}
    folder = _beside([content.folder.path for content in contents.values()]) if output is None else Path(output)
    if output is None and leads_outside(folder, folder.parent):
        raise ValueError(f"{folder} leads to another folder: give --output to write there.")
    check_folder(folder)
    return write_page(folder, comparison_page(contents, quality, folder), {})


def comparison_page(
    contents: Contents, quality: str | None, folder: Path | None = None, live: bool = False, missing: Sequence[str] = ()
) -> str:
    """Return the page that compares runs.

    Args:
        contents: What is known of the runs, by their names.
        quality: The task or metric that is shown first.
        folder: The folder that it is written into, from which it refers to the reports of the runs.
        live: Whether it asks for news while it is shown.
        missing: Why other runs are not shown, a sentence each.
    """
    measures = _measures(contents, quality)
    rows = []
    for index, (name, content) in enumerate(contents.items()):
        best = [_best(measured.get(name)) for measured in measures]
        rows.append(RunRow(name, index % plots.LINE_COLORS, _cells(content), best, _report(content, folder)))
    choices = [_choice(measured, contents) for measured in measures]
    table = Section("runs", "Runs", missing=[(sentence, None) for sentence in missing])
    sections = [table, _quality_section(choices), _loss_section(contents)]
    titles = [next(iter(measured.values())).title for measured in measures]
    return rendered(
        "compare.html", name=", ".join(contents), rows=rows, sections=sections, choices_of=choices, titles=titles,
        live=live,
    )  # fmt: skip


def names_of(runs: Sequence[str | Path]) -> list[str]:
    """Return what distinguishes paths from each other: as few of their last parts as are needed.

    Raises:
        ValueError: If two paths are of one folder.

    Example:
        >>> names_of(["runs/vit", "runs/swin"]), names_of(["a/run", "b/run"])
        (['vit', 'swin'], ['a/run', 'b/run'])
    """
    paths = [Path(run).absolute().resolve() for run in runs]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise ValueError(f"{runs[index]} is given twice: give each run once.")
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len({*names}) == len(names):
            return names
    return list(map(str, paths))


def _beside(folders: Sequence[Path]) -> Path:
    """Return the folder `report` in the nearest folder that holds all runs."""
    return Path(os.path.commonpath([folder.parent for folder in folders])) / REPORT


def _report(content: RunContent, folder: Path | None) -> str:
    """Return the way from a page to the report of a run, if there is one."""
    page = content.folder.report / "index.html"
    if folder is None or not page.is_file():
        return ""
    return Path(os.path.relpath(page.resolve(), folder.resolve())).as_posix()


def _cells(content: RunContent) -> list[tuple[str, float | str]]:
    shown, log = dict(content.headline), content.log
    parameters = max((cost.parameters for cost in content.sizes.values()), default=0)
    losses = series(log, entry("loss"))[1]
    return [
        (shown.get("family", ""), shown.get("family", "")),
        (shown.get("trained on", ""), shown.get("trained on", "")),
        (shown.get("sizes", ""), len(content.sizes) or ""),
        (format_quantity(parameters) if parameters else "", parameters or ""),
        (shown.get("steps", ""), log[-1]["step"] if log else ""),
        (shown.get("last loss", ""), losses[-1] if losses else ""),
    ]


def _measures(contents: Contents, quality: str | None) -> list[dict[str, Comparison]]:
    """Return, for each measure, the evaluation of each run that has one; what most runs have comes first."""
    measures: dict[tuple, dict[str, Comparison]] = {}
    for name, content in contents.items():
        for comparison in one_per_measure(content.facts.comparisons):
            record = comparison.example
            measures.setdefault((record.test_set, comparison.metric_name), {})[name] = comparison

    def place(item: tuple[tuple, dict[str, Comparison]]) -> tuple:
        first = next(iter(item[1].values()))
        usual = first.example.settings.get("k", 20) == 20
        wanted = (quality or "knn") in (first.metric, first.example.task, first.title, first.metric_name)
        return -len(item[1]), not wanted, not usual, display_order(first.example), item[0][0]

    return [measured for _, measured in sorted(measures.items(), key=place)][:MOST_CHOICES]


def _best(comparison: Comparison | None) -> tuple[str, float] | None:
    if comparison is None:
        return None
    value = comparison.values[comparison.best]
    return f"{comparison.kind.shown(value)} ({comparison.best})", value


def _choice(measured: Mapping[str, Comparison], contents: Contents) -> Choice:
    """Make the chart of the qualities of all sizes of the runs against their parameters."""
    first = next(iter(measured.values()))
    choice = choice_of(first, first.step)
    images = {name: images_of(comparison.example) for name, comparison in measured.items()}
    choice.text = f"{capitalised(first.metric_name)} on {first.example.dataset}"
    if len({*images.values()}) == 1:
        choice.text += f" ({next(iter(images.values()))})."
    else:
        alike = "; ".join(f"{name}: {text}" for name, text in images.items())
        choice.text += f". The runs were not measured alike ({alike})."
    if absent := [name for name in contents if name not in measured]:
        choice.text += f" Not measured: {', '.join(absent)}."
    groups = {name: _group(measured.get(name), contents[name]) for name in contents}
    shown = in_percent if first.kind.is_share else first.kind.shown
    plot = cost_plot(groups, "parameters", first.metric_name, labels=False, shown=shown)
    title = f"{capitalised(first.metric_name)} against parameters"
    choice.charts.append(Chart("quality", title, _leaders(measured, contents), plot))
    return choice


def _group(measured: Comparison | None, content: RunContent) -> Group:
    """Return the points of a run, and the line through those that are better than all cheaper ones."""
    if measured is None:
        return Group([], [])
    parameters = {size: content.sizes[size].parameters for size in measured.values}
    ends = measured.intervals
    points = {
        size: CostPoint(parameters[size], value, str(size), ends.get(size)) for size, value in measured.values.items()
    }
    front = sorted(pareto_front(measured.worth, [parameters]), key=parameters.__getitem__)
    return Group([*points.values()], [points[size] for size in front])


def _leaders(measured: Mapping[str, Comparison], contents: Contents) -> str:
    """Say which run is the best at the fewest and at the most parameters that all runs have."""
    kind = next(iter(measured.values())).kind
    best = {name: comparison.values[comparison.best] for name, comparison in measured.items()}

    def worth(values: Mapping[str, float]) -> Callable[[str], float]:
        return lambda name: kind.worth(values[name])

    leader = max(best, key=worth(best))
    text = "Each point is a size; lines join those that no cheaper size of their run beats."
    if len(measured) < 2:
        return text
    smallest = {}
    for name, comparison in measured.items():
        size = min(comparison.values, key=lambda size: contents[name].sizes[size].parameters)
        smallest[name] = comparison.values[size]
    first = max(smallest, key=worth(smallest))
    return (
        f"{text} Best of all: {leader}, {kind.shown(best[leader])}. Best of the smallest sizes: {first}, "
        f"{kind.shown(smallest[first])}."
    )


def _quality_section(choices: list[Choice]) -> Section:
    section = Section("quality", "Quality against parameters", choices=choices)
    if not choices:
        section.missing.append(("No size of these runs has been measured yet:", "poa evaluate RUN --sizes all"))
    return section


def _loss_section(contents: Contents) -> Section:
    section = Section("loss", "Training")
    for name, title, percents in (("loss", "Total loss", False), ("knn_mean", "k-NN accuracy, mean of sizes", True)):
        # a run without such lines keeps its colour, and its place in the legend
        lines = {run: series(content.log, entry(name)) for run, content in contents.items()}
        if not any(points[0] for points in lines.values()):
            continue
        last = ", ".join(
            f"{run} {percent(values[-1]) if percents else f'{values[-1]:.4g}'} at step {steps[-1]:,}"
            for run, (steps, values) in lines.items()
            if steps
        )
        chart = Chart(name.replace("_", "-"), title, f"Last: {last}.", plots.line_plot(lines, title, percent=percents))
        section.charts.append(chart)
    if not section.charts:
        section.missing.append(("The runs have no log (metrics.jsonl), which pre-training writes.", None))
    return section
