"""In which order images are read: a permutation per epoch where any image can be asked for, lanes of blocks elsewhere.

Both orders are pure functions of the seed and the data. Neither depends on how many processes and workers read, and
both can be taken up again from a few numbers: `datasets`' own shuffle buffer would lose the rows that it holds.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from poa_hf.data.sources import find_image_column, image_of_item

# Last word of the seeds of generators that must not coincide with an image's own, [seed, batch, position].
SHARD_ORDER, BLOCK_ORDER, INDEX_ORDER = 0x73686172, 0x626C6F63, 0x696E6465
# Splitting files further means to read each file's footer, on the Hub one or two requests per file.
ENOUGH_SHARDS = 128
EMPTY_EPOCHS = 20  # epochs of a lane without a single row before the data is called empty
FEISTEL_ROUNDS = 8


def permuted_index(seed: int, epoch: int, length: int, index: np.ndarray) -> np.ndarray:
    """Where each `index` in [0, length) lies in the permutation of an epoch: int64, of the same shape.

    A Feistel network on the index's bits, walked until it falls into the range ("cycle walking"; Black and Rogaway,
    2002), so that an epoch of two thousand million generated images needs no more memory than one of ten.
    """
    half = np.uint64(max(1, ((length - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence([seed, epoch, INDEX_ORDER]).generate_state(FEISTEL_ROUNDS, np.uint64)
    result = np.asarray(index).astype(np.uint64)
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        left, right = result[outside] >> half, result[outside] & low
        for key in keys:
            left, right = right, left ^ (_scramble(right + key) & low)
        result[outside] = (left << half) | right
        outside[outside] = result[outside] >= length
    return result.astype(np.int64)


def _scramble(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64; arithmetic wraps around at 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class UnreadableData(ValueError):
    """The data as a whole cannot be read: one sentence for the user, which needs no traceback of a worker process."""


class IndexedImages:
    """Undecoded images of anything with a length and items: `images[i]` is a value for `open_lazily`."""

    def __init__(self, dataset: Any, column: str | None = None):
        self.column = find_image_column(dataset, column)
        self.dataset = _undecoded(dataset, self.column)
        if len(dataset) == 0:
            raise ValueError("The dataset is empty: give one with at least one image.")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return image_of_item(self.dataset[index], self.column)


class StreamedImages:
    """Undecoded images of a `datasets.IterableDataset`, as `num_shards` shards that are read one by one.

    Give the dataset unshuffled and not split by node: this module does both.
    """

    def __init__(self, dataset: Any, column: str | None = None):
        self.column = find_image_column(dataset, column)
        dataset = _undecoded(dataset, self.column)
        self.dataset = dataset.reshard() if dataset.num_shards < ENOUGH_SHARDS else dataset
        self.num_shards = self.dataset.num_shards
        if self.num_shards == 0:
            raise ValueError("The dataset has no files to read: give one with at least one image.")

    def open_shard(self, index: int) -> Any:
        return self.dataset.shard(self.num_shards, index)

    def rows(self, shard: Any) -> Iterator[Any]:
        # Not iter(shard): in a worker process that would split the shard's files among the workers once more.
        for batch in shard.iter(batch_size=1):
            yield batch[self.column][0] if self.column in batch else None


def _undecoded(dataset: Any, column: str | None) -> Any:
    """Only the image column, without decoding, where `datasets` allows it; a user's own transform is left in place."""
    import datasets

    if isinstance(dataset, datasets.IterableDataset):
        dataset = dataset.select_columns([column])
        return dataset.decode(False) if dataset.features else dataset
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        dataset = dataset.with_format(None).select_columns([column])
        if isinstance(dataset.features[column], datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


@dataclass
class Cursor:
    """The next row that a lane reads: epoch, place in that epoch's list of shards, row in the shard."""

    epoch: int = 0
    shard: int = 0
    row: int = 0
    source: dict | None = None  # `datasets`' own state in the shard; None at its start


@dataclass
class Row:
    """A row as read, with the name that it is reported by."""

    id: str
    value: Any


class Lane:
    """An endless stream of rows: its share of the shards in each epoch, cut into blocks that are shuffled in memory.

    In epoch e, lane t of n reads shards `perm(seed, e)[t::n]` one after the other, so all lanes together read every row
    once per epoch. The first block of an epoch is shorter in some lanes than in others: lanes that are read in step
    would else all read their next block at the same moment.

    A state is where the current block starts and how many rows were taken: going on from it reads the block once more.
    """

    def __init__(
        self, source: StreamedImages, seed: int, lane: int, num_lanes: int, block_size: int, state: dict | None = None
    ):
        self._source, self._seed, self._lane, self._num_lanes = source, seed, lane, num_lanes
        self._block_size = block_size
        state = state or {"start": asdict(Cursor()), "block": 0, "offset": 0}
        self._start: dict = state["start"]
        self._number: int = state["block"]
        self._offset: int = state["offset"]
        self._block: list[Row] = []
        self._cursor = Cursor(**self._start)
        self._order = self._shards(self._cursor.epoch)
        self._shard: Any = None
        self._rows: Iterator[Any] | None = None

    def state_dict(self) -> dict:
        """Plain JSON: where the current block starts, its number in the epoch, and the rows taken from it."""
        if self._block and self._offset == len(self._block):
            self._finish_block()
        return {"start": self._start, "block": self._number, "offset": self._offset}

    def advance(self) -> Row:
        """The next row; `others` are the rest of its block. Raises `UnreadableData` if the lane has none."""
        if self._block and self._offset == len(self._block):
            self._finish_block()
        if not self._block:
            self._read_block()
        row = self._block[self._offset]
        self._offset += 1
        return row

    def others(self, rng: np.random.Generator) -> Iterator[Row]:
        """The other rows of the block that the last row came from, in random order."""
        for i in rng.permutation(len(self._block)):
            if i != self._offset - 1:
                yield self._block[i]

    def close(self):
        """Close the file that is being read."""
        if self._rows is not None:
            self._rows.close()
        self._rows = self._shard = None

    def _finish_block(self):
        cursor = asdict(self._cursor)
        if self._shard is not None:
            cursor["source"] = self._shard.state_dict()
        self._start, self._number, self._offset, self._block = cursor, self._number + 1, 0, []

    def _read_block(self):
        for _ in range(EMPTY_EPOCHS):
            first = self._block_size - self._block_size // 2 * (self._num_lanes - 1 - self._lane) // self._num_lanes
            size = first if self._number == 0 else self._block_size
            rows = []
            while len(rows) < size and (row := self._read_row()) is not None:
                rows.append(row)
            if rows:
                rng = np.random.default_rng([self._seed, self._lane, self._cursor.epoch, self._number, BLOCK_ORDER])
                self._block = [rows[i] for i in rng.permutation(len(rows))]
                return
            self._cursor = Cursor(epoch=self._cursor.epoch + 1)
            self._order = self._shards(self._cursor.epoch)
            self._start, self._number = asdict(self._cursor), 0
        raise UnreadableData("No row could be read from the dataset's files: check that they are not empty.")

    def _read_row(self) -> Row | None:
        """The next row of this epoch, or None at its end."""
        cursor = self._cursor
        while cursor.shard < len(self._order):
            shard_id = int(self._order[cursor.shard])
            if self._shard is None:
                self._shard = self._source.open_shard(shard_id)
                if cursor.source is not None:
                    self._shard.load_state_dict(cursor.source)
                self._rows = self._source.rows(self._shard)
            for value in self._rows:
                cursor.row += 1
                return Row(f"{shard_id}:{cursor.row - 1}", value)
            self.close()
            self._cursor = cursor = Cursor(epoch=cursor.epoch, shard=cursor.shard + 1)
        return None

    def _shards(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, epoch, SHARD_ORDER])
        return rng.permutation(self._source.num_shards)[self._lane :: self._num_lanes]
