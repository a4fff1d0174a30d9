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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
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
        plan = self._plan
        state: dict[str, Any] = {"batch": self._batch, "seed": plan.seed, "global_batch_size": plan.global_batch_size}
        if plan.datasets:
            state |= {"counts": list(plan.counts), "datasets": [_data_state(part) for part in plan.datasets]}
        else:
            state |= _data_state(plan)
        return state | {"lanes": dict(self._lane_states)} if plan.streams else state

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
        if self._plan.datasets:
            parts = zip(self._plan.datasets, first["datasets"], strict=True)
            plan = dataclasses.replace(self._plan, datasets=tuple(_as_saved(part, state) for part, state in parts))
        else:
            plan = _as_saved(self._plan, first)
        if plan.streams:
            self._lane_states = _saved_lanes(plan, batch, states)
        self._plan, self._batch = plan, batch

    def _check_same_data(self, state: dict[str, Any]) -> None:
        plan = self._plan
        saved: list[dict[str, Any]] = state.get("datasets") or [state]
        shares = state.get("counts", [1])
        _check_same("seed", state.get("seed"), plan.seed)
        _check_same("number of datasets", len(saved), len(plan.parts))
        if plan.datasets:
            _check_same("shares of datasets", _percent(shares), _percent(plan.counts))
        for part, data in zip(plan.parts, saved, strict=True):
            name = "num_shards" if isinstance(part.images, StreamedImages) else "num_images"
            of = f" of {part.name.rstrip('/')}" if part.name else ""
            _check_same(name + of, data.get(name), _data_state(part)[name])

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


def _data_state(plan: BatchPlan) -> dict[str, Any]:
    """Return what a state says of one dataset: its size, and how it is read."""
    if isinstance(plan.images, StreamedImages):
        lanes = {"num_slots": plan.num_slots, "num_lanes": plan.num_lanes, "block_size": plan.block_size}
        return {"num_shards": plan.images.num_shards, **lanes}
    assert plan.images is not None
    return {"num_images": len(plan.images)}


def _as_saved(plan: BatchPlan, state: dict[str, Any]) -> BatchPlan:
    """Return a plan with the lanes of the saving run: one of version 0.1 may have more slots than one."""
    if not isinstance(plan.images, StreamedImages):
        return plan
    return dataclasses.replace(plan, **{name: state[name] for name in ("num_slots", "num_lanes", "block_size")})


def _check_same(name: str, saved: Any, now: Any) -> None:
    if saved != now:
        raise ValueError(
            f"The saved position of the data has {name} {saved}, this run {now}: resume with the same data and seed, "
            "or start anew."
        )


def _percent(counts: Sequence[int]) -> str:
    return ", ".join(f"{100 * count / sum(counts):g} %" for count in counts)


def _is_stream(dataset: Any) -> bool:
    import datasets

    if isinstance(dataset, datasets.IterableDataset):
        return True
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not isinstance(dataset, dict | str):
        return False
    raise ValueError(f"A {type(dataset).__name__} cannot be read: {_what_to_give(dataset)}.")


def _what_to_give(dataset: Any) -> str:
    """Say what line turns a collection into one that is taken."""
    if isinstance(dataset, str | Path):
        return f"open it by poa_hf.open_dataset({str(dataset)!r})"
    if isinstance(dataset, dict):
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


def _saved_lanes(plan: BatchPlan, batch: int, states: Sequence[dict[str, Any]]) -> dict[str, dict]:
    """Return the saved states of those lanes of this process that the first `batch` batches were taken from."""
    saved = {lane: state for process in states for lane, state in process["lanes"].items()}
    needed = [
        part.lane_name(lane)
        for part in plan.streams
        for slot in range(min(batch, part.num_slots))
        for lane in part.lanes_of_slot(slot)
    ]
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
