"""Endless batches of crops and masks for pre-training, on the host.

This is an image's last step on the CPU; on the training device, `augment` colours the crops, and `PoaTrainer` feeds
them to the model. Which images a batch holds, and how they are cropped and masked, depends on the seed and the data
only (`order`), not on the number of processes and workers.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from .bad_rows import BadRows
from .batches import Batches
from .crop_arguments import CropArguments
from .errors import UnreadableData
from .mixture import MIXING, DatasetMixture
from .order import BatchPlan
from .position import at_position, saved_position
from .reader import RowReader, read_batches
from .rows import IndexedImages, StreamedImages
from .shards import refuse_split_stream
from .workers import batch_loader

logger = logging.getLogger(__name__)

DEFAULT_LANES = 8
WORKERS_PER_READER = 2


class PretrainingLoader:
    """Yields this process's share of one global batch after another, without end, as a dict:

    - `global_crops`: uint8 (2B, C, g, g), the first views of the B images, then the second ones;
    - `local_crops`: uint8 (V * B, C, l, l), likewise view by view;
    - `masks`: bool (2B, height * width of `mask_grid`), True where a patch is masked;
    - `global_augmentation`, `local_augmentation`: the parameters of `augment`, one row per crop;
    - `image_ids`: B strings, each a path, an index or "shard:row";
    - `skipped`: how many of the B images could not be decoded and were replaced by others;
    - `bad_rows`: ids and reasons of the images that could not be decoded;
    - `damaged_shards`: ids among them that stand for the rest of a damaged file.

    Attributes:
        num_images: Images of the dataset, or of all of a mixture; None for a stream, or a mixture with one.
        num_files: Files, or parts that count as such, of a stream; None otherwise.

    Args:
        dataset: A `datasets.IterableDataset`, of which exactly the rows are read that iterating it gives, anything
            with a length and items, or a `DatasetMixture` of such.
        args: How images are cropped and masked.
        batch_size: Images per process and batch (B).
        mask_grid: Height and width of a global view in patches.
        rank: Number of this process, below `world_size`.
        world_size: Number of processes.
        num_workers: Worker processes that decode and crop. Of a stream, one more process reads the rows for every
            2 of them.
        seed: Seed of everything random; all processes need the same one.
        image_column: Name of the column with the images; needed unless exactly one column holds images.
        block_size: Rows that a stream shuffles at a time, per lane, which holds as many undecoded images.
        num_slots: Slots of a stream (see `order`), 1 by default; more are for the order of version 0.1 with as many
            workers.
        num_lanes: Lanes of a stream, per slot; by default 8, or more for more than 8 processes, as far as there are
            files to read.
        prefetch_factor: Batches that each worker makes ahead.
        start_method: How worker processes are started, "fork", "forkserver" or "spawn"; the platform's default if not
            given. "forkserver" and "spawn" need scripts with `if __name__ == "__main__":`.
        warn_of_bad_rows: Whether to log a warning for each image that cannot be decoded.

    Raises:
        ValueError: For numbers out of range, an empty dataset, or an image column that is missing or ambiguous.

    Example:
        >>> from poa_hf.data.textures import TextureDataset
        >>> args = CropArguments(global_crop_size=32, local_crop_size=16, num_local_crops=4)
        >>> loader = PretrainingLoader(TextureDataset(), args, batch_size=2, mask_grid=(4, 4))
        >>> batch = next(iter(loader))
        >>> batch["global_crops"].shape, batch["local_crops"].shape, batch["masks"].shape
        (torch.Size([4, 3, 32, 32]), torch.Size([8, 3, 16, 16]), torch.Size([4, 16]))
    """

    def __init__(
        self,
        dataset: Any,
        args: CropArguments,
        batch_size: int,
        mask_grid: tuple[int, int],
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        image_column: str | None = None,
        block_size: int = 256,
        num_slots: int | None = None,
        num_lanes: int | None = None,
        prefetch_factor: int = 2,
        start_method: str | None = None,
        warn_of_bad_rows: bool = True,
    ):
        if batch_size < 1 or num_workers < 0 or seed < 0 or block_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size {batch_size}, num_workers {num_workers}, seed {seed}, block_size {block_size}, "
                f"rank {rank} of {world_size}: sizes must be at least 1, the others at least 0, and the rank below the "
                "world size."
            )
        self._num_workers, self._prefetch_factor, self._start_method = num_workers, prefetch_factor, start_method
        self.batch_size, self.world_size = batch_size, world_size
        height, width = mask_grid

        def plan_of(dataset: Any, column: str | None, **part: Any) -> BatchPlan:
            stream = _is_stream(dataset)
            if stream:
                refuse_split_stream(dataset, world_size)
            images = StreamedImages(dataset, column, args) if stream else IndexedImages(dataset, column)
            numbers = {"rank": rank, "world_size": world_size, "seed": seed, **part}
            plan = BatchPlan(images, args, batch_size, (height, width), **numbers)
            if not isinstance(images, StreamedImages):
                return plan
            return _with_lanes(plan, images, num_slots, num_lanes, block_size)

        if isinstance(dataset, DatasetMixture):
            self._plan = _mixed(dataset, image_column, seed, plan_of)
        else:
            self._plan = plan_of(dataset, image_column)
        streams = [part.images.num_shards for part in self._plan.parts if isinstance(part.images, StreamedImages)]
        lengths = [len(part.images) for part in self._plan.parts if isinstance(part.images, IndexedImages)]
        self.num_images: int | None = None if streams else sum(lengths)
        self.num_files: int | None = sum(streams) if streams else None
        self._batch = 0
        self._lane_states: dict[str, dict] = {}
        self._bad_rows, self._warn_of_bad_rows = BadRows(), warn_of_bad_rows
        self._open: set[RowReader] = set()
        # Files that are still open when the interpreter ends print "Exception ignored in ...".
        weakref.finalize(self, _close_all, self._open)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        turns, pinned = self._turns(), torch.cuda.is_available()
        loader = batch_loader(
            Batches(self._plan),
            self._num_workers,
            turns=turns,
            pin_memory=pinned,
            prefetch_factor=self._prefetch_factor,
            start_method=self._start_method,
        )
        iterator = iter(loader)
        try:
            for batch in iterator:
                if "error" in batch:
                    raise UnreadableData(batch["error"])
                self._batch = batch.pop("batch") + 1
                self._lane_states.update(batch.pop("lane_states"))
                for name, reason in batch["bad_rows"] if self._warn_of_bad_rows else ():
                    self._bad_rows.warn_of(name, reason)
                yield _with_tensors(batch, pinned)
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            # Of a worker that is waited for, torch says so; but not of one that dies while it hands over a batch.
            raise UnreadableData(
                "A data worker ended while it handed over a batch, as when the memory does not suffice: lower "
                "--dataloader_num_workers, and go on by poa resume."
            ) from error
        finally:
            del iterator  # ends the workers
            turns.close()

    def _turns(self) -> Generator[Any, None, None]:
        """Yield what the workers make batches of: their numbers, or, of a stream, their rows."""
        if not self._plan.streams:
            yield from itertools.count(self._batch)
        reader = RowReader(self._plan, self._batch, self._lane_states)
        self._open.add(reader)
        # Reading takes a fraction of the time that decoding does, but from a network it mostly waits.
        num_lanes = sum(len(part.lanes_of_slot(0)) for part in self._plan.streams)
        num_readers = min(-(-self._num_workers // WORKERS_PER_READER), num_lanes)
        try:
            yield from read_batches(reader, num_readers, self._num_workers + 2, self._start_method)
        finally:
            self._open.discard(reader)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch handed out, as plain JSON.

        Each process has a state of its own: save all of them.
        """
        return saved_position(self._plan, self._batch, self._lane_states)

    def load_state_dict(self, states: dict[str, Any] | Sequence[dict[str, Any]]) -> None:
        """Resume where the states were saved: the next `iter` starts there.

        Args:
            states: The states of all processes of the saving run, which may have had other numbers of processes and
                workers; or the one state of a run with a single process or of data with an index.

        Raises:
            ValueError: If the states belong to other data or another seed, end within a global batch of this run's
                size, or lack a lane that this process reads.
        """
        states = [states] if isinstance(states, dict) else list(states)
        self._plan, self._batch, self._lane_states = at_position(self._plan, states)


