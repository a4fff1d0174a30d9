"""How long each size takes on a device: some sizes measured, the others estimated from what they compute."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..elastic import ElasticSpace, SubNetwork
from ..models.elastic_config import elastic_config, image_shape
from ..runs.atomic import write_json
from ..runs.layout import latency_name
from .costs import Costs, costs, stock_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Latency:
    """Of one forward pass of a batch: the median and the range of the middle half of the times, in milliseconds."""

    median_ms: float
    iqr_ms: float
    images_per_second: float

    @classmethod
    def of(cls, milliseconds: list[float], batch_size: int) -> Latency:
        low, median, high = (float(value) for value in np.percentile(milliseconds, [25, 50, 75]))
        return cls(median, high - low, 1000 * batch_size / median)


@dataclass(frozen=True)
class LatencyTable:
    """The latency of every size of a space.

    `milliseconds` has the measured median where there is one and else the estimate. `mean_error` and `worst_error` are
    relative: how far each measured size's estimate from the other measured ones is off (leave-one-out, so partly an
    extrapolation); None where nothing is estimated. `conditions` say what was measured where.
    """

    conditions: dict
    measured: dict[SubNetwork, Latency]
    milliseconds: dict[SubNetwork, float]
    mean_error: float | None = None
    worst_error: float | None = None

    def __getitem__(self, sub_network: SubNetwork) -> float:
        return self.milliseconds[sub_network]


def measure_latency(
    model: PreTrainedModel,
    batch_size: int = 1,
    device: str | torch.device = "cpu",
    repeats: int = 20,
    warmup: int = 3,
    compile: bool = False,
    max_seconds: float = 10.0,
) -> Latency:
    """The time of a float32 forward pass of `batch_size` random images in evaluation mode; the model is moved to the
    device and stays there.

    Args:
        warmup: Passes that are not counted; with `compile` (`torch.compile`) the first of them compiles.
        max_seconds: Slow models are warmed up and repeated less to keep to it, but once and three times at least.

    Raises:
        ValueError: For a device that is not there, or numbers below 1 (`warmup`: below 0).
    """
    if min(batch_size, repeats) < 1 or warmup < 0:
        raise ValueError(
            f"batch_size ({batch_size}) and repeats ({repeats}) must be at least 1, and warmup ({warmup}) not negative."
        )
    device = find_device(device)
    model = model.to(device).eval()
    images = torch.rand(batch_size, *image_shape(model.config), device=device)
    run = model
    if compile:
        torch.compiler.reset()  # sizes share code, of which only a few compiled versions are kept
        run = torch.compile(model)

    def timed() -> float:
        began = time.perf_counter()
        run(images)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return 1000 * (time.perf_counter() - began)

    began, times = time.perf_counter(), []
    with torch.inference_mode():
        for done in range(warmup):
            if done == 0 or time.perf_counter() - began < max_seconds / 2:
                timed()
        while len(times) < repeats and (len(times) < 3 or time.perf_counter() - began < max_seconds):
            times.append(timed())
    return Latency.of(times, batch_size)


def latency_table(
    config: PreTrainedConfig | PreTrainedModel,
    device: str | torch.device = "cpu",
    batch_size: int = 1,
    full: bool = False,
    compile: bool = False,
    folder: str | Path | None = None,
    *,
    also: Iterable[SubNetwork] = (),
    costs_of_sizes: dict[SubNetwork, Costs] | None = None,
) -> LatencyTable:
    """The latency of every size: measured on a grid (smallest, middle and largest of each axis) and estimated between,
    or all measured (`full`; also where the space is hardly larger than the grid).

    Sizes are measured in rounds, until one makes none of them much faster, and the fastest median of a size counts:
    whatever else runs on a device only ever slows it down. (Compiled models take long to make: one round.) The estimate
    of a size is a sum of parts proportional to its blocks, FLOPs and activations, and a constant, none negative, with
    the least squared relative error on the measured sizes.

    Args:
        config: An elastic configuration, or anything that has one; weights play no role.
        folder: Where measurements are kept (`latency-cpu-b1.json`) and found again, if they are of the same
            architecture, device, threads and version of PyTorch. Of a CPU only the instruction set is known: delete the
            file of a folder that moves to another machine.
        also: Sizes to measure besides the grid.
        costs_of_sizes: What `costs(config)` gives, if it is at hand.

    Raises:
        ValueError: For a device that is not there.
    """
    config = elastic_config(config)
    device = find_device(device)
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1.")
    conditions = _conditions(config, device, batch_size, compile)
    path = None if folder is None else Path(folder) / latency_name(device.type, batch_size, compile)
    date, measured = _read(path, conditions)
    wanted = list(config.space) if full else [*dict.fromkeys((*grid(config.space), *also))]
    if missing := [sub_network for sub_network in wanted if sub_network not in measured]:
        date = datetime.now(UTC).date().isoformat()
        measured |= _measure(config, missing, device, batch_size, compile)
    table = LatencyTable({**conditions, "date": date}, measured, {})
    sizes = costs_of_sizes or costs(config)
    table = replace(table, **estimate({size: _features(size, of) for size, of in sizes.items()}, measured))
    if missing and path is not None:
        _write(path, table)
    return table


def grid(space: ElasticSpace) -> list[SubNetwork]:
    """The sizes that are measured: the smallest, middle and largest width, each with the smallest, middle and largest
    depths and with one stage at its largest; or all sizes if they are hardly more."""
    stages = [sorted(set(stage)) for stage in zip(*space.depths, strict=True)]
    depths = {tuple(s[0] for s in stages), tuple(s[len(s) // 2] for s in stages), tuple(s[-1] for s in stages)}
    for index in range(len(stages)):
        depths.add(tuple(s[-1 if at == index else 0] for at, s in enumerate(stages)))
    widths = sorted({space.widths[0], space.widths[len(space.widths) // 2], space.widths[-1]})
    chosen = [SubNetwork(width, choice) for width in widths for choice in space.depths if choice in depths]
    return list(space) if len(space) <= 1.5 * len(chosen) else chosen


def estimate(features: dict[SubNetwork, np.ndarray], measured: dict[SubNetwork, Latency]) -> dict:
    """`milliseconds` of every size, `mean_error` and `worst_error`, as in `LatencyTable`."""
    known = [size for size in features if size in measured]
    inputs = np.array([features[size] for size in known])
    times = np.array([measured[size].median_ms for size in known])
    if len(known) == len(features):
        return {"milliseconds": dict(zip(known, times.tolist(), strict=True)), "mean_error": None, "worst_error": None}
    weights = _fit(inputs, times)
    milliseconds = {
        size: measured[size].median_ms if size in measured else float(values @ weights)
        for size, values in features.items()
    }
    errors = []
    for left_out in range(len(known)):
        others = np.arange(len(known)) != left_out
        errors.append(abs(inputs[left_out] @ _fit(inputs[others], times[others]) / times[left_out] - 1))
    return {"milliseconds": milliseconds, "mean_error": float(np.mean(errors)), "worst_error": float(np.max(errors))}


def _features(sub_network: SubNetwork, costs: Costs) -> np.ndarray:
    """What time is spent on: a call, its blocks' kernels, arithmetic, memory."""
    return np.array([1, sum(sub_network.depths), costs.flops, costs.activation_bytes], dtype=float)


