"""Which row fills which position of which batch: a pure function of the seed and the data.

The order depends neither on the number of processes nor on that of workers. With B images per process and P processes,
a global batch has G = P * B positions, of which process r fills r * B to (r + 1) * B - 1.

- Where any row can be read by its index, position p of batch k is place k * G + p in an endless row of epochs, each a
  permutation of all indices.
- A stream is read through S slots of L lanes each (`stream.Lane`). Batch k is taken from slot k % S, and position p
  from that slot's lane p * L // G. A process or worker that shares a lane with another one also reads the other's
  rows, but does not decode them.

Follows `rows` and `stream`; `batches` decodes and crops the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .crop_arguments import CropArguments
from .rows import IndexedImages, Row, StreamedImages
from .stream import Lane

# Last word of the seeds of generators that must not coincide with an image's own, [seed, batch, position].
INDEX_ORDER, REPLACEMENTS = 0x696E6465, 0x7265706C
FEISTEL_ROUNDS = 8


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
        num_slots: Slots that take turns, batch by batch (S); streams only, as are the following.
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


class BatchOrder(Protocol):
    """Gives the rows of one batch after another; implemented by `IndexedOrder` and `StreamOrder`."""

    def candidates(self, batch: int) -> Iterator[tuple[int, Iterator[Row]]]:
        """Yield each position that this process fills with its row, followed by rows to use if that one is bad."""
        ...

    def skip(self, batch: int) -> None:
        """Pass over a batch that another worker makes."""
        ...

    def states(self, batch: int) -> dict[str, dict]:
        """Return the states, after a batch, of the lanes that it was taken from, by their numbers."""
        ...

    def close(self) -> None:
        """Close the files that are being read."""
        ...


def batch_order(plan: BatchPlan, states: dict[str, dict]) -> BatchOrder:
    """Return the order of a plan's images, resumed from the states of the lanes (see `BatchOrder.states`)."""
    if isinstance(plan.images, StreamedImages):
        return StreamOrder(plan, plan.images, states)
    return IndexedOrder(plan, plan.images)


class IndexedOrder:
    """The order of images that can be read by index: each epoch is a permutation of them all."""

    def __init__(self, plan: BatchPlan, images: IndexedImages):
        self.plan, self.images = plan, images

    def candidates(self, batch: int) -> Iterator[tuple[int, Iterator[Row]]]:
        for position, index in zip(self.plan.positions, self._indices(batch), strict=True):
            yield position, self._row_and_replacements(batch, position, int(index))

    def skip(self, batch: int) -> None:
        pass

    def states(self, batch: int) -> dict[str, dict]:
        return {}

    def close(self) -> None:
        pass

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


class StreamOrder:
    """The order of a stream's images, read through lanes. A bad row is replaced by others of its block."""

    def __init__(self, plan: BatchPlan, images: StreamedImages, states: dict[str, dict]):
        self.plan, self.images = plan, images
        self._saved = dict(states)
        self._lanes: dict[int, Lane] = {}

    def candidates(self, batch: int) -> Iterator[tuple[int, Iterator[Row]]]:
        for position, lane, row in self._advance(batch):
            if position in self.plan.positions:
                yield position, self._row_and_replacements(batch, position, lane, row)

    def skip(self, batch: int) -> None:
        for _ in self._advance(batch):
            pass

    def states(self, batch: int) -> dict[str, dict]:
        return {str(number): self._lane(number).state_dict() for number in self._numbers(batch)}

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.close()

    def _advance(self, batch: int) -> Iterator[tuple[int, Lane, Row]]:
        """Yield the rows at all positions of a batch that this process's lanes fill."""
        for number in self._numbers(batch):
            lane = self._lane(number)
            for position in self.plan.positions_of_lane(number):
                yield position, lane, lane.advance()

    def _numbers(self, batch: int) -> range:
        return self.plan.lanes_of_slot(batch % self.plan.num_slots)

    def _lane(self, number: int) -> Lane:
        if number not in self._lanes:
            plan, state = self.plan, self._saved.get(str(number))
            num_lanes = plan.num_slots * plan.num_lanes
            self._lanes[number] = Lane(self.images, plan.seed, number, num_lanes, plan.block_size, state)
        return self._lanes[number]

    def _row_and_replacements(self, batch: int, position: int, lane: Lane, row: Row) -> Iterator[Row]:
        yield row
        yield from lane.others(_replacement_rng(self.plan, batch, position))


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
