"""Measure how long a forward pass of a model takes on a device."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..models.elastic_config import image_shape


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass of a batch.

    Attributes:
        median_ms: Median of the repeats, in milliseconds.
        iqr_ms: Range of the middle half of the repeats, in milliseconds.
        images_per_second: Images of a batch over the median.
    """

    median_ms: float
    iqr_ms: float
    images_per_second: float

    @classmethod
    def from_times(cls, milliseconds: list[float], batch_size: int) -> Latency:
        """Summarise the times of several passes."""
        low, median, high = (float(value) for value in np.percentile(milliseconds, [25, 50, 75]))
        return cls(median, high - low, 1000 * batch_size / median)


def measure_latency(
    model: PreTrainedModel,
    batch_size: int = 1,
    device: str | torch.device = "cpu",
    repeats: int = 20,
    warmup: int = 3,
    compile: bool = False,
    max_seconds: float = 10.0,
) -> Latency:
    """Measure a float32 forward pass of random images in evaluation mode.

    Args:
        model: Any vision model; it is moved to the device and stays there.
        batch_size: Images per pass.
        device: Where to measure.
        repeats: Passes that count.
        warmup: Passes before them that do not count.
        compile: Measure the model compiled by `torch.compile`; the first pass then compiles it.
        max_seconds: The time limit, within which slow models get fewer passes: at least one to warm up and three that
            count.

    Raises:
        ValueError: If the device is not available, or a number is below 1 (`warmup`: below 0).
    """
    if min(batch_size, repeats) < 1 or warmup < 0:
        raise ValueError(
            f"batch_size ({batch_size}) and repeats ({repeats}) must be at least 1, and warmup ({warmup}) not negative."
        )
    device = find_device(device)
    module: nn.Module = model
    module.to(device).eval()
    images = torch.rand(batch_size, *image_shape(model.config), device=device)  # (B, C, H, W)
    if compile:
        torch.compiler.reset()  # sizes share code, of which torch keeps only a few compiled versions
    forward = torch.compile(model) if compile else model

    def timed_pass() -> float:
        began = time.perf_counter()
        forward(images)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return 1000 * (time.perf_counter() - began)

    began = time.perf_counter()
    times: list[float] = []
    with torch.inference_mode():
        for index in range(warmup):
            if index == 0 or time.perf_counter() - began < max_seconds / 2:
                timed_pass()
        while len(times) < repeats and (len(times) < 3 or time.perf_counter() - began < max_seconds):
            times.append(timed_pass())
    return Latency.from_times(times, batch_size)


def find_device(device: str | torch.device) -> torch.device:
    """Return the device; raise a ValueError if it is not available on this machine."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    usable = ["cpu", *([accelerator.type] if accelerator else [])]
    try:
        parsed = torch.device(device)
    except RuntimeError:
        parsed = None
    if parsed is None or parsed.type not in usable or (parsed.index or 0) >= max(1, torch.accelerator.device_count()):
        raise ValueError(f"Device {str(device)!r} is not available here: use {' or '.join(usable)}.")
    return parsed
