"""The latency of every size of a space: some sizes measured, the others estimated, and all of it kept in a file."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..elastic import ElasticSpace
from ..models.elastic_config import ElasticConfigMixin, elastic_config, image_shape
from ..runs.atomic import write_json
from ..runs.layout import RunFolder, latency_name
from ..sub_network import SubNetwork
from .costs import Costs, costs, stock_model
from .estimate import estimate, latency_features
from .latency import Latency, find_device, measure_latency

logger = logging.getLogger(__name__)

# Sizes are measured in rounds, of which the fastest counts, because other programs can only slow a device down. A size
# whose median exceeds _SLOW_MS is measured once: it outlasts most disturbances.
_MAX_ROUNDS = 6
_SLOW_MS = 5000


@dataclass(frozen=True)
class LatencyTable:
    """The latency of every size of a space.

    Attributes:
        conditions: The device, its settings and the architecture that the measurements are of.
        measured: The sizes that were measured.
        milliseconds: The measured median where there is one, otherwise an estimate.
        mean_error: Mean relative error of the estimates (`Estimate`); None where nothing is estimated.
        worst_error: The largest relative error of the estimates.
    """

    conditions: dict[str, Any]
    measured: dict[SubNetwork, Latency]
    milliseconds: dict[SubNetwork, float]
    mean_error: float | None = None
    worst_error: float | None = None

    def __getitem__(self, sub_network: SubNetwork) -> float:
        return self.milliseconds[sub_network]


def latency_table(
    config: PreTrainedConfig | PreTrainedModel,
    device: str | torch.device = "cpu",
    batch_size: int = 1,
    full: bool = False,
    compile: bool = False,
    folder: str | Path | None = None,
    *,
    also: Iterable[SubNetwork] = (),
    size_costs: Mapping[SubNetwork, Costs] | None = None,
) -> LatencyTable:
    """Return the latency of every size of an elastic configuration.

    A grid of sizes is measured (`grid`) and the others are estimated (`estimate`). Each size is measured in several
    rounds, until a round makes no size much faster, and its fastest median counts. Compiled models, which take long to
    make, are measured in one round.

    Args:
        config: An elastic configuration, or a model or `PoaConfig` that has one. Weights play no role.
        device: Where to measure.
        batch_size: Images per forward pass.
        full: Measure every size.
        compile: Measure models compiled by `torch.compile`.
        folder: Where measurements are kept (such as `latency-cpu-b1.json`). They are reused if they are of the same
            architecture, device, threads and version of PyTorch. A CPU is only known by its instruction set, so delete
            the file when the folder moves to another machine.
        also: Sizes to measure besides the grid.
        size_costs: The result of `costs(config)`; counted here by default.

    Raises:
        ValueError: If the device is not available.
    """
    config = elastic_config(config)
    device = find_device(device)
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} must be at least 1.")
    conditions = _conditions(config, device, batch_size, compile)
    path = None if folder is None else Path(folder) / latency_name(device.type, batch_size, compile)
    date, measured = _read(path, conditions)
    wanted = list(config.space) if full else [*dict.fromkeys((*grid(config.space), *also))]
    missing = [size for size in wanted if size not in measured]
    if missing:
        date = datetime.now(UTC).date().isoformat()
        measured |= _measure(config, missing, device, batch_size, compile)
    features = {size: latency_features(size, cost) for size, cost in (size_costs or costs(config)).items()}
    result = estimate(features, {size: latency.median_ms for size, latency in measured.items()})
    table = LatencyTable({**conditions, "date": date}, measured, **vars(result))
    if missing and path is not None:
        _write(path, table)
    return table


def grid(space: ElasticSpace) -> list[SubNetwork]:
    """Return the sizes to measure, from which the others can be estimated.

    These are the smallest, middle and largest width, each with the smallest, middle and largest depths and with one
    stage at its largest; or all sizes, if the space has at most half as many again.
    """
    stages = [sorted(set(depths)) for depths in zip(*space.depths, strict=True)]
    depths = {tuple(stage[at] for stage in stages) for at in (0, -1)}
    depths.add(tuple(stage[len(stage) // 2] for stage in stages))
    for deepest in range(len(stages)):
        depths.add(tuple(stage[-1 if index == deepest else 0] for index, stage in enumerate(stages)))
    widths = sorted({space.widths[0], space.widths[len(space.widths) // 2], space.widths[-1]})
    sizes = [SubNetwork(width, choice) for width in widths for choice in space.depths if choice in depths]
    return list(space) if len(space) <= 1.5 * len(sizes) else sizes


def _measure(
    config: ElasticConfigMixin, sizes: list[SubNetwork], device: torch.device, batch_size: int, compile: bool
) -> dict[SubNetwork, Latency]:
    """Return the latency of each size in its fastest round."""
    fastest: dict[SubNetwork, Latency] = {}
    began = time.perf_counter()
    for round_ in range(1 if compile else _MAX_ROUNDS):
        settled = round_ > 0
        for index, size in enumerate(sizes):
            before = fastest.get(size)
            if before is not None and before.median_ms > _SLOW_MS:
                continue
            if (round_, index) == (0, 4) and (left := (time.perf_counter() - began) * (len(sizes) / 2 - 1)) > 20:
                logger.info("Measuring %d sizes on %s, which takes about %.0f s or more.", len(sizes), device, left)
            latency = measure_latency(
                _model_with_plain_numbers(config, size, device), batch_size, device, compile=compile, max_seconds=2.0
            )
            if before is None or latency.median_ms < before.median_ms:
                settled &= before is not None and latency.median_ms > 0.95 * before.median_ms
                fastest[size] = latency
        if settled:
            break
    return fastest


@torch.no_grad()
def _model_with_plain_numbers(config: ElasticConfigMixin, size: SubNetwork, device: torch.device) -> PreTrainedModel:
    """Return the stock model of a size with random weights, because numbers in uninitialised memory may be slow."""
    model = stock_model(config, size)
    module: nn.Module = model
    for parameter in module.to(device).parameters():
        parameter.uniform_(-0.05, 0.05)
    return model


def _conditions(config: ElasticConfigMixin, device: torch.device, batch_size: int, compile: bool) -> dict[str, Any]:
    """Return everything that a latency depends on: measurements are reused only where it is the same."""
    on_cpu = device.type == "cpu"
    get_name = getattr(torch.get_device_module(device), "get_device_name", lambda: device.type)
    return {
        "device": device.type,
        "device_name": torch.backends.cpu.get_cpu_capability() if on_cpu else get_name(),
        "threads": torch.get_num_threads() if on_cpu else None,
        "torch": torch.__version__,
        "dtype": "float32",
        "compiled": compile,
        "batch_size": batch_size,
        "image_shape": list(image_shape(config)),
        "architecture": config.stock_config(config.space.full).to_diff_dict(),
    }


def _read(path: Path | None, conditions: dict[str, Any]) -> tuple[str, dict[SubNetwork, Latency]]:
    """Return the date and the measurements in a file; none if there is no file, or its conditions differ."""
    try:
        saved = json.loads(path.read_text()) if path and path.exists() else {}
        if {name: saved.get(name) for name in conditions} != json.loads(json.dumps(conditions)):
            return "", {}
        return saved["date"], {SubNetwork.parse(size): Latency(**values) for size, values in saved["measured"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", {}  # not a file of ours: measured and written again


def read_latencies(run: RunFolder, config: PreTrainedConfig) -> dict[str, dict[SubNetwork, float]]:
    """Return the measured milliseconds of sizes of a run's model, by a title that says where they were measured.

    Files of another architecture and broken ones are left out.
    """
    config = elastic_config(config)
    space = config.space
    architecture = json.loads(json.dumps(config.stock_config(space.full).to_diff_dict()))
    found = {}
    for path in run.latencies():
        try:
            saved = json.loads(path.read_text())
            sizes = {SubNetwork.parse(size): float(latency["median_ms"]) for size, latency in saved["measured"].items()}
            title = f"latency on {saved['device']}"
            title += f", batch of {saved['batch_size']}" if saved["batch_size"] != 1 else ""
            title += (", compiled" if saved["compiled"] else "") + ", ms"
            same = saved.get("architecture") == architecture
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
            continue
        if same and sizes.keys() <= set(space):
            found[title] = sizes
    return found


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
