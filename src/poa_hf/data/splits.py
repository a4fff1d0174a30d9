"""Splits and slices of them, as `datasets` writes them: `train`, `train[:90%]`, `train+validation`.

A slice of a stream skips and takes rows, which needs the number of rows only where it counts in per cent or from the
end.

Follows `errors`; `sources` opens datasets by these names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .errors import MissingSplit

_UNBOUNDED = 2**62  # rows of a split whose number is not needed


def check_split_names(splits: Iterable[Any], name: str, split: str) -> None:
    """Raise `MissingSplit` if a split, or one of those of an expression, is not among a dataset's."""
    known = list(map(str, splits))
    if split in known:
        return
    for part in split.split("+"):
        wanted = part.strip().partition("[")[0]
        if wanted not in known:
            raise MissingSplit(f"The dataset {name} has no split {wanted!r}: choose one of {', '.join(known)}.")


def split_ranges(split: str, lengths: Mapping[str, int], name: str) -> list[tuple[str, int, int]]:
    """Return the rows that an expression means, part by part: (split, start, stop).

    Args:
        split: The expression.
        lengths: The number of rows of each split.
        name: What messages call the dataset.

    Raises:
        MissingSplit: If the dataset has no such split.
        ValueError: If it is not an expression, or means no rows.

    Example:
        >>> split_ranges("train[:90%]+test", {"train": 1000, "test": 10}, "photos")
        [('train', 0, 900), ('test', 0, 10)]
    """
    if split in lengths:
        return [(split, 0, lengths[split])]
    check_split_names(lengths, name, split)
    from datasets import ReadInstruction

    try:
        parts = ReadInstruction.from_spec(split).to_absolute(dict(lengths))
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{split!r} is not a split of {name}: write it as train[:80%] or train+validation.") from error
    for part, text in zip(parts, split.split("+"), strict=True):
        if part.from_ >= part.to:
            raise ValueError(f"The split {text.strip()!r} of {name} holds no rows: give a slice that holds some.")
    return [(part.splitname, part.from_, part.to) for part in parts]


def rows_of_splits(splits: Mapping[str, Any], split: str, name: str) -> Any:
    """Return the rows of an expression from datasets whose rows can be read by index.

    Args:
        splits: Each split, as a `datasets.Dataset`.
        split: The expression.
        name: What messages call the dataset.

    Raises:
        MissingSplit: If there is no such split.
        ValueError: If it is not an expression, or means no rows.
    """
    if split in splits:
        return splits[split]
    import datasets

    ranges = split_ranges(split, {each: len(rows) for each, rows in splits.items()}, name)
    return datasets.concatenate_datasets([splits[each].select(range(start, stop)) for each, start, stop in ranges])


def stream_of_splits(streams: Mapping[str, Any], split: str, name: str, count_rows: Callable[[Any], int | None]) -> Any:
    """Return the rows of an expression from streams.

    Args:
        streams: Each split, as a `datasets.IterableDataset`.
        split: The expression.
        name: What messages call the dataset.
        count_rows: Returns the number of rows of a stream, or None if it is not known.

    Raises:
        MissingSplit: If there is no such split.
        ValueError: If it is not an expression, means no rows, or needs a number of rows that is not known.
    """
    if split in streams:
        return streams[split]
    check_split_names(streams, name, split)
    import datasets

    lengths = dict.fromkeys(map(str, streams), _UNBOUNDED)
    for part in split.split("+"):
        each = part.strip().partition("[")[0]
        if re.search(r"[%-]", part) and lengths[each] == _UNBOUNDED:
            count = count_rows(streams[each])
            if count is None:
                raise ValueError(
                    f"The split {part.strip()!r} of {name} needs the number of its rows, which is not known of a "
                    "stream of such files: count rows from the start, as in train[:1000], or give --streaming false."
                )
            lengths[each] = count
    ranges = split_ranges(split, lengths, name)
    return datasets.concatenate_datasets([_rows(streams[each], *span) for each, *span in ranges])


def _rows(stream: Any, start: int, stop: int) -> Any:
    stream = stream.skip(start) if start else stream
    return stream.take(stop - start) if stop < _UNBOUNDED else stream
