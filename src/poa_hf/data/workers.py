"""Worker processes that make whole batches, shared by training (`loader`) and evaluation."""

from __future__ import annotations

import signal
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

Batch = TypeVar("Batch")


def batch_loader(
    batches: IterableDataset[Batch],
    num_workers: int,
    *,
    pin_memory: bool = False,
    prefetch_factor: int | None = None,
    start_method: str | None = None,
) -> DataLoader[Batch]:
    """Run a dataset of ready batches in worker processes, or in this process if `num_workers` is 0.

    Each worker iterates a copy of `batches`, which asks `worker_share` which part to make. The random state of the main
    process does not change.

    Args:
        batches: An iterable whose items are handed out as they are.
        num_workers: Number of worker processes.
        pin_memory: Whether to copy tensors to pinned memory, from which a GPU reads without waiting.
        prefetch_factor: Batches that each worker makes ahead.
        start_method: "fork", "forkserver" or "spawn"; the platform's default if not given.
    """
    return DataLoader(
        batches,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker if num_workers else None,
        prefetch_factor=prefetch_factor if num_workers else None,
        multiprocessing_context=start_method if num_workers else None,
        generator=torch.Generator(),  # otherwise a seed is drawn from the global generator
    )


def worker_share() -> tuple[int, int]:
    """Return this worker's number and the number of workers; (0, 1) outside of worker processes."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches all processes of a terminal; the main one ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import fsspec.asyn

    fsspec.asyn.reset_lock()  # the thread that reads from the network does not survive a fork


def _unchanged(batch: Batch) -> Batch:
    return batch
