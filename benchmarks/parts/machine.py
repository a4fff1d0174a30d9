"""The machine that a benchmark runs on: its device, its name in tables, and its rate of matrix products."""

import platform
import statistics
import time
from collections.abc import Callable

import torch

from .timing import timed


def find_device() -> torch.device:
    """Return the GPU if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """Return the name of the device for tables; of a CPU, the threads that torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'' if threads == 1 else 's'}"


def versions(**libraries: str) -> dict[str, str]:
    """Return the versions of torch, other libraries and Python, for the last line of a program."""
    return {"torch": torch.__version__, **libraries, "python": platform.python_version()}


def table_head(name: str, **libraries: str) -> str:
    """Return the first line of a table: device and versions."""
    named = [("torch", torch.__version__), *libraries.items(), ("Python", platform.python_version())]
    return f"{name}; {', '.join(f'{library} {version}' for library, version in named)}"


def matrix_rate(device: torch.device, dtype: torch.dtype, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the FLOPs per second of one large matrix product, the median of several."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = [timed(lambda: a @ b, device, clock) for _ in range(7)]
    return 2 * side**3 / statistics.median(seconds[2:])  # the first two warm up
