"""Batches as worker processes make them: rows decoded and cropped, bad ones replaced, masks drawn.

Follows `order`, which says which rows a batch holds, and `reader`; `decoding` and `crops` make its pixels and `masks`
its masks; `loader` hands the batches out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .crops import multi_crop
from .decoding import UndecodableImage, open_lazily
from .errors import UnreadableData, no_image_error
from .formats import RestOfShard
from .masks import block_masks
from .order import REPLACEMENT_TRIES, BatchPlan, Candidates, IndexedOrder, stream_candidates
from .reader import unpacked
from .rows import IndexedImages, Row

MASKS = 0x6D61736B  # last word of the masks' seed; see order.py


class Batches(Dataset[dict[str, Any]]):
    """Makes a batch from its number, or, of a stream, from its rows as `reader` has read them.

    Args:
        plan: What every batch depends on.
    """

    def __init__(self, plan: BatchPlan):
        self.plan = plan

    def __getitem__(self, turn: Any) -> dict[str, Any]:
        try:
            return self._make(turn)
        except UnreadableData as error:
            # Raised here, DataLoader would print the worker's whole traceback before the message.
            return {"error": str(error)}

    def _make(self, turn: Any) -> dict[str, Any]:
        read = unpacked(turn) if self.plan.streams else []  # else the turn is the batch's number
        number = read[0].batch if read else turn
        states = {name: state for part in read for name, state in part.states.items()}
        candidates = chain(
            *(stream_candidates(self.plan, part) for part in read),
            *(
                IndexedOrder(part, part.images).candidates(number, assigned)
                for part, assigned in zip(self.plan.parts, self.plan.assigned(number), strict=True)
                if isinstance(part.images, IndexedImages)
            ),
        )
        left_out = [
            row
            for part in read
            for lane in part.lanes
            if lane.positions and lane.positions[0] in self.plan.positions  # once, if processes share the lane
            for row in lane.left_out
        ]
        return self._crop(number, candidates, left_out) | {"batch": number, "lane_states": states}

    def _crop(self, batch: int, candidates: Candidates, left_out: Sequence[Row]) -> dict[str, Any]:
        """Decode and crop this process's images of a global batch, and draw its masks."""
        builder = BatchBuilder(self.plan, batch)
        for row in left_out:
            builder.count_as_bad(row)
        unfilled = [position for position, rows in candidates if not builder.add_first_good(position, rows)]
        for position in unfilled:
            builder.repeat_good(position)
        return builder.finish()


class BatchBuilder:
    """Builds one batch: crops are written to their places, view by view, as images come in.

    Args:
        plan: What every batch depends on.
        batch: Number of the global batch.
    """

    def __init__(self, plan: BatchPlan, batch: int):
        self.plan, self.batch = plan, batch
        args, size = plan.args, plan.batch_size
        channels = args.num_channels
        global_shape = (2, size, channels, args.global_crop_size, args.global_crop_size)
        local_shape = (args.num_local_crops, size, channels, args.local_crop_size, args.local_crop_size)
        self.global_crops = np.empty(global_shape, dtype=np.uint8)  # (2, B, C, g, g)
        self.local_crops = np.empty(local_shape, dtype=np.uint8)  # (V, B, C, l, l)
        self.augmentation: list[dict[str, np.ndarray]] = [{}] * size
        self.image_ids = [""] * size
        self.good: Row | None = None
        self.bad: dict[str, str] = {}  # the reasons by the rows' names
        self.damaged_shards: list[str] = []  # the names of those rows that stand for the rest of a file
        self.skipped = 0

    def add_first_good(self, position: int, candidates: Iterator[Row]) -> bool:
        """Crop the first candidate that can be decoded; return False if none of `1 + REPLACEMENT_TRIES` can."""
        for number, row in zip(range(1 + REPLACEMENT_TRIES), candidates, strict=False):
            if row.name in self.bad:
                continue
            try:
                self._crop(position, row)
            except UndecodableImage as error:
                self.count_as_bad(Row(row.name, error))
                continue
            self.good = self.good or row
            self.skipped += number > 0
            return True
        self.skipped += 1
        return False

    def count_as_bad(self, row: Row) -> None:
        """Note a row of which the image is the reason why it cannot be decoded."""
        self.bad[row.name] = str(row.image)
        self.damaged_shards += [row.name] * isinstance(row.image, RestOfShard)

    def repeat_good(self, position: int) -> None:
        """Crop an image of this batch once more, for a position whose candidates were all bad.

        This is the only place where a batch depends on the number of processes: the image is one of this process's.

        Raises:
            UnreadableData: If no image of the batch could be decoded.
        """
        if self.good is None:
            name, reason = list(self.bad.items())[-1]
            raise no_image_error(len(self.bad), name, reason)
        self._crop(position, self.good)

    def _crop(self, position: int, row: Row) -> None:
        rng = np.random.default_rng([self.plan.seed, self.batch, position])
        args = self.plan.args
        image = open_lazily(row.image, args.max_image_pixels, args.num_channels, args.image_range)
        global_crops, local_crops, augmentation = multi_crop(image, rng, args)
        place = position - self.plan.positions[0]
        self.global_crops[:, place], self.local_crops[:, place] = global_crops, local_crops
        self.augmentation[place], self.image_ids[place] = augmentation, row.name

    def finish(self) -> dict[str, Any]:
        """Return the batch as `loader.PretrainingLoader` describes it, with the bad rows, and arrays for tensors."""
        # Only the crops are tensors: each tensor that a worker sends holds a file descriptor open, and the two dozen
        # small arrays of a batch would exceed the usual limit of 1024 with 16 workers.
        stacked = {name: np.stack([a[name] for a in self.augmentation], axis=1) for name in self.augmentation[0]}
        return {
            "global_crops": torch.from_numpy(self.global_crops).flatten(0, 1),  # (2B, C, g, g)
            "local_crops": torch.from_numpy(self.local_crops).flatten(0, 1),  # (V * B, C, l, l)
            "masks": self._masks(),
            "global_augmentation": {n: a[:2].reshape(-1, *a.shape[2:]) for n, a in stacked.items()},
            "local_augmentation": {n: a[2:].reshape(-1, *a.shape[2:]) for n, a in stacked.items()},
            "image_ids": self.image_ids,
            "skipped": self.skipped,
            "bad_rows": list(self.bad.items()),
            "damaged_shards": self.damaged_shards,
        }

    def _masks(self) -> np.ndarray:
        """Draw the masks of all processes' views, and return those of this process: bool (2B, patches)."""
        plan, args = self.plan, self.plan.args
        rng = np.random.default_rng([plan.seed, self.batch, 0, 0, MASKS])
        first_views = np.array(plan.positions)
        rows = np.concatenate([first_views, first_views + plan.global_batch_size])  # (2B,)
        num_views = 2 * plan.global_batch_size
        return block_masks(num_views, plan.mask_grid, rng, args.mask_ratio, args.mask_probability, rows)
