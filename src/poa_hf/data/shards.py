"""A stream of `datasets` as shards, which together hold the rows that iterating the stream gives.

Sharding a stream is exact where it reads row by row from files. Behind `take`, `skip`, `shuffle` or a batched `map`,
the shards of `datasets` hold other rows than the stream, so such a stream is one shard, read in its own order.

Follows `sources`, which opens the dataset; `rows` picks the images of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from copy import copy
from itertools import count
from typing import Any

from .damage import ROW_GROUP, holds_no_rows, is_damage, shard_error, strict_archives
from .formats import unbroken

# Streams with fewer files are split further, into row groups. Splitting reads each file's footer: on the Hub, one or
# two requests per file.
ENOUGH_SHARDS = 128

# The steps of a stream by the names of their classes (`datasets.iterable_dataset`). All others are read in order.
SOURCES = {"ArrowExamplesIterable", "ExamplesIterable"}
CONCATENATION = "VerticallyConcatenatedMultiSourcesExamplesIterable"
ROW_BY_ROW = {"SelectColumnsIterable", "FormattedExamplesIterable", CONCATENATION}
ROW_BY_ROW_IF_SINGLE = {"MappedExamplesIterable", "FilteredExamplesIterable", "RebatchedArrowExamplesIterable"}
# Steps after which reading goes on exactly from a `state_dict`, but not shard by shard.
EXACT_STATES = {"TakeExamplesIterable", "SkipExamplesIterable"}
CHANGE_THE_NUMBER = {"FilteredExamplesIterable", CONCATENATION}
# What users call the other steps, for messages.
CALLED = {
    "TakeExamplesIterable": "take",
    "SkipExamplesIterable": "skip",
    "RepeatExamplesIterable": "repeat",
    "BufferShuffledExamplesIterable": "shuffle",
    "InterleavedShardsExamplesIterable": "shuffle",
    "StepExamplesIterable": "shard",
    "CyclingMultiSourcesExamplesIterable": "interleave_datasets",
    "RandomlyCyclingMultiSourcesExamplesIterable": "interleave_datasets",
    "HorizontallyConcatenatedMultiSourcesExamplesIterable": "concatenate_datasets(axis=1)",
    "MappedExamplesIterable": "map with batches or indices",
    "FilteredExamplesIterable": "filter with batches or indices",
}


class Shards:
    """The shards of a stream, numbered from 0 to `count`.

    Args:
        dataset: A `datasets.IterableDataset`.
        enough: The number of shards below which files are split further, into row groups.

    Attributes:
        count: The number of shards; 1 for a stream that is read in its own order.
        in_order: The step because of which the stream is read in its own order, such as "take"; None if there is none.
        endless: Whether the stream repeats without end.
        may_be_endless: Whether it repeats without end, or comes from a function that may never return.
        keeps_all_rows: Whether it has as many rows as its source declares.
    """

    def __init__(self, dataset: Any, enough: int = ENOUGH_SHARDS) -> None:
        steps = list(_steps(dataset._ex_iterable))
        in_order = [step for step in steps if not _is_row_by_row(step)]
        self.endless = _is_endless(dataset._ex_iterable, _repeats_forever)
        self.may_be_endless = _is_endless(dataset._ex_iterable, lambda s: _repeats_forever(s) or _is_generator(s))
        names = {type(step).__name__ for step in steps}
        self.keeps_all_rows = not in_order and not names & CHANGE_THE_NUMBER and dataset._distributed is None
        self._has_exact_state = all(type(step).__name__ in EXACT_STATES for step in in_order)
        self.in_order: str | None = None
        if dataset._distributed is not None:
            self.in_order, self._has_exact_state = "split_dataset_by_node", False
        elif in_order:
            name = type(in_order[0]).__name__
            self.in_order = CALLED.get(name, name)
        self.dataset = dataset
        self._parts = [dataset]  # one after the other, they hold the shards
        if self.in_order is None and dataset.num_shards < enough:
            self._parts = _split_further(dataset)
        self.count: int = sum(part.num_shards for part in self._parts) if self.in_order is None else 1

    def open(self, index: int) -> Any:
        """Return a shard as an iterable dataset whose position is independent of all others'."""
        if self.in_order is None:
            for part in self._parts:
                if index < part.num_shards:
                    return part.shard(part.num_shards, index)
                index -= part.num_shards
            raise IndexError(f"shard {index} of {self.count}")
        shard = self.dataset.with_format(None)
        # Streams made from the same one share its steps, and these hold the position.
        shard._ex_iterable = _independent(self.dataset._ex_iterable)
        shard.set_epoch(self.dataset.epoch)
        return shard

    def rows(
        self, shard: Any, start: int = 0, state: dict | None = None, columns: Sequence[str | None] | None = None
    ) -> Generator[dict[Any, Any], None, None]:
        """Yield the rows of a shard from row `start` on; an `UndecodableImage` stands for what cannot be decoded.

        Args:
            shard: What `open` returned.
            start: The number of rows to pass over.
            state: The shard's `state` at that row, from which reading goes on at once.
            columns: The columns to read, all by default; a stream that declares none is read with all of them.

        Raises:
            DamagedShard: If the shard's file is damaged.
            UnreadableData: For a file that cannot be read, or an exception of a function of the user's.
        """
        files, first = _files(shard), 0
        if state is not None:
            shard.load_state_dict(state)
            first = start
        elif columns is not None and shard.features:
            shard = shard.select_columns(list(columns))
        # Not iter(shard): in a worker process that would split the shard's files among the workers once more.
        batches = shard.iter(batch_size=1)
        for number in count(first):
            try:
                with strict_archives():
                    batch = next(batches, None)
            except Exception as error:
                if number == 0 and is_damage(error) and len(files) == 1 and holds_no_rows(files[0]):
                    return
                raise shard_error(error, files, number) from error
            if batch is None:
                return
            if number >= start:
                yield {name: unbroken(values[0]) for name, values in batch.items()}

    def state(self, shard: Any) -> dict | None:
        """Return the state of a shard that is being read, or None if reading would not go on exactly from it."""
        return shard.state_dict() if self._has_exact_state else None