def _mixed(
    mixture: DatasetMixture, image_column: str | None, seed: int, plan_of: Callable[..., BatchPlan]
) -> BatchPlan:
    """Return the plan of a mixture: that of its first dataset, with those of all."""
    seeds = np.random.SeedSequence([seed, MIXING]).generate_state(len(mixture.datasets))
    parts = []
    for number, (dataset, name, column) in enumerate(
        zip(mixture.datasets, mixture.names, mixture.image_columns, strict=True)
    ):
        try:
            parts.append(plan_of(dataset, column or image_column, seed=int(seeds[number]), name=f"{name}/"))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return dataclasses.replace(parts[0], seed=seed, name="", datasets=tuple(parts), counts=mixture.counts)


def _is_stream(dataset: Any) -> bool:
    import datasets

    if isinstance(dataset, datasets.IterableDataset):
        return True
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not isinstance(dataset, Mapping | str):
        return False
    raise ValueError(f"A {type(dataset).__name__} cannot be read: {_what_to_give(dataset)}.")


def _what_to_give(dataset: Any) -> str:
    """Say what line turns a collection into one that is taken."""
    if isinstance(dataset, str | Path):
        return f"open it by poa_hf.open_dataset({str(dataset)!r})"
    if isinstance(dataset, Mapping):
        names = ", ".join(map(str, dataset))
        return f"give one of its splits ({names}), as dataset[{next(iter(dataset), 'train')!r}]"
    if isinstance(dataset, DataLoader):
        return "give the dataset that it loads, as loader.dataset"
    if isinstance(dataset, Generator):
        return (
            "it ends after one pass, so give the function that made it, if it yields dicts such as "
            '{"image": image}, as datasets.IterableDataset.from_generator(function)'
        )
    if isinstance(dataset, Iterable):
        return (
            "it has no length and items, so give it as datasets.IterableDataset.from_generator("
            'lambda: ({"image": image} for image in dataset))'
        )
    if callable(dataset):
        return "give it as datasets.IterableDataset.from_generator(function), if it yields dicts with an image"
    return "give one split, as a datasets.IterableDataset or with a length and items"


