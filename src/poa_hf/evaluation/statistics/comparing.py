"""Models compared on the same test images: who is compared with whom, and what was found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from ...locations import looks_local
from ...runs.evaluations import Evaluation
from ...runs.load import resolve_run
from ...runs.metrics import column_title, metric_name
from ..evaluator import Measurement
from ..subject import ONE_SIZE, Subject
from ..tasks.occlusion import chosen_by_model
from .paired import PairedDifference, holm, paired_difference, resampled_difference

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Side:
    """A model at one size, as one side of a comparison.

    Args:
        source: The model as it was named: a run, a checkpoint or a stock model.
        size: The size, `-` for a model with only one.
    """

    source: str
    size: str

    def __str__(self) -> str:
        return self.source if self.size == ONE_SIZE else f"{self.source}:{self.size}"


@dataclass(frozen=True)
class ModelDifference:
    """What was found between two sides by one measure.

    Args:
        first: One side.
        second: The other.
        records: What was measured of both.
        paired: Their difference, the first minus the second.
        adjusted_p_value: The p value for all comparisons together, by Holm's method.
    """

    first: Side
    second: Side
    records: tuple[Evaluation, Evaluation]
    paired: PairedDifference
    adjusted_p_value: float

    @property
    def is_shown(self) -> bool:
        """Whether there is a difference beyond reasonable doubt."""
        return self.adjusted_p_value < SIGNIFICANT

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        first, second = self.records
        measure = {"task": first.task, "metric": first.metric, "settings": first.settings, "title": column_title(first)}
        values = {"first_value": first.value, "second_value": second.value}
        steps = {"first_step": first.step, "second_step": second.step}
        sides = {"first": str(self.first), "second": str(self.second)}
        adjusted = {"adjusted_p_value": self.adjusted_p_value, "is_shown": self.is_shown}
        return sides | steps | measure | values | asdict(self.paired) | adjusted


def split_size(text: str) -> tuple[str, str | None]:
    """Split a model's name as `poa compare` takes it, `MODEL` or `MODEL:SIZE`, into the model and the size.

    Raises:
        ValueError: If nothing stands on one side of the colon.

    Example:
        >>> split_size("me/poa-vit-l:384x12"), split_size("facebook/dinov2-small")
        (('me/poa-vit-l', '384x12'), ('facebook/dinov2-small', None))
    """
    source, colon, size = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, None
    if not source or not size:
        raise ValueError(f"{text} names no model and size: give them as MODEL:SIZE, such as runs/mine:small.")
    return source, size


def pairs_of(
    named: Sequence[tuple[str, str | None]],
    subjects: dict[str, Subject],
    sizes: Sequence[str] | None = None,
    all_pairs: bool = False,
) -> list[tuple[Side, Side]]:
    """Return which sides are compared: each model with the one that was named first.

    A model whose size was not named is compared at its full size, or at each of `sizes`: two elastic models size by
    size, one such model alone at its other sizes with the first size.

    Args:
        named: Models and sizes, from `split_size`.
        subjects: The loaded models by their names.
        sizes: Sizes, as `Subject.sizes` takes them.
        all_pairs: Compare every two sides instead.

    Raises:
        ValueError: For sizes that do not exist, fewer than two sides, or a side that is compared with itself.
    """
    columns = [[Side(source, size) for size in _sizes(subjects[source], size, sizes)] for source, size in named]
    if all_pairs or len(columns) == 1:
        everyone = [side for column in columns for side in column]
        pairs = list(combinations(everyone, 2)) if all_pairs else [(everyone[0], other) for other in everyone[1:]]
    else:
        first = columns[0]
        pairs = [pair for column in columns[1:] for pair in _side_by_side(first, column)]
    if not pairs:
        raise ValueError(f"There is nothing to compare {named[0][0]} with: name a second model, or several --sizes.")
    for one, other in pairs:
        if one.size == other.size and _same_model(one.source, other.source):
            raise ValueError(f"{one} is compared with itself: name another model or size.")
    return list(dict.fromkeys(pairs))


def _sizes(subject: Subject, size: str | None, sizes: Sequence[str] | None) -> list[str]:
    is_elastic = subject.sizes(None) != [ONE_SIZE]
    if size is not None:
        if not is_elastic:
            raise ValueError(f"{subject.name} is a checkpoint of one size: leave out :{size}.")
        return subject.sizes([size])
    if not is_elastic:
        return [ONE_SIZE]
    return subject.sizes(",".join(sizes)) if sizes else [str(subject.model.config.space.full)]


def _side_by_side(first: list[Side], second: list[Side]) -> list[tuple[Side, Side]]:
    """Return the pairs of sides in the same place, as sizes were asked for, or else of equal sizes.

    A model with one side is paired with all of the other's.
    """
    count = max(len(first), len(second))
    if min(len(first), len(second)) == 1:
        first, second = (sides * count if len(sides) == 1 else sides for sides in (first, second))
    if len(first) == len(second):
        return list(zip(first, second, strict=True))
    by_size = {side.size: side for side in second}
    return [(side, by_size[side.size]) for side in first if side.size in by_size]


def _same_model(first: str, second: str) -> bool:
    """Whether two names mean one model, as a run and its latest checkpoint do."""
    return first == second or (looks_local(first) and looks_local(second) and _folder(first) == _folder(second))


def _folder(source: str) -> Path:
    try:
        return resolve_run(source).resolve()
    except (ValueError, OSError):  # a stock checkpoint
        return Path(source).expanduser().resolve()


def differences(
    pairs: Sequence[tuple[Side, Side]], measured: dict[Side, list[Measurement]], seed: int = 0
) -> list[ModelDifference]:
    """Compare the sides of each pair by every measure of the same images that is a mean over them or has replicates.

    Args:
        pairs: From `pairs_of`.
        measured: What was measured of each side, on the same images.
        seed: The seed of bootstraps and permutations.

    Raises:
        ValueError: If there is no such measure.
    """
    found = []
    for first, second in pairs:
        for mine, theirs in _same_measures(first, second, measured):
            paired = None if theirs is None else _paired(mine, theirs, seed)
            if theirs is not None and paired is not None:
                found.append((first, second, (mine.record, theirs.record), paired))
    if not found:
        other = not_alike(pairs, measured)
        reason = f" ({', '.join(other)}: not of the same altered images)" if other else ""
        raise ValueError(
            f"The tasks measure nothing that can be compared image by image{reason}: give others with --tasks."
        )
    adjusted = holm([paired.p_value for *_, paired in found])
    return [ModelDifference(*each, p_value) for each, p_value in zip(found, adjusted, strict=True)]


def _paired(first: Measurement, second: Measurement, seed: int) -> PairedDifference | None:
    """Compare two measurements of the same images; None if there is nothing to compare them by."""
    if first.outcomes is not None and second.outcomes is not None:
        return paired_difference(first.outcomes.numpy(), second.outcomes.numpy(), seed)
    if first.replicates is None or second.replicates is None:
        return None
    values = first.record.value, second.record.value
    replicates = first.replicates.numpy(), second.replicates.numpy()
    return resampled_difference(values, replicates, first.images or first.record.test_images)


def left_out(measured: dict[Side, list[Measurement]]) -> list[str]:
    """Return the names of measures that are no means over images and have no replicates, and so are not compared."""
    names = (
        metric_name(each.record)
        for found in measured.values()
        for each in found
        if each.outcomes is None and each.replicates is None
    )
    return list(dict.fromkeys(names))


def not_alike(pairs: Sequence[tuple[Side, Side]], measured: dict[Side, list[Measurement]]) -> list[str]:
    """Return the names of measures that the two sides of a pair did not take on the same images.

    Their test images were altered differently: divided into another number of patches, or by what each model takes for
    salient.
    """
    names = (
        metric_name(mine.record)
        for first, second in pairs
        for mine, theirs in _same_measures(first, second, measured)
        if theirs is None
    )
    return list(dict.fromkeys(names))


def _same_measures(
    first: Side, second: Side, measured: dict[Side, list[Measurement]]
) -> Iterator[tuple[Measurement, Measurement | None]]:
    """Yield what was measured of one side with the same of the other; None where that is not of the same images."""
    by_measure, others = ({_measure(each.record): each for each in measured[side]} for side in (first, second))
    for measure, mine in by_measure.items():  # each once, however often it was taken
        own_images = chosen_by_model(mine.record.settings) and first.source != second.source
        yield mine, None if own_images else others.get(measure)


def _measure(record: Evaluation) -> str:
    return json.dumps([record.task, record.metric, record.settings], sort_keys=True)
