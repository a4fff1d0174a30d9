"""Timing a call, measuring its memory, and checking that two ways of computing something agree."""

import gc
import time
from collections.abc import Callable

import torch
from torch import Tensor

from .live_bytes import LiveBytes


def check(expected: list[Tensor], found: list[Tensor], tolerance: float, what: str) -> None:
    """AssertionError where results differ by more than `tolerance` of their largest entry. Tensors that are rounding
    alone, as the gradient of a key's bias is, are compared on the scale of the others."""
    largest = max(tensor.abs().max().item() for tensor in expected)
    for one, other in zip(expected, found, strict=True):
        scale = max(one.abs().max().item(), 1e-3 * largest)
        difference = (one.float() - other.float()).abs().max().item() / scale
        assert difference <= tolerance, f"{what} differ by {difference:.1e}"


def timed(run: Callable, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(run: Callable, device: torch.device) -> int:
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        run()
    return live.peak
