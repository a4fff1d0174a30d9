"""Which row fills which position of which batch: a pure function of the seed and the data.

The order depends neither on the number of processes nor on that of workers. With B images per process and P processes,
a global batch has G = P * B positions, of which process r fills r * B to (r + 1) * B - 1.

- Where any row can be read by its index, position p of batch k is place k * G + p in an endless row of epochs, each a
  permutation of all indices.
- A stream is read through L lanes (`stream.Lane`), and position p is filled from lane p * L // G. A process that shares
  a lane with another one also reads the other's rows, but does not decode them.

Runs of version 0.1 with several workers have S slots of L lanes each, and take batch k from the lanes of slot k % S.
Such runs go on as they began; new ones have one slot.

Follows `rows` and `stream`; `reader` reads the rows of streams, and `batches` decodes and crops all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .crop_arguments import CropArguments
from .rows import IndexedImages, Row, StreamedImages
from .stream import Lane

# Last word of the seeds of generators that must not coincide with an image's own, [seed, batch, position].
INDEX_ORDER, REPLACEMENTS = 0x696E6465, 0x7265706C
FEISTEL_ROUNDS = 8
SPARES = 4  # rows of a lane that are sent with each batch, to replace bad ones


@dataclass(frozen=True)
class BatchPlan:
    """What every batch depends on: the images, the arguments, and this process's place among all.

    Args:
        images: The undecoded images.
        args: How they are cropped and masked.
        batch_size: Images per process and batch (B).
        mask_grid: Height and width of a global view in patches.
        rank: Number of this process, below `world_size`.
        world_size: Number of processes (P).
        seed: Seed of the order and of all that is random about crops and masks.
        num_slots: Slots that take turns, batch by batch (S), 1 in new runs; streams only, as are the following.
        num_lanes: Lanes per slot (L).
        block_size: Rows that a lane shuffles together.
    """

    images: IndexedImages | StreamedImages
    args: CropArguments
    batch_size: int
    mask_grid: tuple[int, int]
    rank: int
    world_size: int
    seed: int
    num_slots: int = 1
    num_lanes: int = 1
    block_size: int = 1

    @property
    def global_batch_size(self) -> int:
        """Images per batch of all processes (G)."""
        return self.batch_size * self.world_size

    @property
    def positions(self) -> range:
        """The positions of a global batch that this process fills."""
        return range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)

    def lanes_of_slot(self, slot: int) -> range:
        """The lanes of a slot that this process reads, numbered over all slots."""
        first, last = (self.positions[i] * self.num_lanes // self.global_batch_size for i in (0, -1))
        return range(slot * self.num_lanes + first, slot * self.num_lanes + last + 1)

    def positions_of_lane(self, lane: int) -> range:
        """The positions of a global batch that a lane fills, including those of other processes."""
        lane %= self.num_lanes
        ends = (-(-number * self.global_batch_size // self.num_lanes) for number in (lane, lane + 1))
        return range(*ends)


Candidates = Iterator[tuple[int, Iterator[Row]]]


class IndexedOrder:
    """The order of images that can be read by index: each epoch is a permutation of them all."""

    def __init__(self, plan: BatchPlan, images: IndexedImages):
        self.plan, self.images = plan, images

    def candidates(self, batch: int) -> Candidates:
        """Yield each position that this process fills with its row, followed by rows to use if that one is bad."""
        for position, index in zip(self.plan.positions, self._indices(batch), strict=True):
            yield position, self._row_and_replacements(batch, position, int(index))

    def _indices(self, batch: int) -> np.ndarray:
        """Return the indices (B,) of this process's images."""
        places = batch * self.plan.global_batch_size + np.array(self.plan.positions)
        epochs, indices = places // len(self.images), places % len(self.images)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            indices[now] = permuted_index(self.plan.seed, int(epoch), len(self.images), indices[now])
        return indices

    def _row_and_replacements(self, batch: int, position: int, index: int) -> Iterator[Row]:
        yield self.images.row(index)
        rng = _replacement_rng(self.plan, batch, position)
        while True:
            yield self.images.row(int(rng.integers(len(self.images))))


