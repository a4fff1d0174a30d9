"""Making the batches: which image stands at which position, reading it past bad rows, cropping and collating it.

This is what runs in the worker processes; see `loader` for the words.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from poa_hf.data.crops import CropArguments, multi_crop
from poa_hf.data.decoding import UndecodableImage, open_lazily
from poa_hf.data.masks import block_masks
from poa_hf.data.stream import IndexedImages, Lane, Row, StreamedImages, UnreadableData, permuted_index

MASKS, REPLACEMENTS = 0x6D61736B, 0x7265706C  # last words of seeds; see stream.py
REPLACEMENT_TRIES = 32


class Plan:
    """What every batch depends on: the data, the arguments, and this process's place."""

    stream: StreamedImages | None = None
    indexed: IndexedImages | None = None
    slots = lanes = block_size = 1

    def __init__(
        self, args: CropArguments, batch_size: int, mask_grid: tuple[int, int], rank: int, world_size: int, seed: int
    ):
        self.args, self.batch_size, self.mask_grid = args, batch_size, mask_grid
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.global_size = batch_size * world_size
        self.positions = range(rank * batch_size, (rank + 1) * batch_size)

    def own_lanes(self, slot: int) -> range:
        """The lanes of a slot that this process reads."""
        first, last = (self.positions[i] * self.lanes // self.global_size for i in (0, -1))
        return range(slot * self.lanes + first, slot * self.lanes + last + 1)

    def positions_of(self, lane: int) -> range:
        """The positions of a global batch that a lane fills, other processes' included."""
        lane %= self.lanes
        return range(-(-lane * self.global_size // self.lanes), -(-(lane + 1) * self.global_size // self.lanes))


class Batches(IterableDataset):
    """What runs in each worker: makes whole batches from `first_batch` on."""

    def __init__(self, plan: Plan, first_batch: int, lane_states: dict[str, dict]):
        self.plan, self.first_batch, self.lane_states = plan, first_batch, dict(lane_states)
        self.lanes: dict[int, Lane] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        try:
            yield from self._batches(worker, workers)
        except UnreadableData as error:
            # DataLoader would put the worker's whole traceback before the one sentence
            yield {"error": str(error)}

    def close(self):
        for lane in self.lanes.values():
            lane.close()

    def _batches(self, worker: int, workers: int) -> Iterator[dict[str, Any]]:
        slots = self.plan.slots
        # DataLoader asks worker 0 first, whichever batch is the first one
        read_slots = {(self.first_batch + worker + turn * workers) % slots for turn in range(slots)}
        for batch in count(self.first_batch):
            if (batch - self.first_batch) % workers == worker:
                yield self._make(batch)
            elif self.plan.stream is not None and batch % slots in read_slots:
                for _ in self._lane_rows(batch, own=range(0)):
                    pass

    def _make(self, batch: int) -> dict[str, Any]:
        """Read, decode and crop this process's images of a global batch, and draw its masks."""
        plan = self.plan
        collated = Collation(plan, batch)
        unfilled = []
        if plan.indexed is not None:
            for position, index in zip(plan.positions, self._indices(batch), strict=True):
                if not collated.add(position, self._indexed_candidates(batch, position, int(index))):
                    unfilled.append(position)
        else:
            for position, lane, row in self._lane_rows(batch, own=plan.positions):
                if not collated.add(position, self._lane_candidates(batch, position, lane, row)):
                    unfilled.append(position)
        for position in unfilled:
            collated.repeat(position)
        states = {str(lane): self._lane(lane).state_dict() for lane in self._batch_lanes(batch)}
        return collated.finish() | {"batch": batch, "lane_states": states}

    def _indices(self, batch: int) -> np.ndarray:
        plan, length = self.plan, len(self.plan.indexed)
        places = batch * plan.global_size + np.array(plan.positions)
        epochs, indices = places // length, places % length
        for epoch in np.unique(epochs):
            now = epochs == epoch
            indices[now] = permuted_index(plan.seed, int(epoch), length, indices[now])
        return indices

    def _batch_lanes(self, batch: int) -> range:
        return range(0) if self.plan.stream is None else self.plan.own_lanes(batch % self.plan.slots)

    def _lane(self, lane: int) -> Lane:
        if lane not in self.lanes:
            plan, state = self.plan, self.lane_states.get(str(lane))
            self.lanes[lane] = Lane(plan.stream, plan.seed, lane, plan.slots * plan.lanes, plan.block_size, state)
        return self.lanes[lane]

    def _lane_rows(self, batch: int, own: range) -> Iterator[tuple[int, Lane, Row]]:
        """Advance this process's lanes by one batch; gives the rows at the positions `own`."""
        for number in self._batch_lanes(batch):
            lane = self._lane(number)
            for position in self.plan.positions_of(number):
                row = lane.advance()
                if position in own:
                    yield position, lane, row

    def _lane_candidates(self, batch: int, position: int, lane: Lane, row: Row) -> Iterator[Row]:
        yield row
        yield from lane.others(np.random.default_rng([self.plan.seed, batch, position, 0, REPLACEMENTS]))

    def _indexed_candidates(self, batch: int, position: int, index: int) -> Iterator[Row]:
        yield self._indexed_row(index)
        rng = np.random.default_rng([self.plan.seed, batch, position, 0, REPLACEMENTS])
        while True:
            yield self._indexed_row(int(rng.integers(len(self.plan.indexed))))

    def _indexed_row(self, index: int) -> Row:
        try:
            return Row(str(index), self.plan.indexed[index])
        except (OSError, UndecodableImage) as error:  # a dataset that decodes by itself
            return Row(str(index), error)


class Collation:
    """One batch in the making: crops are written to their place, view by view, as images come in."""

    def __init__(self, plan: Plan, batch: int):
        self.plan, self.batch, self.args = plan, batch, plan.args
        size, local_size, args = plan.batch_size, plan.args.local_crop_size, plan.args
        self.global_crops = np.empty((2, size, 3, args.global_crop_size, args.global_crop_size), dtype=np.uint8)
        self.local_crops = np.empty((args.num_local_crops, size, 3, local_size, local_size), dtype=np.uint8)
        self.augmentation: list[dict[str, np.ndarray]] = [{}] * size
        self.ids = [""] * size
        self.good: Row | None = None
        self.bad: dict[str, str] = {}
        self.skipped = 0

    def add(self, position: int, candidates: Iterator[Row]) -> bool:
        """Crop the first candidate that can be decoded; False if none of some tens of them can."""
        for number, row in zip(range(1 + REPLACEMENT_TRIES), candidates, strict=False):
            if row.id in self.bad:
                continue
            try:
                self._crop(position, row)
            except UndecodableImage as error:
                self.bad[row.id] = str(error)
                continue
            self.good = self.good or row
            self.skipped += number > 0
            return True
        self.skipped += 1
        return False

    def repeat(self, position: int):
        """Crop an image of this batch once more, for a position whose candidates were all bad.

        The one place where a batch depends on the number of processes: the image is one of this process's own.
        """
        if self.good is None:
            name, reason = list(self.bad.items())[-1]
            raise UnreadableData(
                f"None of the {len(self.bad)} rows tried could be decoded (the last one, {name}: {reason}): check that "
                "the image column holds images."
            )
        self._crop(position, self.good)

    def _crop(self, position: int, row: Row):
        rng = np.random.default_rng([self.plan.seed, self.batch, position])
        if isinstance(row.value, Exception):
            raise UndecodableImage(str(row.value))
        global_crops, local_crops, augmentation = multi_crop(open_lazily(row.value), rng, self.args)
        place = position - self.plan.positions[0]
        self.global_crops[:, place], self.local_crops[:, place] = global_crops, local_crops
        self.augmentation[place], self.ids[place] = augmentation, row.id

    def finish(self) -> dict[str, Any]:
        # Only the crops are tensors: each tensor that a worker sends holds a file descriptor open, and the two dozen
        # small arrays of a batch would exceed the usual limit of 1024 with 16 workers.
        stacked = {name: np.stack([a[name] for a in self.augmentation], axis=1) for name in self.augmentation[0]}
        return {
            "global_crops": torch.from_numpy(self.global_crops).flatten(0, 1),
            "local_crops": torch.from_numpy(self.local_crops).flatten(0, 1),
            "masks": self._masks(),
            "global_augmentation": {n: a[:2].reshape(-1, *a.shape[2:]) for n, a in stacked.items()},
            "local_augmentation": {n: a[2:].reshape(-1, *a.shape[2:]) for n, a in stacked.items()},
            "image_ids": self.ids,
            "skipped": self.skipped,
            "bad_rows": list(self.bad.items()),
        }

    def _masks(self) -> np.ndarray:
        plan = self.plan
        rng = np.random.default_rng([plan.seed, self.batch, 0, 0, MASKS])
        rows = np.concatenate([np.array(plan.positions), np.array(plan.positions) + plan.global_size])
        args = self.args
        return block_masks(2 * plan.global_size, plan.mask_grid, rng, args.mask_ratio, args.mask_probability, rows)
