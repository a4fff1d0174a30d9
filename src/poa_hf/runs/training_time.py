"""What a run has cost: on which devices it trained, and for how long."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from .atomic import write_json
from .layout import TRAINING_TIME


@dataclass(frozen=True)
class ComputePart:
    """The steps after `first_step` up to `last_step`, which took so many seconds by the clock on each process."""

    device: str
    processes: int
    first_step: int
    last_step: int
    seconds: float


@dataclass
class Compute:
    """A run's parts, as many as it was started times. What was trained, lost in a crash and trained again counts once.

    `complete` says whether the parts are all of the run: those before it was written down are not known.
    """

    global_batch_size: int
    parts: list[ComputePart] = field(default_factory=list)

    @property
    def step(self) -> int:
        return self.parts[-1].last_step if self.parts else 0

    @property
    def complete(self) -> bool:
        ends = [0, *(part.last_step for part in self.parts)]
        return bool(self.parts) and all(part.first_step == end for part, end in zip(self.parts, ends, strict=False))


class ComputeLog:
    """Writes `compute.json` beside each model that a run saves. One process does."""

    def __init__(self, device: torch.device, processes: int, global_batch_size: int):
        self.device, self.processes = device_name(device), processes
        self.past = Compute(global_batch_size)
        self.first_step = 0
        self.started: float | None = None

    def resume(self, checkpoint: Path) -> None:
        found = read_compute(checkpoint)
        self.past.parts = found.parts if found else []

    def start(self, step: int) -> None:
        self.first_step, self.started = step, time.perf_counter()

    def write(self, folder: Path, step: int) -> None:
        parts = list(self.past.parts)
        if self.started is not None and step > self.first_step:
            seconds = round(time.perf_counter() - self.started, 1)
            parts.append(ComputePart(self.device, self.processes, self.first_step, step, seconds))
        content = {"global_batch_size": self.past.global_batch_size, "parts": [asdict(part) for part in parts]}
        write_json(folder / TRAINING_TIME, content)


def read_compute(folder: Path) -> Compute | None:
    """What is written beside a model; None where there is nothing that can be read."""
    try:
        content = json.loads((folder / TRAINING_TIME).read_text())
        parts = [ComputePart(**part) for part in content["parts"]]
        return Compute(int(content["global_batch_size"]), parts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def device_name(device: torch.device) -> str:
    """What the maker calls it, `NVIDIA H100 80GB HBM3` say, or `CPU`."""
    if device.type == "cpu":
        return "CPU"
    return getattr(torch.get_device_module(device), "get_device_name", lambda _: device.type)(device)
