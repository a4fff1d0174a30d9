"""Differences of models as text: a table, and a sentence of verdict on each."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase

from ...formatting import capitalised, listed
from ...runs.comparison import images_of
from ...runs.evaluations import Evaluation
from ...runs.metrics import Metric, column_title, metric_name, metric_of
from .comparing import ModelDifference, Side

_MOST_VERDICTS = 12


def differences_text(
    found: Sequence[ModelDifference], left_out: Sequence[str] = (), not_alike: Sequence[str] = ()
) -> str:
    """Return differences as text: who was compared, a table, a verdict on each and how it was reached.

    Args:
        found: The differences, at least one.
        left_out: Names of measures that were not compared, as they are no means over images.
        not_alike: Names of measures that were not compared, as they are not of the same images.
    """
    names = _names(found)
    record = next((each.records[0] for each in found if each.records[0].train_images is not None), found[0].records[0])
    lead = max(map(len, names.values()))
    sides = [f"{name:<{lead}}  {side}{_step(found, side)}" for side, name in names.items()]
    return "\n\n".join(
        [
            f"Compared on {record.dataset} ({images_of(record)})",
            "\n".join(sides),
            "\n".join(_table(found, names)),
            "\n".join(_verdicts(found, names)),
            "\n".join(_notes(found, left_out, not_alike)),
        ]
    )


def _verdicts(found: Sequence[ModelDifference], names: dict[Side, str]) -> list[str]:
    """Return a sentence on each difference; of many, only on those that are shown."""
    told = found if len(found) <= _MOST_VERDICTS else [each for each in found if each.is_shown]
    sentences = [verdict(each, names[each.first], names[each.second]) for each in told]
    if len(told) < len(found):
        count = len(found) - len(told)
        sentences.append(f"{count} {'other ' if told else ''}differences cannot be shown with these images.")
    return sentences


def verdict(found: ModelDifference, first: str | None = None, second: str | None = None) -> str:
    """Return a sentence that says whether two models differ.

    Args:
        found: The difference.
        first: What to call the first model, by default its name and size.
        second: What to call the second.
    """
    first, second = first or str(found.first), second or str(found.second)
    record, paired = found.records[0], found.paired
    metric, name = metric_of(record), metric_name(record)
    p_value = f"p {_related(found.adjusted_p_value)}"
    if found.is_shown:
        first_is_better = metric.worth(paired.difference) > 0
        better, worse = (first, second) if first_is_better else (second, first)
        size = _points(abs(paired.difference), metric)
        ends = sorted(end if paired.difference > 0 else -end for end in paired.interval or ())
        low, high = (metric.shown(end, unit=False) for end in ends)
        return f"{better} is better than {worse}: {name} differs by {size} (95 % interval {low} to {high}, {p_value})."
    evidence = f"95 % interval {_interval(found)}, {p_value}"
    images = f"{paired.images:,} test image{'' if paired.images == 1 else 's'}"
    text = f"With {images}, no difference between {first} and {second} in {name} can be shown ({evidence})"
    if paired.interval is None:
        return f"{text}."
    return f"{text}; one of more than {_points(max(map(abs, paired.interval)), metric)} is unlikely."


def _names(found: Sequence[ModelDifference]) -> dict[Side, str]:
    """Return a short name for each side: A, B, ..."""
    sides = dict.fromkeys(side for each in found for side in (each.first, each.second))
    count = len(ascii_uppercase)
    return {
        side: ascii_uppercase[index % count] + (str(index // count) if index >= count else "")
        for index, side in enumerate(sides)
    }


def _table(found: Sequence[ModelDifference], names: dict[Side, str]) -> list[str]:
    head = ["", "", "first", "second", "difference", "95 % interval", "p", "first better", "second better"]
    rows = [head]
    for each in found:
        first, second = each.records
        metric, paired = metric_of(first), each.paired
        better = (paired.first_better, paired.second_better)  # with the higher outcome
        if not metric.higher_is_better:
            better = better[::-1]
        rows.append(
            [
                f"{names[each.first]} - {names[each.second]}",
                column_title(first),
                *(metric.shown(record.value, unit=False) for record in (first, second)),
                _signed(paired.difference, metric),
                _interval(each),
                _p_value(each.adjusted_p_value),
                *("-" if count is None else f"{count:,}" for count in better),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([*map(str.ljust, row[:2], widths), *map(str.rjust, row[2:], widths[2:])]).rstrip() for row in rows
    ]


def _notes(found: Sequence[ModelDifference], left_out: Sequence[str], not_alike: Sequence[str]) -> list[str]:
    tests: dict[str, dict[str, None]] = {}
    for each in found:
        tests.setdefault(each.paired.test, {})[column_title(each.records[0])] = None
    used = "; ".join(f"{test} ({listed(titles)})" for test, titles in tests.items())
    shares = all(metric_of(each.records[0]).is_share for each in found)
    notes = [f"{'Values in %, differences in points. ' if shares else ''}p: {used}."]
    if len(found) > 1:
        notes.append(f"p values are those of {len(found)} comparisons together (Holm); each interval is for itself.")
    notes.append("Both are for other test images of the same kind, not for models trained again.")
    if left_out:
        notes.append(f"{capitalised(', '.join(left_out))}: not compared, as no means over images.")
    if not_alike:
        names = capitalised(", ".join(not_alike))
        notes.append(f"{names}: not compared, as the models' images were altered differently.")
    return notes


def _step(found: Sequence[ModelDifference], side: Side) -> str:
    records: dict[Side, Evaluation] = {}
    for each in found:
        records |= {each.first: each.records[0], each.second: each.records[1]}
    step = records[side].step
    return "" if step is None else f" at step {step:,}"


def _interval(found: ModelDifference) -> str:
    if found.paired.interval is None:
        return "-"
    metric = metric_of(found.records[0])
    low, high = (_signed(end, metric) for end in found.paired.interval)
    return f"{low} to {high}"


def _signed(value: float, metric: Metric) -> str:
    text = metric.shown(value, unit=False)
    if not text.strip("-0."):
        return text.lstrip("-")  # no minus before a zero
    return text if value < 0 else f"+{text}"


def _points(value: float, metric: Metric) -> str:
    return f"{metric.shown(value, unit=False)}{' points' if metric.is_share else ''}"


def _related(p_value: float) -> str:
    text = _p_value(p_value)
    return text.replace("<", "< ") if text.startswith("<") else f"= {text}"


def _p_value(value: float) -> str:
    if value < 1e-4:
        return "<0.0001"
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}"
