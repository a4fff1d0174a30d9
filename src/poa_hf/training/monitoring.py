"""Monitoring of a run: values for the next log line, steps that are not finite, and signs of collapse."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.modeling_poa_pretraining import PoaForPreTrainingOutput
from ..sub_network import SubNetwork
from .optimization import StepHyperparameters

logger = logging.getLogger(__name__)

# Training has collapsed below or above these values of the logged statistics.
MIN_FEATURE_SPREAD = 0.02
MIN_EFFECTIVE_RANK = 2
MAX_TEACHER_ENTROPY = 0.999
MIN_BATCH_SIZE = 8  # images per process below which spread and rank of the features say nothing
MAX_DATA_WAIT = 0.2  # share of the time spent waiting for data above which a run warns


class LogWindow:
    """Collects what happens from one log line to the next.

    Losses are summed on their device, so that no step waits for them.
    """

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}  # of the steps that have a loss, as not all steps train sub-networks
        self.images = 0
        self.data_wait = DataWait()
        self.step_seconds: list[float] = []
        self.sizes: list[tuple[SubNetwork, ...]] = []
        self.statistics: dict[str, float] = {}
        self.hyperparameters: StepHyperparameters | None = None
        self.sub_networks: tuple[SubNetwork, ...] = ()

    def add(self, losses: Mapping[str, Tensor], skipped: Tensor) -> None:
        """Add a step's losses, unless the step is skipped.

        Args:
            losses: Scalars by their names in the log.
            skipped: A bool on the device of the losses.
        """
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + torch.where(skipped, 0, value)
            self.counts[name] = self.counts.get(name, 0) + ~skipped

    def add_statistics(self, output: PoaForPreTrainingOutput) -> None:
        """Take the statistics of a step's last forward pass, for which the host waits."""
        self.statistics = {name: value.item() for name, value in (output.statistics or {}).items()}
        features = output.teacher_features  # (2B, D)
        if features is not None and torch.isfinite(features).all():
            self.statistics |= feature_statistics(features)

    def means(self) -> dict[str, float]:
        """Return the mean of each loss over the steps that have it and were not skipped."""
        if not self.sums:
            return {}
        means = torch.stack(list(self.sums.values())) / torch.stack(list(self.counts.values()))
        return {name: mean for name, mean in zip(self.sums, means.tolist(), strict=True) if not math.isnan(mean)}

    def summary(self) -> dict[str, Any]:
        """Return the values of the log line.

        These are the means of the losses, the last step's statistics and hyperparameters, images per second, and the
        share of the time spent waiting for data.
        """
        elapsed = time.perf_counter() - self.started
        values = self.means() | self.statistics
        if self.hyperparameters is not None:
            values |= dataclasses.asdict(self.hyperparameters)
        return values | {
            "sub_network": ", ".join(map(str, self.sub_networks)),
            "images_per_second": self.images / elapsed,
            "data_wait": self.data_wait.seconds() / elapsed,
        }


