"""Time a call, measure its memory, and check that two ways of computing something agree."""

import gc
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import psutil
import torch
from torch import Tensor

from .live_bytes import LiveBytes


def check(expected: list[Tensor], actual: list[Tensor], tolerance: float, names: str) -> None:
    """Raise an AssertionError if results differ by more than `tolerance` of their largest entry.

    Tensors that hold nothing but rounding errors, such as the gradient of a key's bias, are compared on the scale of
    the others.
    """
    largest = max(tensor.abs().max().item() for tensor in expected)
    for one, other in zip(expected, actual, strict=True):
        scale = max(one.abs().max().item(), 1e-3 * largest)
        difference = (one.float() - other.float()).abs().max().item() / scale
        assert difference <= tolerance, f"{names} differ by {difference:.1e}"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(run: Callable[[], Any], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of one call, until the device has finished."""
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def peak(run: Callable[[], Any], device: torch.device) -> int:
    """Return the bytes that a call allocates at its fullest moment: of a GPU, or of all tensors on a CPU."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        run()
    return live.peak


class PeakMemory:
    """Peak bytes while the block runs: allocated on a GPU, resident on a CPU (sampled every millisecond)."""

    def __init__(self, device: torch.device):
        self.device, self.bytes, self._done = device, 0, threading.Event()

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._done.wait(0.001):
            self.bytes = max(self.bytes, process.memory_info().rss)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated()
