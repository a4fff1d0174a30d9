"""Lanes: endless streams of rows that are shuffled in blocks and can be resumed from a few numbers.

A stream has no index, so that its rows cannot be permuted as a whole. A lane reads its share of the shards, in a new
order each epoch, and shuffles the rows within blocks that it holds in memory. Its order is a pure function of the seed
and the data. (The shuffle buffer of `datasets` would lose the rows that it holds whenever a run is resumed.)

Follows `rows`, which reads the shards; `order` says which lane fills which position of a batch.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .damage import DamagedShard
from .decoding import open_image
from .errors import UnreadableData, no_image_error
from .formats import RestOfShard, UndecodableImage
from .rows import Row, StreamedImages

# Last word of the seeds of generators that must not coincide with an image's own, [seed, batch, position].
SHARD_ORDER, BLOCK_ORDER = 0x73686172, 0x626C6F63
FIRST_ROWS = 10_000  # rows of a lane before its first image, after which the data is taken for something else


@dataclass
class Cursor:
    """The next row that a lane reads: epoch, place in that epoch's list of shards, row in the shard."""

    epoch: int = 0
    shard: int = 0
    row: int = 0
    source: dict | None = None  # the state of the shard's `datasets` stream; None at its start, or if it is not exact
    all_shards: bool = False  # whether the lane reads all shards in this epoch, as its share of the last had no row

    def as_json(self) -> dict[str, Any]:
        """Return the cursor as a lane's state has it."""
        state = asdict(self)
        return state if self.all_shards else {name: value for name, value in state.items() if name != "all_shards"}