def _with_lanes(
    plan: BatchPlan, stream: StreamedImages, num_slots: int | None, num_lanes: int | None, block_size: int
) -> BatchPlan:
    """Return the plan with as many slots and lanes as wanted, but no more than there are shards to read."""
    num_slots = max(1, min(num_slots or 1, stream.num_shards))
    wanted = num_lanes or max(DEFAULT_LANES, plan.world_size)
    # More lanes than positions in a batch would leave lanes, and their part of the data, unread.
    num_lanes = max(1, min(wanted, stream.num_shards // num_slots, plan.global_batch_size))
    if reason := stream.shards.in_order:
        if plan.rank == 0:
            logger.warning(
                "The stream is read in its own order because of %s: every process reads all of it. Hold out whole "
                "files, or write the rows with save_to_disk, to read it faster and to shuffle it as a whole.",
                reason,
            )
    elif num_lanes < plan.world_size:
        logger.warning(
            "The dataset has %d files or row groups for %d processes: parts of it are read several times over; write "
            "it in more files.",
            stream.num_shards,
            plan.world_size,
        )
    return dataclasses.replace(plan, num_slots=num_slots, num_lanes=num_lanes, block_size=block_size)


def _with_tensors(batch: dict[str, Any], pinned: bool) -> dict[str, Any]:
    """Return a batch whose arrays are tensors, in memory from which a GPU copies while the host goes on if `pinned`.

    Workers hand over arrays, as each tensor would take a file handle of the process.
    """

    def tensor(values: np.ndarray) -> torch.Tensor:
        found = torch.from_numpy(values)
        return found.pin_memory() if pinned else found

    batch["masks"] = tensor(batch["masks"])
    for kind in ("global_augmentation", "local_augmentation"):
        batch[kind] = {name: tensor(values) for name, values in batch[kind].items()}
    return batch


def _close_all(readers: set[RowReader]) -> None:
    for reader in readers:
        reader.close()
