"""Batches as worker processes make them: rows decoded and cropped, bad ones replaced, masks drawn.

Follows `order`, which says which rows a batch holds; `decoding` and `crops` make its pixels and `masks` its masks;
`loader` hands the batches out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from .crops import multi_crop
from .decoding import UndecodableImage, open_lazily
from .masks import block_masks
from .order import BatchPlan, batch_order
from .rows import Row, UnreadableData
from .workers import worker_share

MASKS = 0x6D61736B  # last word of the masks' seed; see order.py
REPLACEMENT_TRIES = 32  # rows that are tried in place of a bad one


class Batches(IterableDataset[dict[str, Any]]):
    """Makes whole batches from `first_batch` on, or one worker's share of them.

    Worker w of W makes every W-th batch. Each batch carries the states of its lanes, so that the loader knows where the
    last batch that it handed out ends, however many batches are prefetched.

    Args:
        plan: What every batch depends on.
        first_batch: Number of the global batch to begin with.
        lane_states: States from which the lanes resume; see `order.BatchOrder`.
    """

    def __init__(self, plan: BatchPlan, first_batch: int, lane_states: dict[str, dict]):
        self.plan, self.first_batch = plan, first_batch
        self.order = batch_order(plan, lane_states)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker, num_workers = worker_share()
        try:
            yield from self._batches(worker, num_workers)
        except UnreadableData as error:
            # Raised here, DataLoader would print the worker's whole traceback before the message.
            yield {"error": str(error)}

    def close(self) -> None:
        """Close the files that are being read."""
        self.order.close()

    def _batches(self, worker: int, num_workers: int) -> Iterator[dict[str, Any]]:
        num_slots = self.plan.num_slots
        # DataLoader asks worker 0 first, whichever batch is the first one.
        own_slots = {(self.first_batch + worker + turn * num_workers) % num_slots for turn in range(num_slots)}
        for batch in count(self.first_batch):
            if (batch - self.first_batch) % num_workers == worker:
                yield self._make(batch)
            elif batch % num_slots in own_slots:
                self.order.skip(batch)

    def _make(self, batch: int) -> dict[str, Any]:
        """Read, decode and crop this process's images of a global batch, and draw its masks."""
        builder = BatchBuilder(self.plan, batch)
        unfilled = [
            position for position, rows in self.order.candidates(batch) if not builder.add_first_good(position, rows)
        ]
        for position in unfilled:
            builder.repeat_good(position)
        return builder.finish() | {"batch": batch, "lane_states": self.order.states(batch)}


class BatchBuilder:
    """Builds one batch: crops are written to their places, view by view, as images come in.

    Args:
        plan: What every batch depends on.
        batch: Number of the global batch.
    """

    def __init__(self, plan: BatchPlan, batch: int):
        self.plan, self.batch = plan, batch
        args, size = plan.args, plan.batch_size
        global_shape = (2, size, 3, args.global_crop_size, args.global_crop_size)
        local_shape = (args.num_local_crops, size, 3, args.local_crop_size, args.local_crop_size)
        self.global_crops = np.empty(global_shape, dtype=np.uint8)  # (2, B, 3, g, g)
        self.local_crops = np.empty(local_shape, dtype=np.uint8)  # (V, B, 3, l, l)
        self.augmentation: list[dict[str, np.ndarray]] = [{}] * size
        self.image_ids = [""] * size
        self.good: Row | None = None
        self.bad: dict[str, str] = {}  # the reasons by the rows' names
        self.skipped = 0

    def add_first_good(self, position: int, candidates: Iterator[Row]) -> bool:
        """Crop the first candidate that can be decoded; return False if none of `1 + REPLACEMENT_TRIES` can."""
        for number, row in zip(range(1 + REPLACEMENT_TRIES), candidates, strict=False):
            if row.name in self.bad:
                continue
            try:
                self._crop(position, row)
            except UndecodableImage as error:
                self.bad[row.name] = str(error)
                continue
            self.good = self.good or row
            self.skipped += number > 0
            return True
        self.skipped += 1
        return False

    def repeat_good(self, position: int) -> None:
        """Crop an image of this batch once more, for a position whose candidates were all bad.

        This is the only place where a batch depends on the number of processes: the image is one of this process's.

        Raises:
            UnreadableData: If no image of the batch could be decoded.
        """
        if self.good is None:
            name, reason = list(self.bad.items())[-1]
            raise UnreadableData(
                f"None of the {len(self.bad)} rows tried could be decoded (the last one, {name}: {reason}): check that "
                "the image column holds images."
            )
        self._crop(position, self.good)

    def _crop(self, position: int, row: Row) -> None:
        rng = np.random.default_rng([self.plan.seed, self.batch, position])
        image = open_lazily(row.image, self.plan.args.max_image_pixels)
        global_crops, local_crops, augmentation = multi_crop(image, rng, self.plan.args)
        place = position - self.plan.positions[0]
        self.global_crops[:, place], self.local_crops[:, place] = global_crops, local_crops
        self.augmentation[place], self.image_ids[place] = augmentation, row.name

    def finish(self) -> dict[str, Any]:
        """Return the batch as `loader.PretrainingLoader` describes it, with the bad rows, and arrays for tensors."""
        # Only the crops are tensors: each tensor that a worker sends holds a file descriptor open, and the two dozen
        # small arrays of a batch would exceed the usual limit of 1024 with 16 workers.
        stacked = {name: np.stack([a[name] for a in self.augmentation], axis=1) for name in self.augmentation[0]}
        return {
            "global_crops": torch.from_numpy(self.global_crops).flatten(0, 1),  # (2B, 3, g, g)
            "local_crops": torch.from_numpy(self.local_crops).flatten(0, 1),  # (V * B, 3, l, l)
            "masks": self._masks(),
            "global_augmentation": {n: a[:2].reshape(-1, *a.shape[2:]) for n, a in stacked.items()},
            "local_augmentation": {n: a[2:].reshape(-1, *a.shape[2:]) for n, a in stacked.items()},
            "image_ids": self.image_ids,
            "skipped": self.skipped,
            "bad_rows": list(self.bad.items()),
        }

    def _masks(self) -> np.ndarray:
        """Draw the masks of all processes' views, and return those of this process: bool (2B, patches)."""
        plan, args = self.plan, self.plan.args
        rng = np.random.default_rng([plan.seed, self.batch, 0, 0, MASKS])
        first_views = np.array(plan.positions)
        rows = np.concatenate([first_views, first_views + plan.global_batch_size])  # (2B,)
        num_views = 2 * plan.global_batch_size
        return block_masks(num_views, plan.mask_grid, rng, args.mask_ratio, args.mask_probability, rows)