class Lane:
    """An endless stream of rows: its share of the shards in each epoch, cut into blocks that are shuffled in memory.

    In epoch e, lane t of n reads shards `permutation(seed, e)[t::n]` one after the other, so that all lanes together
    read every row once per epoch. The first block of an epoch is shorter in some lanes than in others: otherwise lanes
    that are read in step would all read their next block at the same moment.

    After an epoch in which its share has no row, because a filter keeps those of few files only, a lane reads all
    shards, beginning at another one than other lanes.

    A block of which no image can be decoded is left out, unless it stands for damaged files alone. Of any other one, a
    row that can be is known, to replace bad ones.

    A state says where the current block starts and how many rows were taken from it: resuming reads that block again.

    Args:
        source: The stream's images.
        seed: Seed of the orders of shards and rows.
        lane: Number of this lane, below `num_lanes`.
        num_lanes: Number of lanes among which the shards are shared.
        block_size: Rows that are shuffled together.
        state: A `state_dict` to resume from.
    """

    def __init__(
        self, source: StreamedImages, seed: int, lane: int, num_lanes: int, block_size: int, state: dict | None = None
    ):
        self._source, self._seed, self._lane, self._num_lanes = source, seed, lane, num_lanes
        self._block_size = block_size
        state = state or {"start": Cursor().as_json(), "block": 0, "offset": 0}
        self._start: dict = state["start"]
        self._number: int = state["block"]
        self._offset: int = state["offset"]
        self._block: list[Row] = []
        self._had_block = self._number > 0  # in this epoch
        self._left_out: list[Row] = []
        self.good: Row | None = None  # a row of the block that can be decoded
        self._cursor = Cursor(**self._start)
        self._order = self._shard_order()
        self._shard: Any = None
        self._rows: Generator[Any, None, None] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return, as plain JSON, the start of the current block, its number in the epoch and the rows taken from it."""
        if self._block and self._offset == len(self._block):
            self._finish_block()
        return {"start": self._start, "block": self._number, "offset": self._offset}

    def advance(self) -> Row:
        """Return the next row. Raises `UnreadableData` if the lane's shards hold none that can be decoded."""
        if self._block and self._offset == len(self._block):
            self._finish_block()
        if not self._block:
            self._read_block()
        row = self._block[self._offset]
        self._offset += 1
        return row

    def spares(self, rng: np.random.Generator, count: int) -> list[Row]:
        """Return up to `count` random rows of the block that the last row came from."""
        return [self._block[i] for i in rng.permutation(len(self._block))[:count]]

    def take_left_out(self) -> list[Row]:
        """Return the rows of blocks that were left out since the last call, with the reasons as images."""
        rows, self._left_out = self._left_out, []
        return rows

    def close(self) -> None:
        """Close the file that is being read."""
        if self._rows is not None:
            self._rows.close()
        self._rows = self._shard = None

    def _finish_block(self) -> None:
        cursor = self._cursor.as_json()
        if self._shard is not None:
            cursor["source"] = self._source.state(self._shard)
        self._start, self._number, self._offset, self._block = cursor, self._number + 1, 0, []

    def _read_block(self) -> None:
        while True:
            first = self._block_size - self._block_size // 2 * (self._num_lanes - 1 - self._lane) // self._num_lanes
            size = first if self._number == 0 else self._block_size
            rows: list[Row] = []
            while len(rows) < size and (row := self._read_row()) is not None:
                rows.append(row)
            if rows:
                reasons = self._reasons(rows)
                if all(isinstance(row.image, RestOfShard) for row in reasons):  # or none, if an image can be decoded
                    rng = np.random.default_rng([self._seed, self._lane, self._cursor.epoch, self._number, BLOCK_ORDER])
                    self._block = [rows[i] for i in rng.permutation(len(rows))]
                    self._had_block = True
                    return
                self._left_out += reasons
                if not self._had_block and self._cursor.epoch == 0 and len(self._left_out) >= FIRST_ROWS:
                    raise self._nothing_found()
                self._finish_block()
                continue
            if not self._had_block and (self._cursor.all_shards or self._num_lanes == 1):
                raise self._nothing_found()
            self._cursor = Cursor(epoch=self._cursor.epoch + 1, all_shards=not self._had_block)
            self._order, self._had_block = self._shard_order(), False
            self._start, self._number = self._cursor.as_json(), 0

    def _reasons(self, rows: list[Row]) -> list[Row]:
        """Return the rows with the reasons as images if none can be decoded; else none, and note one that can be."""
        args, reasons, self.good = self._source.args, [], None
        for row in rows:
            try:
                open_image(row.image, args.max_image_pixels, args.num_channels, args.image_range)
            except UndecodableImage as error:
                reasons.append(Row(row.name, type(error)(str(error))))
            else:
                self.good = row
                return []
        return reasons

    def _nothing_found(self) -> UnreadableData:
        if not self._left_out:
            return UnreadableData(
                "No row could be read from the dataset's files: check that they are not empty, and that its filters "
                "keep some of their rows."
            )
        last = self._left_out[-1]
        return no_image_error(len({row.name for row in self._left_out}), last.name, str(last.image))

    def _read_row(self) -> Row | None:
        """Return the next row of this epoch, or None at its end."""
        cursor = self._cursor
        while cursor.shard < len(self._order):
            shard_id = int(self._order[cursor.shard])
            if self._rows is None:
                self._shard = self._source.open_shard(shard_id)
                self._rows = self._source.rows(self._shard, cursor.row, cursor.source)
            name, damage = f"{shard_id}:{cursor.row}", None
            try:
                for image in self._rows:
                    cursor.row += 1
                    return Row(name, image)
            except DamagedShard as error:
                damage = RestOfShard(f"{error.what}, and the rest of it is left out")
            self.close()
            self._cursor = cursor = replace(cursor, shard=cursor.shard + 1, row=0, source=None)
            if damage is not None:  # in the place of the first row that cannot be read, so that it is counted and named
                return Row(name, damage)
        return None

    def _shard_order(self) -> np.ndarray:
        rng = np.random.default_rng([self._seed, self._cursor.epoch, SHARD_ORDER])
        order = rng.permutation(self._source.num_shards)
        if self._cursor.all_shards:
            return np.roll(order, -(self._lane * len(order) // self._num_lanes))
        return order[self._lane :: self._num_lanes]