def refuse_split_stream(dataset: Any, num_processes: int) -> None:
    """Refuse a stream that is already one process's part, where several processes share what they are given.

    Raises:
        ValueError: For the result of `split_dataset_by_node`, with more than one process.
    """
    if num_processes > 1 and getattr(dataset, "_distributed", None) is not None:
        raise ValueError(
            f"The dataset is already one process's part (split_dataset_by_node), and the {num_processes} processes "
            "would share it once more: give all of them the whole dataset."
        )


def declared_length(stream: Any) -> int | None:
    """Return the number of rows of a stream as it was opened: what it declares, or its parquet files do; else None."""
    split = (stream.info.splits or {}).get(str(stream.split))
    if split is not None and split.num_examples:
        return int(split.num_examples)
    files = _files(stream)
    if not files or not all(file.lower().endswith(".parquet") for file in files):
        return None
    import fsspec
    import pyarrow.parquet as parquet

    count = 0
    for file in files:
        try:
            with fsspec.open(file) as opened:
                count += parquet.read_metadata(opened).num_rows
        except Exception as error:
            raise shard_error(error, [file], 0) from error
    return count


def _split_further(dataset: Any) -> list[Any]:
    """Split a stream's files into row groups: a stream of all, or one for each file if some are damaged.

    Raises:
        UnreadableData: For a file that is missing.
    """
    try:
        return [dataset.reshard()]
    except Exception as error:
        if dataset.num_shards == 1 and not is_damage(error):
            raise shard_error(error, _files(dataset), 0) from error
    if dataset.num_shards == 1:
        return [dataset]  # reading it raises the error once more, and names the file
    files = [dataset.shard(dataset.num_shards, index) for index in range(dataset.num_shards)]
    return [part for file in files for part in _split_further(file)]


def _files(dataset: Any) -> list[str]:
    """Return the files that a stream reads, with the row group if it is a single one; none if they are not known."""
    names: list[str] = []
    for step in _steps(dataset._ex_iterable):
        arguments = getattr(step, "kwargs", {})
        paths = [name for value in arguments.values() if isinstance(value, list) for name in value if type(name) is str]
        groups = arguments.get("row_groups_list") or [None]
        if len(paths) == 1 and groups[0] is not None:
            paths = [f"{paths[0]}{ROW_GROUP}{groups[0][0]})"]
        names += paths
    return list(dict.fromkeys(names))


def _steps(step: Any) -> Iterator[Any]:
    """Yield a step of a stream and all that it reads from, last step first."""
    yield step
    for inner in _inputs(step):
        yield from _steps(inner)


def _inputs(step: Any) -> list[Any]:
    return [step.ex_iterable] if hasattr(step, "ex_iterable") else list(getattr(step, "ex_iterables", []))


def _is_endless(step: Any, begins: Callable[[Any], bool]) -> bool:
    """Whether one of a stream's steps satisfies `begins` and no later one ends its rows."""
    name = type(step).__name__
    if name == "TakeExamplesIterable":
        return False
    ends = [_is_endless(inner, begins) for inner in _inputs(step)]
    if getattr(step, "stopping_strategy", None) == "first_exhausted":
        return all(ends)
    return begins(step) or any(ends)


def _repeats_forever(step: Any) -> bool:
    return type(step).__name__ == "RepeatExamplesIterable" and step.num_times is None


def _is_generator(step: Any) -> bool:
    """Whether a step is a function of the user's (`IterableDataset.from_generator`)."""
    return type(getattr(getattr(step, "generate_examples_fn", None), "__self__", None)).__name__ == "Generator"


def _is_row_by_row(step: Any) -> bool:
    name = type(step).__name__
    if name in ROW_BY_ROW_IF_SINGLE:
        batched = step.batch_size != 1 if name.startswith("Rebatched") else step.batched
        return not batched and not getattr(step, "with_indices", False)
    return name in SOURCES | ROW_BY_ROW


def _independent(step: Any) -> Any:
    """Return a copy of a step and of its inputs, so that reading it leaves the positions of others as they are."""
    step = copy(step)
    if hasattr(step, "ex_iterable"):
        step.ex_iterable = _independent(step.ex_iterable)
    elif hasattr(step, "ex_iterables"):
        step.ex_iterables = [_independent(inner) for inner in step.ex_iterables]
    return step
