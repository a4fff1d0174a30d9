"""The report's sections of what a run has logged: losses, learning rate, accuracies, signs of collapse."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from ..figures import charts
from ..formatting import capitalised
from ..runs.facts import RunFacts
from ..training.monitoring import (
    MAX_TEACHER_ENTROPY,
    MIN_BATCH_SIZE,
    MIN_EFFECTIVE_RANK,
    MIN_FEATURE_SPREAD,
    collapse_warning,
)
from . import captions, plots
from .captions import Series
from .section import Chart, Section

_TOO_LARGE = 1e100
_SPREAD = "0 if all images have one feature, 1 if directions are uniform."
_RANK = "The number of directions in use."
_ENTROPY = "Over its maximum, by head; at 1 targets are uniform."
_USE = "As a share of those that a batch could use, by head."


def loss_section(facts: RunFacts, log: list[dict[str, Any]]) -> Section:
    """Make the section that shows the loss, its terms, the learning rate and the accuracy over the steps.

    Args:
        facts: What is known of the run.
        log: The lines of its log, from `numeric`.
    """
    section = Section("loss", "Loss")
    loss = series(log, entry("loss"))
    if not log:
        section.missing.append(_no_log())
        return section
    if loss[0]:
        section.charts.append(_lines("loss", "Total loss", captions.course(loss), {"loss": loss}))
    terms = {
        "cross-view": series(log, lambda line: _term(line, ("dino_local_crops_loss", "dino_global_crops_loss"))),
        "same-view": series(log, lambda line: _term(line, ("distill_local_crops_loss", "distill_global_crops_loss"))),
        "masked patches": series(log, _masked_patches),
        "features of images": series(log, entry("feature_image_loss")),  # of a foreign teacher
        "features of patches": series(log, entry("feature_patch_loss")),
    }
    terms = {title: points for title, points in terms.items() if points[0]}
    if terms:
        caption = f"Means over the heads, before they are weighted against each other. {captions.latest(terms)}"
        section.charts.append(_lines("loss-terms", "Terms of the loss", caption, terms, bottom=0))
    rate = series(log, entry("learning_rate"))
    if rate[0]:
        lines = {"learning rate": rate}
        section.charts.append(_lines("learning-rate", "Learning rate", captions.peak(rate), lines, bottom=0))
    knn = {name: points for name, points in _all_series(log, "knn_").items() if points[0]}
    if knn:
        title = "k-NN accuracy of the teacher during training"
        section.charts.append(_lines("knn", title, captions.accuracies(knn), knn, percent=True))
    else:
        command = shlex.join(["poa", "pretrain", "--config", "FILE.yaml", "--eval_steps", "1000"])
        section.missing.append(("The accuracy was not measured during training; a further run does so with", command))
    return section


def _lines(name: str, title: str, caption: str, lines: dict[str, Series], **options: Any) -> Chart:
    """Make a chart of lines over the steps, each with at least one point."""
    plot = plots.line_plot(lines, title, **options)
    return Chart(name, title, caption, plot, partial(charts.line_chart, lines=lines, **options))


def _term(line: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    """Return the sum of some terms of the loss, as a mean over the heads; None for a line without them."""
    values = [value for name, value in line.items() if name.startswith(names)]
    heads = sum(name.startswith(names[0]) for name in line)
    return sum(values) / heads if heads else None


def _masked_patches(line: Mapping[str, Any]) -> float | None:
    """Return the term of the masked patches, which is logged at half its value; None until masked prediction begins."""
    term = _term(line, ("ibot_loss",))
    return None if term is None or not line.get("predict_masked_patches", True) else 2 * term


def collapse_section(facts: RunFacts, log: list[dict[str, Any]]) -> Section:
    """Make the section of statistics that show whether the features of the teacher have collapsed.

    Args:
        facts: What is known of the run.
        log: The lines of its log, from `numeric`.
    """
    section = Section("collapse", "Signs of collapse")
    known = [line for line in log if "feature_spread" in line and "effective_rank" in line]
    if not known:
        section.missing.append(_no_log())
        return section
    batch = facts.arguments.get("per_device_train_batch_size")
    if isinstance(batch, int) and batch < MIN_BATCH_SIZE:
        section.text = f"Batches of {batch} images say little about how far features lie apart."
    else:
        fine = "No sign of collapse: features spread, in many directions, and targets tell images apart."
        section.text = f"Step {known[-1]['step']:,}: {collapse_warning(known[-1]) or fine}"
    for name, title, meaning, limit in (
        ("feature_spread", "Spread of the teacher's features", _SPREAD, MIN_FEATURE_SPREAD),
        ("effective_rank", "Effective rank of the teacher's features", _RANK, MIN_EFFECTIVE_RANK),
    ):
        lines = {name: series(log, entry(name))}
        if lines[name][0]:
            caption = f"{meaning} {capitalised(captions.latest(lines))}"
            drawn: dict[str, Any] = {"limit": (limit, "collapsed below"), "bottom": 0}
            section.charts.append(_lines(name.replace("_", "-"), title, caption, lines, **drawn))
    for name, title, meaning, drawn in (
        (
            *("teacher-entropy", "Entropy of the teacher's targets", _ENTROPY),
            {"limit": (MAX_TEACHER_ENTROPY, "collapsed above"), "bottom": 0, "top": 1.1},
        ),
        ("prototype-use", "Prototypes in use", _USE, {"bottom": 0, "top": 1.05}),
    ):
        found = _all_series(log, f"{name.replace('-', '_')}_")
        heads = {f"head {index}": points for index, points in found.items() if points[0]}
        if heads:
            section.charts.append(_lines(name, title, f"{meaning} {captions.latest(heads)}", heads, **drawn))
    return section


def numeric(log: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of a log with those of their values that can be drawn."""

    def is_drawable(value: Any) -> bool:
        return isinstance(value, int | float) and abs(value) < _TOO_LARGE  # neither infinite nor not a number

    lines = [{name: value for name, value in line.items() if is_drawable(value)} for line in log]
    return [line for line in lines if "step" in line]


def series(log: list[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> Series:
    """Return the steps and values of the lines of a log, from `numeric`, that have a value."""
    points = [(line["step"], number) for line in log if (number := value(line)) is not None]
    return [step for step, _ in points], [number for _, number in points]


def entry(name: str) -> Callable[[dict[str, Any]], float | None]:
    """Return a function that takes a value of that name from a line of a log."""
    return lambda line: line.get(name)


def _all_series(log: list[dict[str, Any]], prefix: str) -> dict[str, Series]:
    """Return the series of each name with a prefix, by the rest of the name."""
    names = dict.fromkeys(name for line in log for name in line if name.startswith(prefix))
    return {name.removeprefix(prefix): series(log, entry(name)) for name in names}


def _no_log() -> tuple[str, str | None]:
    return "The run has no log (metrics.jsonl), which pre-training writes:", "poa pretrain --config FILE.yaml"