@dataclass(frozen=True)
class LaneRows:
    """What a lane gives for one batch.

    Args:
        positions: The positions of the global batch that it fills, including those of other processes.
        rows: Their rows.
        spares: Other rows of the same block, to use in place of bad ones.
    """

    positions: range
    rows: list[Row]
    spares: list[Row]


@dataclass(frozen=True)
class BatchRows:
    """The undecoded rows of a batch, or those of some of its lanes.

    Args:
        batch: Number of the global batch.
        lanes: What the lanes give for it.
        states: The states of these lanes after the batch, by their numbers.
    """

    batch: int
    lanes: list[LaneRows]
    states: dict[str, dict]


class StreamOrder:
    """The order of a stream's images, read through lanes.

    Args:
        plan: What every batch depends on.
        states: States from which the lanes resume, by their numbers.
    """

    def __init__(self, plan: BatchPlan, states: dict[str, dict]):
        self.plan = plan
        self._saved = dict(states)
        self._lanes: dict[int, Lane] = {}

    def read(self, batch: int, reader: int = 0, num_readers: int = 1) -> BatchRows:
        """Read the rows of a batch from the lanes of this process, or from every `num_readers`-th of them.

        Args:
            batch: Number of the global batch; batches are read one after the other.
            reader: Number of the reader, below `num_readers`.
            num_readers: Number of readers that share the lanes.
        """
        numbers = self.plan.lanes_of_slot(batch % self.plan.num_slots)[reader::num_readers]
        parts = [self._read_lane(batch, number) for number in numbers]
        return BatchRows(batch, parts, {str(number): self._lane(number).state_dict() for number in numbers})

    def close(self) -> None:
        """Close the files that are being read."""
        for lane in self._lanes.values():
            lane.close()

    def _read_lane(self, batch: int, number: int) -> LaneRows:
        lane, positions = self._lane(number), self.plan.positions_of_lane(number)
        rows = [lane.advance() for _ in positions]
        return LaneRows(positions, rows, lane.spares(_replacement_rng(self.plan, batch, positions[0]), SPARES))

    def _lane(self, number: int) -> Lane:
        if number not in self._lanes:
            plan, state = self.plan, self._saved.get(str(number))
            assert isinstance(plan.images, StreamedImages)
            num_lanes = plan.num_slots * plan.num_lanes
            self._lanes[number] = Lane(plan.images, plan.seed, number, num_lanes, plan.block_size, state)
        return self._lanes[number]


def stream_candidates(plan: BatchPlan, batch: BatchRows) -> Candidates:
    """Yield each position that this process fills with its row, followed by rows to use if that one is bad.

    These are the lane's spare rows, then its other rows of this batch.
    """
    for lane in batch.lanes:
        for position, row in zip(lane.positions, lane.rows, strict=True):
            if position in plan.positions:
                yield position, _row_and_spares(plan, batch.batch, position, row, lane)


def _row_and_spares(plan: BatchPlan, batch: int, position: int, row: Row, lane: LaneRows) -> Iterator[Row]:
    yield row
    rng = _replacement_rng(plan, batch, position)
    for rows in (lane.spares, lane.rows):
        yield from (rows[i] for i in rng.permutation(len(rows)) if rows[i].name != row.name)


def _replacement_rng(plan: BatchPlan, batch: int, position: int) -> np.random.Generator:
    return np.random.default_rng([plan.seed, batch, position, 0, REPLACEMENTS])


def permuted_index(seed: int, epoch: int, length: int, index: np.ndarray) -> np.ndarray:
    """Return where each `index` in [0, length) lies in the permutation of an epoch: int64, of the same shape.

    A Feistel network on the index's bits, repeated until it falls into the range ("cycle walking"; Black and Rogaway,
    2002), so that an epoch of two billion generated images needs no more memory than one of ten.
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
