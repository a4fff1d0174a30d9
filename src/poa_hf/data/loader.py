"""Endless batches of crops and masks that depend on the seed and the data only, not on processes and workers.

Words: B images per process, P processes, G = P * B. Global batch k has positions 0..G-1; process r owns r*B..(r+1)*B-1.
- An image's crops and colours come from `default_rng([seed, k, position])`, the masks of all G images' views from
  another generator of batch k, of which a process keeps its own rows.
- Where any image can be asked for by its index, position p of batch k is place k*G + p in an endless row of epochs.
- A stream is read through S slots of L lanes each (`stream.Lane`). Batch k is taken from slot k % S, position p from
  that slot's lane p*L // G. A process or worker that shares a lane with another one reads the other's rows too, and
  leaves them undecoded.

Worker w of W makes every W-th batch. Each batch carries the states of its lanes, so the loader knows where the last
batch that was handed out ends, however many batches lie prefetched.
"""

import logging
import signal
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from poa_hf.data.batches import Batches, Plan
from poa_hf.data.crops import CropArguments
from poa_hf.data.stream import IndexedImages, StreamedImages, UnreadableData

logger = logging.getLogger(__name__)

NAMED_BAD_ROWS = 20  # bad rows named in the log; of further ones only the number is told
DEFAULT_LANES = 8


