"""The time that a run has taken and its devices, in `compute.json` beside each saved model."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from .atomic import write_json
from .json_files import read_object
from .layout import TRAINING_TIME

logger = logging.getLogger(__name__)

_NUMBERS = ("processes", "first_step", "last_step", "seconds")


@dataclass(frozen=True)
class ComputePart:
    """The part of a run from one start or restart to the next.

    Args:
        device: The name of the device, such as `NVIDIA H100 80GB HBM3` or `CPU`.
        processes: The number of processes, each with one device.
        first_step: The step after which it began.
        last_step: Its last step.
        seconds: Its wall-clock seconds.
    """

    device: str
    processes: int
    first_step: int
    last_step: int
    seconds: float


@dataclass
class Compute:
    """The parts of a run, one per start or restart. Steps that were lost in a crash and repeated count once."""

    global_batch_size: int
    parts: list[ComputePart] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The last step of the last part."""
        return self.parts[-1].last_step if self.parts else 0

    @property
    def complete(self) -> bool:
        """Whether the parts are all of the run; the time of a part that was never written down is not known."""
        ends = [0, *(part.last_step for part in self.parts)]
        return bool(self.parts) and all(part.first_step == end for part, end in zip(self.parts, ends, strict=False))


class ComputeLog:
    """Measures the time of a run and writes it beside each model that the run saves, on one process.

    Args:
        device: The device of this process.
        processes: The number of processes.
        global_batch_size: Images per step, over all processes.
    """

    def __init__(self, device: torch.device, processes: int, global_batch_size: int):
        self.device, self.processes = device_name(device), processes
        self.past = Compute(global_batch_size)
        self.first_step = 0
        self.started: float | None = None

    def resume(self, checkpoint: Path) -> None:
        """Take over the parts that a checkpoint has written down."""
        saved = read_compute(checkpoint)
        self.past.parts = saved.parts if saved else []

    def start(self, step: int) -> None:
        """Begin a part after a step."""
        self.first_step, self.started = step, time.perf_counter()

    def write(self, folder: Path, step: int) -> None:
        """Write the parts up to a step into the folder of a model."""
        parts = list(self.past.parts)
        if self.started is not None and step > self.first_step:
            seconds = round(time.perf_counter() - self.started, 1)
            parts.append(ComputePart(self.device, self.processes, self.first_step, step, seconds))
        content = {"global_batch_size": self.past.global_batch_size, "parts": [asdict(part) for part in parts]}
        write_json(folder / TRAINING_TIME, content)


def read_compute(folder: Path) -> Compute | None:
    """Read the times beside a model; None if there are none, or they are damaged, of which a warning tells."""
    if not (folder / TRAINING_TIME).exists():
        return None
    try:
        return load_compute(folder / TRAINING_TIME)
    except ValueError as error:
        logger.warning("%s The time of the run is not known.", error)
        return None


def load_compute(path: Path) -> Compute:
    """Load the times in a file.

    Raises:
        ValueError: If they are damaged.
    """
    content = read_object(path)
    try:
        parts = [ComputePart(**part) for part in content["parts"]]
        numbers = [content["global_batch_size"], *(getattr(part, name) for part in parts for name in _NUMBERS)]
        if any(type(number) not in (int, float) or not 0 <= number < math.inf for number in numbers):
            raise TypeError("a number is missing")
        return Compute(int(content["global_batch_size"]), parts)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: it does not hold the devices and times of a run's parts.") from error


def device_name(device: torch.device) -> str:
    """The name that the maker gives a device, such as `NVIDIA H100 80GB HBM3`; `CPU` for a CPU."""
    if device.type == "cpu":
        return "CPU"
    return getattr(torch.get_device_module(device), "get_device_name", lambda _: device.type)(device)