class DataWait:
    """Adds up for how long a device has had nothing to do because the next batch was not there.

    A GPU works on what is queued while the host waits, so that a wait counts from the end of that work only.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._unread: list[tuple[torch.Event, torch.Event, float]] = []

    @contextmanager
    def waiting(self, device: torch.device) -> Iterator[None]:
        """Measure what the host waits for within this context."""
        started, idle_since = time.perf_counter(), _timed_event(device)
        yield
        waited = time.perf_counter() - started
        if idle_since is None:
            self._seconds += waited
        elif idle_since.query():  # or else the device still has work, and has lost nothing
            self._unread.append((idle_since, cast("torch.Event", _timed_event(device)), waited))

    def seconds(self) -> float:
        """Return the seconds so far."""
        for idle_since, idle_until, waited in self._unread:
            idle_until.synchronize()  # passed long since, as work of the same step was queued behind it
            self._seconds += min(waited, idle_since.elapsed_time(idle_until) / 1000)
        self._unread.clear()
        return self._seconds


def _timed_event(device: torch.device) -> torch.Event | None:
    """Return an event behind all work that is queued on a GPU; None for other devices."""
    if device.type != "cuda":
        return None
    event = torch.Event(device, enable_timing=True)
    torch.accelerator.current_stream(device).record_event(event)
    return event


class LateFlags:
    """Reads flags from the device, each only when another step is queued there.

    So the host never waits for the step that it has just queued, is never more than one step ahead, and a GPU always
    has work. Processes that have the same flags read them at the same step.
    """

    def __init__(self) -> None:
        self._unread: deque[tuple[int, Tensor, torch.Event | None]] = deque()

    def add(self, step: int, flag: Tensor) -> None:
        """Queue the flag of a step, a bool on the device."""
        on_host = flag.to("cpu", non_blocking=True)  # into pinned memory
        copied = None
        if flag.device.type != "cpu":
            copied = torch.accelerator.current_stream(flag.device).record_event()
        self._unread.append((step, on_host, copied))

    def read(self, wait: bool = False) -> Iterator[tuple[int, bool]]:
        """Yield steps and their flags in order: all of them if `wait`, else not the last one of a device."""
        while self._unread and (wait or len(self._unread) > 1 or self._unread[0][2] is None):
            step, flag, copied = self._unread.popleft()
            if copied is not None:
                copied.synchronize()
            yield step, bool(flag)


class NonfiniteSteps:
    """Counts the steps that are skipped because their loss or gradient is not finite.

    The flags are computed on the device and read late (`LateFlags`); all processes have the same.

    Args:
        is_main: Whether to warn of each skipped step; one process does.
    """

    def __init__(self, is_main: bool):
        self.is_main = is_main
        self.count = self.in_a_row = self.last_step = 0
        self._flags = LateFlags()

    def add(self, step: int, skipped: Tensor) -> None:
        """Take note of a step, whose flag `skipped` is a bool on the device."""
        self._flags.add(step, skipped)
        self._count(wait=False)

    def settle(self) -> None:
        """Read all flags, waiting for them."""
        self._count(wait=True)

    def _count(self, wait: bool) -> None:
        for step, skipped in self._flags.read(wait):
            self.last_step = step
            if not skipped:
                self.in_a_row = 0
                continue
            self.count += 1
            self.in_a_row += 1
            if self.is_main:
                logger.warning("Step %d is skipped: its loss or gradient is not finite.", self.last_step)


@torch.no_grad()
def feature_statistics(features: Tensor) -> dict[str, float]:
    """Measure how far apart features lie, and in how many directions.

    Args:
        features: Features of N images, (N, D).

    Returns:
        `feature_spread`: the standard deviation of the L2-normalised features over the images, times sqrt(D) (SimSiam,
        arXiv 2011.10566); 0 if all images have one feature, 1 if directions are uniform.
        `effective_rank`: the exponential of the entropy of the normalised singular values of the centred features (Roy
        and Vetterli, 2007); the number of directions in use, at most min(N - 1, D).
    """
    features = F.normalize(features.float(), dim=-1)
    spread = features.std(dim=0, unbiased=False).square().mean().sqrt() * features.shape[1] ** 0.5
    singular_values = torch.linalg.svdvals(features - features.mean(dim=0))  # (min(N, D),)
    shares = singular_values / singular_values.sum().clamp(min=1e-12)
    return {"feature_spread": spread.item(), "effective_rank": torch.special.entr(shares).sum().exp().item()}


def collapse_warning(statistics: Mapping[str, float]) -> str | None:
    """Return a sentence if the statistics of a log line say that training has collapsed, else None.

    Example:
        >>> collapse_warning({"feature_spread": 0.5, "effective_rank": 1.2}).partition(";")[0]
        "Collapse: the teacher's features vary in almost one direction (effective_rank below 2)"
        >>> collapse_warning({"feature_spread": 0.5, "effective_rank": 30.0}) is None
        True
    """
    remedy = "lower the learning rate or raise koleo_weight."
    if statistics["feature_spread"] < MIN_FEATURE_SPREAD:
        return (
            "Collapse: the teacher gives every image almost the same feature (feature_spread below "
            f"{MIN_FEATURE_SPREAD}); {remedy}"
        )
    if statistics["effective_rank"] < MIN_EFFECTIVE_RANK:
        return (
            "Collapse: the teacher's features vary in almost one direction (effective_rank below "
            f"{MIN_EFFECTIVE_RANK}); {remedy}"
        )
    uniform = [
        name for name, value in statistics.items() if name.startswith("teacher_entropy") and value > MAX_TEACHER_ENTROPY
    ]
    if uniform:
        return (
            f"Collapse: the teacher's targets are uniform ({', '.join(uniform)} above {MAX_TEACHER_ENTROPY}), so that "
            "its prototypes do not tell images apart; lower teacher_temperature or the learning rate."
        )
    return None


def log_warnings(logs: Mapping[str, Any], batch_size: int, ignore_data_wait: bool = False) -> set[str]:
    """Return warnings of what is wrong according to a log line, one sentence each.

    Args:
        logs: The line's values.
        batch_size: Images per process.
        ignore_data_wait: Whether to leave out the warning that the run waits for data.
    """
    warnings = set()
    if batch_size >= MIN_BATCH_SIZE and "feature_spread" in logs and (collapse := collapse_warning(logs)):
        warnings.add(collapse)
    if logs["data_wait"] > MAX_DATA_WAIT and not ignore_data_wait:
        warnings.add("More than a fifth of the time is spent waiting for data: raise dataloader_num_workers.")
    return warnings
