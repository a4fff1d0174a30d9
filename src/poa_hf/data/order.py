"""Which row fills which position of which batch: a pure function of the seed and the data.

The order depends neither on the number of processes nor on that of workers. With B images per process and P processes,
a global batch has G = P * B positions, of which process r fills r * B to (r + 1) * B - 1.

- Where any row can be read by its index, position p of batch k is place k * G + p in an endless row of epochs, each a
  permutation of all indices.
- A stream is read through L lanes (`stream.Lane`), and position p is filled from lane p * L // G. A process that shares
  a lane with another one also reads the other's rows, but does not decode them.
- Of several datasets, `mixture` says which one fills a place, and each counts only its own places.

Runs of version 0.1 with several workers have S slots of L lanes each, and take batch k from the lanes of slot k % S.
Such runs go on as they began; new ones have one slot.

Follows `rows` and `stream`; `reader` reads the rows of streams, and `batches` decodes and crops all rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from .crop_arguments import CropArguments
from .mixture import Mixing
from .rows import IndexedImages, Row, StreamedImages
from .stream import Lane

# Last word of the seeds of generators that must not coincide with an image's own, [seed, batch, position].
INDEX_ORDER, REPLACEMENTS = 0x696E6465, 0x7265706C
FEISTEL_ROUNDS = 8
REPLACEMENT_TRIES = 32  # rows that are tried in place of a bad one
SPARES = 4  # rows of a lane that are sent with each batch, to replace bad ones


@dataclass(frozen=True)
class BatchPlan:
    """What every batch depends on: the images, the arguments, and this process's place among all.

    Args:
        images: The undecoded images; those of the first dataset, if there are several.
        args: How they are cropped and masked.
        batch_size: Images per process and batch (B).
        mask_grid: Height and width of a global view in patches.
        rank: Number of this process, below `world_size`.
        world_size: Number of processes (P).
        seed: Seed of the order and of all that is random about crops and masks.
        num_slots: Slots that take turns, batch by batch (S), 1 in new runs; streams only, as are the following.
        num_lanes: Lanes per slot (L).
        block_size: Rows that a lane shuffles together.
        datasets: The plans of several datasets, each with its images and lanes and with a seed of its own.
        counts: How many places of a block each of them has; see `mixture`.
        name: What the rows' names begin with, for one of several datasets.
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
    datasets: tuple[BatchPlan, ...] = ()
    counts: tuple[int, ...] = (1,)
    name: str = ""

    @property
    def parts(self) -> tuple[BatchPlan, ...]:
        """The plans of all datasets: this one, if there is only one."""
        return self.datasets or (self,)

    @property
    def streams(self) -> list[BatchPlan]:
        """The plans of those datasets that are streams."""
        return [part for part in self.parts if isinstance(part.images, StreamedImages)]

    def assigned(self, batch: int) -> list[dict[int, int]]:
        """Return, for each dataset, the positions of a global batch that it fills, and its number of each one's row."""
        places = batch * self.global_batch_size + np.arange(self.global_batch_size)
        which, rows = Mixing(self.counts, self.seed)(places)
        found: list[dict[int, int]] = [{} for _ in self.parts]
        for position, (number, row) in enumerate(zip(which.tolist(), rows.tolist(), strict=True)):
            found[number][position] = row
        return found

    def lane_name(self, lane: int) -> str:
        """What saved states call a lane."""
        return f"{self.name}{lane}"

    def named(self, row: Row) -> Row:
        """Return a row with its dataset's name before its own."""
        return Row(f"{self.name}{row.name}", row.image) if self.name else row

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

    def candidates(self, batch: int, assigned: dict[int, int]) -> Candidates:
        """Yield each position that this process fills with its row, followed by rows to use if that one is bad.

        Args:
            batch: Number of the global batch.
            assigned: The positions that these images fill; see `BatchPlan.assigned`.
        """
        positions = [position for position in self.plan.positions if position in assigned]
        places = np.array([assigned[position] for position in positions], dtype=np.int64)
        for position, index in zip(positions, self._indices(places), strict=True):
            yield position, self._row_and_replacements(batch, position, int(index))

    def _indices(self, places: np.ndarray) -> np.ndarray:
        """Return the indices of the images at some places of the endless row of epochs."""
        epochs, indices = places // len(self.images), places % len(self.images)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            indices[now] = permuted_index(self.plan.seed, int(epoch), len(self.images), indices[now])
        return indices

    def _row_and_replacements(self, batch: int, position: int, index: int) -> Iterator[Row]:
        yield self.plan.named(self.images.row(index))
        rng = _replacement_rng(self.plan, batch, position)
        while True:
            yield self.plan.named(self.images.row(int(rng.integers(len(self.images)))))


