"""Worker processes that make whole batches, shared by training (`loader`) and evaluation."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

Batch = TypeVar("Batch")
_PARENT_CHECK = 5  # seconds between a worker's looks at whether the main process still exists


def batch_loader(
    batches: Dataset[Batch],
    num_workers: int,
    *,
    turns: Iterable[Any] | None = None,
    pin_memory: bool = False,
    prefetch_factor: int | None = None,
    start_method: str | None = None,
) -> DataLoader[Batch]:
    """Run a dataset of ready batches in worker processes, or in this process if `num_workers` is 0.

    The random state of the main process does not change.

    Args:
        batches: An `IterableDataset` whose items are handed out as they are: each worker iterates a copy, which asks
            `worker_share` which part to make. Or a `Dataset` that makes a batch of each of the `turns`.
        turns: What a `Dataset` makes batches of, in the order of the batches, whichever workers make them. It is
            iterated in this process.
        num_workers: Number of worker processes.
        pin_memory: Whether to copy tensors to pinned memory, from which a GPU reads without waiting.
        prefetch_factor: Batches that each worker makes ahead.
        start_method: "fork", "forkserver" or "spawn"; the platform's default if not given.
    """
    return DataLoader(
        batches,
        batch_size=None,
        sampler=turns,
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
    _leave_signals_to_the_main_process()
    import fsspec.asyn

    fsspec.asyn.reset_lock()  # the thread that reads from the network does not survive a fork


def _leave_signals_to_the_main_process() -> None:
    """Ignore the signals that ask a run to stop; the main process ends the workers once it has made its step.

    Ctrl-C reaches all processes of a terminal, and a scheduler's signals all processes of a job. SIGTERM is also how
    the main process ends a worker that hangs, so that it counts if it comes from there.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None or not hasattr(signal, "sigtimedwait"):  # macOS and Windows do not tell who sends a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_when_told, args=(parent.pid,), daemon=True).start()


def _end_when_told(by: int | None) -> None:
    """End this worker when the main process says so or has ended, even while the worker waits for data."""
    parent = os.getppid()
    while os.getppid() == parent:
        received = signal.sigtimedwait([signal.SIGTERM], _PARENT_CHECK)
        if received is not None and received.si_pid == by:
            break
    os._exit(0)


def _unchanged(batch: Batch) -> Batch:
    return batch