def _fit(inputs: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Weights (features,), none negative, with the least squared relative error: the best of all choices of features,
    whose number is small."""
    scale = inputs.max(axis=0)
    rows, ones = inputs / scale / times[:, None], np.ones(len(times))
    best, least = None, np.inf
    for count in range(1, inputs.shape[1] + 1):
        for chosen in map(list, combinations(range(inputs.shape[1]), count)):
            solution = np.linalg.lstsq(rows[:, chosen], ones, rcond=None)[0]
            error = ((rows[:, chosen] @ solution - 1) ** 2).sum()
            if (solution >= 0).all() and error < least:
                least, best = error, np.zeros(inputs.shape[1])
                best[chosen] = solution / scale[chosen]
    return best


def _measure(
    config: PreTrainedConfig, sizes: list[SubNetwork], device: torch.device, batch_size: int, compile: bool
) -> dict[SubNetwork, Latency]:
    """The latencies of `sizes`, each from its fastest round."""
    fastest: dict[SubNetwork, Latency] = {}
    began = time.perf_counter()
    for round_ in range(1 if compile else _MOST_ROUNDS):
        settled = round_ > 0
        for done, size in enumerate(sizes):
            before = fastest.get(size)
            if before is not None and before.median_ms > _SLOW_MS:
                continue
            if (round_, done) == (0, 4) and (left := (time.perf_counter() - began) * (len(sizes) / 2 - 1)) > 20:
                logger.info("Measuring %d sizes on %s, which takes about %.0f s or more.", len(sizes), device, left)
            model = stock_model(config, size).to(device)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.uniform_(-0.05, 0.05)  # memory left to chance may hold numbers that take longer
            latency = measure_latency(model, batch_size, device, compile=compile, max_seconds=2.0)
            if before is None or latency.median_ms < before.median_ms:
                settled &= before is not None and latency.median_ms > 0.95 * before.median_ms
                fastest[size] = latency
        if settled:
            break
    return fastest


# Rounds of measuring; and a median beyond which one is enough, as it lasts longer than most disturbances.
_MOST_ROUNDS, _SLOW_MS = 6, 5000


def find_device(device: str | torch.device) -> torch.device:
    """The device, if it can be used here; else ValueError."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    usable = ["cpu", *([accelerator.type] if accelerator else [])]
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in usable or (found.index or 0) >= max(1, torch.accelerator.device_count()):
        raise ValueError(f"Device {str(device)!r} is not available here: use {' or '.join(usable)}.")
    return found


def _conditions(config: PreTrainedConfig, device: torch.device, batch_size: int, compile: bool) -> dict:
    """All that a latency depends on: measurements are used again only where this is the same."""
    on_cpu = device.type == "cpu"
    named = getattr(torch.get_device_module(device), "get_device_name", lambda: device.type)
    name = torch.backends.cpu.get_cpu_capability() if on_cpu else named()
    return {
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads() if on_cpu else None,
        "torch": torch.__version__,
        "dtype": "float32",
        "compiled": compile,
        "batch_size": batch_size,
        "image_shape": list(image_shape(config)),
        "architecture": config.stock_config(config.space.full).to_diff_dict(),
    }


def _read(path: Path | None, conditions: dict) -> tuple[str, dict[SubNetwork, Latency]]:
    """The date and the measurements of a file; none where there is no file or its conditions are others."""
    try:
        saved = json.loads(path.read_text()) if path and path.exists() else {}
        if {name: saved.get(name) for name in conditions} != json.loads(json.dumps(conditions)):
            return "", {}
        return saved["date"], {SubNetwork.parse(size): Latency(**of) for size, of in saved["measured"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", {}  # not ours: measured and written anew


def _write(path: Path, table: LatencyTable) -> None:
    measured = {
        str(size): {name: float(f"{value:.5g}") for name, value in asdict(latency).items()}
        for size, latency in table.measured.items()
    }
    errors = {"mean_error": table.mean_error, "worst_error": table.worst_error}
    try:
        write_json(path, {**table.conditions, **errors, "measured": measured}, indent=1)
    except OSError as error:
        logger.warning("The measured latencies could not be kept in %s: %s", path, error.strerror)
