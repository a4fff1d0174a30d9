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
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import torch

from .bad_rows import BadRows
from .batches import Batches
from .crop_arguments import CropArguments
from .errors import UnreadableData
from .order import BatchPlan
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
        num_images: Images of the dataset; None for a stream.
        num_files: Files, or parts that count as such, of a stream; None otherwise.

    Args:
        dataset: A `datasets.IterableDataset`, of which exactly the rows are read that iterating it gives, or anything
            with a length and items.
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
        self.num_images: int | None = None
        self.num_files: int | None = None
        height, width = mask_grid
        if _is_stream(dataset):
            refuse_split_stream(dataset, world_size)
            stream = StreamedImages(dataset, image_column, args)
            self.num_files = stream.num_shards
            plan = BatchPlan(stream, args, batch_size, (height, width), rank, world_size, seed)
            self._plan = _with_lanes(plan, stream, num_slots, num_lanes, block_size)
        else:
            indexed = IndexedImages(dataset, image_column)
            self.num_images = len(indexed)
            self._plan = BatchPlan(indexed, args, batch_size, (height, width), rank, world_size, seed)
        self._batch = 0
        self._lane_states: dict[str, dict] = {}
        self._bad_rows, self._warn_of_bad_rows = BadRows(), warn_of_bad_rows
        self._open: set[RowReader] = set()
        # Files that are still open when the interpreter ends print "Exception ignored in ...".
        weakref.finalize(self, _close_all, self._open)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        turns = self._turns()
        loader = batch_loader(
            Batches(self._plan),
            self._num_workers,
            turns=turns,
            pin_memory=torch.cuda.is_available(),
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
                yield _with_tensors(batch)
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
        if isinstance(self._plan.images, IndexedImages):
            yield from itertools.count(self._batch)
        reader = RowReader(self._plan, self._batch, self._lane_states)
        self._open.add(reader)
        # Reading takes a fraction of the time that decoding does, but from a network it mostly waits.
        num_readers = min(-(-self._num_workers // WORKERS_PER_READER), len(self._plan.lanes_of_slot(0)))
        try:
            yield from read_batches(reader, num_readers, self._num_workers + 2, self._start_method)
        finally:
            self._open.discard(reader)

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch handed out, as plain JSON.

        Each process has a state of its own: save all of them.
        """
        plan = self._plan
        state = {"batch": self._batch, "seed": plan.seed, "global_batch_size": plan.global_batch_size}
        if not isinstance(plan.images, StreamedImages):
            return state | {"num_images": self.num_images}
        return state | {
            "num_shards": plan.images.num_shards,
            "num_slots": plan.num_slots,
            "num_lanes": plan.num_lanes,
            "block_size": plan.block_size,
            "lanes": dict(self._lane_states),
        }

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
        if not states:
            raise ValueError("There is no saved position of the data: give the states of all processes.")
        first = states[0]
        if any(state["batch"] != first["batch"] for state in states):
            raise ValueError("The saved positions of the processes differ: give states saved at the same step.")
        self._check_same_data(first)
        batch = self._batches_read(first)
        if isinstance(self._plan.images, StreamedImages):
            # A run of version 0.1 may have more slots than one, and goes on with them.
            lanes = {name: first[name] for name in ("num_slots", "num_lanes", "block_size")}
            plan = dataclasses.replace(self._plan, **lanes)
            self._lane_states = _saved_lanes(plan, batch, states)
            self._plan = plan
        self._batch = batch

    def _check_same_data(self, state: dict[str, Any]) -> None:
        images = self._plan.images
        data = {"seed": self._plan.seed}
        data |= {"num_shards": images.num_shards} if isinstance(images, StreamedImages) else {"num_images": len(images)}
        for name, value in data.items():
            if state.get(name) != value:
                raise ValueError(
                    f"The saved position of the data has {name} {state.get(name)}, this run {value}: resume with the "
                    "same data and seed, or start anew."
                )

    def _batches_read(self, state: dict[str, Any]) -> int:
        """Return how many of this run's global batches hold the images that the saving run has read.

        With batches of another size (more accumulation, fewer processes) the order of the images stays the same.
        """
        num_images, size = state["batch"] * state["global_batch_size"], self._plan.global_batch_size
        batch, rest = divmod(num_images, size)
        if rest:
            raise ValueError(
                f"{num_images} images have been read, which is no whole number of global batches of {size}: resume "
                "with batches of the same size, or start anew."
            )
        return batch


def _is_stream(dataset: Any) -> bool:
    import datasets

    if isinstance(dataset, datasets.IterableDataset):
        return True
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not isinstance(dataset, dict):
        return False
    raise ValueError(
        f"A {type(dataset).__name__} cannot be read: give one split, as a datasets.IterableDataset or with a length "
        "and items."
    )


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


def _saved_lanes(plan: BatchPlan, batch: int, states: Sequence[dict[str, Any]]) -> dict[str, dict]:
    """Return the saved states of those lanes of this process that the first `batch` batches were taken from."""
    saved = {lane: state for process in states for lane, state in process["lanes"].items()}
    needed = [str(lane) for slot in range(min(batch, plan.num_slots)) for lane in plan.lanes_of_slot(slot)]
    if missing := [lane for lane in needed if lane not in saved]:
        raise ValueError(f"The saved position lacks lane {missing[0]}: give the states of all processes that saved it.")
    return {lane: saved[lane] for lane in needed}


def _with_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    batch["masks"] = torch.from_numpy(batch["masks"])
    for kind in ("global_augmentation", "local_augmentation"):
        batch[kind] = {name: torch.from_numpy(values) for name, values in batch[kind].items()}
    return batch


def _close_all(readers: set[RowReader]) -> None:
    for reader in readers:
        reader.close()