class PretrainingLoader:
    """Iterating gives this process's share of one global batch after another, without end, as a dict:

    - `global_crops`: uint8 (2B, 3, g, g), the first views of the B images, then the second ones;
    - `local_crops`: uint8 (V*B, 3, l, l), likewise view by view;
    - `masks`: bool (2B, height * width of `mask_grid`);
    - `global_augmentation`, `local_augmentation`: parameters for `augment`, one row per crop;
    - `image_ids`: B strings, an index or "shard:row";
    - `skipped`: how many of the B images could not be decoded and were replaced by others.

    `dataset` is a `datasets.IterableDataset` (unshuffled and not split by node) or anything with a length and items.
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
    ):
        """
        Args:
            batch_size: images per process and batch.
            mask_grid: height and width of a global view in patches.
            seed: non-negative; all processes need the same one.
            image_column: needed where not exactly one column holds images.
            block_size: rows that a lane shuffles at a time; it holds as many undecoded images.
            num_slots: S above; the number of workers by default. Streams only, as is `num_lanes`.
            num_lanes: L above; by default 8, or more for more than 8 processes, as far as there are files to read.
            prefetch_factor: batches that each worker makes ahead.
            start_method: how worker processes are started, as `torch.utils.data.DataLoader` takes it; by default as
                Python does on this platform. "forkserver" and "spawn" need scripts with `if __name__ == "__main__":`.

        Raises:
            ValueError: for impossible numbers, an empty dataset, or an image column that is missing or not clear.
        """
        if batch_size < 1 or num_workers < 0 or seed < 0 or block_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size {batch_size}, num_workers {num_workers}, seed {seed}, block_size {block_size}, "
                f"rank {rank} of {world_size}: sizes must be at least 1, the others at least 0, and the rank below the "
                "world size."
            )
        self._num_workers, self._prefetch_factor, self._start_method = num_workers, prefetch_factor, start_method
        self._plan = Plan(args, batch_size, tuple(mask_grid), rank, world_size, seed)
        if _is_stream(dataset):
            self._plan.stream = StreamedImages(dataset, image_column)
            self.num_images = None
            self._set_lanes(num_slots, num_lanes, block_size)
        else:
            self._plan.indexed = IndexedImages(dataset, image_column)
            self.num_images = len(self._plan.indexed)
        self._batch = 0
        self._lane_states: dict[str, dict] = {}
        self._bad_rows: set[str] = set()
        self._open: set[Any] = set()
        # Files left open until the interpreter is half gone print "Exception ignored in ..." at its end.
        weakref.finalize(self, _close_all, self._open)

    def _set_lanes(self, num_slots: int | None, num_lanes: int | None, block_size: int):
        plan = self._plan
        shards = plan.stream.num_shards
        plan.block_size = block_size
        plan.slots = max(1, min(num_slots or max(1, self._num_workers), shards))
        wanted = num_lanes or max(DEFAULT_LANES, plan.world_size)
        # more lanes than positions in a batch would leave lanes, and their part of the data, unread
        plan.lanes = max(1, min(wanted, shards // plan.slots, plan.global_size))
        if plan.slots < self._num_workers or plan.lanes < plan.world_size:
            logger.warning(
                "The dataset has %d files or row groups for %d processes with %d workers each: parts of it are read "
                "several times over; use fewer workers, or write it in more files.",
                shards,
                plan.world_size,
                self._num_workers,
            )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = Batches(self._plan, self._batch, self._lane_states)
        workers = self._num_workers
        loader = DataLoader(
            batches,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_start_worker if workers else None,
            prefetch_factor=self._prefetch_factor if workers else None,
            multiprocessing_context=self._start_method if workers else None,
            generator=torch.Generator(),  # else a number is drawn from the global generator, and resuming changes it
        )
        iterator = iter(loader)
        self._open.add(batches)
        try:
            for batch in iterator:
                if "error" in batch:
                    raise UnreadableData(batch["error"])
                self._batch = batch.pop("batch") + 1
                self._lane_states.update(batch.pop("lane_states"))
                self._report(batch.pop("bad_rows"))
                yield _with_tensors(batch)
        finally:
            batches.close()
            self._open.discard(batches)
            del iterator  # ends the workers

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch handed out, as plain JSON. Each process has its own: save all of them."""
        plan = self._plan
        state = {"batch": self._batch, "seed": plan.seed, "global_batch_size": plan.global_size}
        if plan.stream is None:
            return state | {"num_images": self.num_images}
        return state | {
            "num_shards": plan.stream.num_shards,
            "num_slots": plan.slots,
            "num_lanes": plan.lanes,
            "block_size": plan.block_size,
            "lanes": dict(self._lane_states),
        }

    def load_state_dict(self, states: dict[str, Any] | list[dict[str, Any]]):
        """Go on where the states were saved; the next `iter` starts there.

        `states` are those of all processes of the saving run, which may have had other numbers of processes and
        workers, or the one state of a run with a single process or with an indexed dataset.

        Raises ValueError when the states belong to other data or another seed, end within a global batch of this run's
        size, or lack a lane that this process reads.
        """
        states = [states] if isinstance(states, dict) else list(states)
        if not states:
            raise ValueError("There is no saved position of the data: give the states of all processes.")
        plan, first = self._plan, states[0]
        if any(state["batch"] != first["batch"] for state in states):
            raise ValueError("The saved positions of the processes differ: give states saved at the same step.")
        own = {"seed": plan.seed}
        own |= {"num_images": self.num_images} if plan.stream is None else {"num_shards": plan.stream.num_shards}
        for name, value in own.items():
            if first.get(name) != value:
                raise ValueError(
                    f"The saved position of the data has {name} {first.get(name)}, this run {value}: go on with the "
                    "same data and seed, or start anew."
                )
        # With batches of another size (more accumulation, fewer processes) the order of the images goes on as it was.
        images = first["batch"] * first["global_batch_size"]
        batch, rest = divmod(images, plan.global_size)
        if rest:
            raise ValueError(
                f"{images} images have been read, no whole number of global batches of {plan.global_size}: go on with "
                "batches of the same size, or start anew."
            )
        if plan.stream is not None:
            plan.slots, plan.lanes, plan.block_size = first["num_slots"], first["num_lanes"], first["block_size"]
            saved = {lane: state for one in states for lane, state in one["lanes"].items()}
            visited = range(min(batch, plan.slots))
            needed = [str(lane) for slot in visited for lane in plan.own_lanes(slot)]
            if missing := [lane for lane in needed if lane not in saved]:
                raise ValueError(
                    f"The saved position lacks lane {missing[0]}: give the states of all processes that saved it."
                )
            self._lane_states = {lane: saved[lane] for lane in needed}
        self._batch = batch

    def _report(self, bad_rows: list[tuple[str, str]]):
        """Warn once of each bad row, and only of their number once there are many."""
        for name, reason in bad_rows:
            if name in self._bad_rows:
                continue
            self._bad_rows.add(name)
            number = len(self._bad_rows)
            if number <= NAMED_BAD_ROWS:
                logger.warning("Image %s could not be decoded and was replaced by another one: %s.", name, reason)
            elif number % 100 == 0:
                logger.warning("%d images could not be decoded so far and were replaced by others.", number)


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


def _start_worker(worker: int):
    torch.set_num_threads(1)
    # Ctrl-C reaches all processes of a terminal; the main one ends the workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import fsspec.asyn

    fsspec.asyn.reset_lock()  # after a fork, the thread that reads from the network is gone


def _with_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    batch["masks"] = torch.from_numpy(batch["masks"])
    for kind in ("global_augmentation", "local_augmentation"):
        batch[kind] = {name: torch.from_numpy(values) for name, values in batch[kind].items()}
    return batch


def _unchanged(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


def _close_all(open_batches: set[Batches]):
    for batches in open_batches:
        batches.close()