@dataclass(frozen=True)
class LaneRows:
    """What a lane gives for one batch.

    Args:
        positions: The positions of the global batch that it fills, including those of other processes.
        rows: Their rows.
        spares: Other rows of the same block, to use in place of bad ones.
        good: A row of this block that can be decoded, to use if all of these are bad.
        left_out: Rows of blocks before it of which none can be decoded, with the reasons as images.
    """

    positions: Sequence[int]
    rows: list[Row]
    spares: list[Row]
    good: Row | None = None
    left_out: Sequence[Row] = ()


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
        self._lanes: dict[str, Lane] = {}

    def read(self, batch: int, reader: int = 0, num_readers: int = 1) -> BatchRows:
        """Read the rows of a batch from the lanes of this process, or from every `num_readers`-th of them.

        Args:
            batch: Number of the global batch; batches are read one after the other.
            reader: Number of the reader, below `num_readers`.
            num_readers: Number of readers that share the lanes.
        """
        lanes = [
            (part, lane, assigned)
            for part, assigned in zip(self.plan.parts, self.plan.assigned(batch), strict=True)
            if isinstance(part.images, StreamedImages)
            for lane in part.lanes_of_slot(batch % part.num_slots)
        ][reader::num_readers]
        read = [self._read_lane(batch, *each) for each in lanes]
        states = {part.lane_name(lane): self._lane(part, lane).state_dict() for part, lane, _ in lanes}
        return BatchRows(batch, read, states)

    def close(self) -> None:
        """Close the files that are being read."""
        for lane in self._lanes.values():
            lane.close()

    def _read_lane(self, batch: int, part: BatchPlan, number: int, assigned: dict[int, int]) -> LaneRows:
        lane, every = self._lane(part, number), part.positions_of_lane(number)
        positions = [position for position in every if position in assigned]
        rows = [part.named(lane.advance()) for _ in positions]
        spares = lane.spares(_replacement_rng(part, batch, every[0]), SPARES)
        good = lane.good and part.named(lane.good)
        left_out = [part.named(row) for row in lane.take_left_out()]
        return LaneRows(positions, rows, [part.named(row) for row in spares], good, left_out)

    def _lane(self, part: BatchPlan, number: int) -> Lane:
        name = part.lane_name(number)
        if name not in self._lanes:
            assert isinstance(part.images, StreamedImages)
            num_lanes, state = part.num_slots * part.num_lanes, self._saved.get(name)
            self._lanes[name] = Lane(part.images, part.seed, number, num_lanes, part.block_size, state)
        return self._lanes[name]


def stream_candidates(plan: BatchPlan, batch: BatchRows) -> Candidates:
    """Yield each position that this process fills with its row, followed by rows to use if that one is bad.

    These are the lane's spare rows, then its other rows of this batch, then the one that is known to be good.
    """
    for lane in batch.lanes:
        for position, row in zip(lane.positions, lane.rows, strict=True):
            if position in plan.positions:
                yield position, _row_and_spares(plan, batch.batch, position, row, lane)


def _row_and_spares(plan: BatchPlan, batch: int, position: int, row: Row, lane: LaneRows) -> Iterator[Row]:
    yield row
    rng = _replacement_rng(plan, batch, position)
    others = (rows[i] for rows in (lane.spares, lane.rows) for i in rng.permutation(len(rows)))
    yield from islice((other for other in others if other.name != row.name), REPLACEMENT_TRIES - 1)
    if lane.good is not None:
        yield lane.good


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
