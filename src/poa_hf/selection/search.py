"""Choosing a size of a run from what the run has measured and what its sizes cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ..elastic import SubNetwork
from ..models.elastic_config import elastic_config
from ..runs.layout import RunFolder
from ..runs.load import resolve_run
from .costs import Costs, costs
from .latency import find_device
from .latency_table import LatencyTable, latency_table
from .select import Budget, Quality, Selection, read_quality, select

# How often a choice that rests on estimated latencies is measured and made anew.
_CONFIRMATIONS = 5


@dataclass(frozen=True)
class Search:
    """A selection and what it was made from.

    Attributes:
        config: The run's elastic configuration.
        budget: What a size may cost.
        selection: The outcome.
        costs: Costs of every size.
        quality: The measured accuracies that rank the sizes; empty if nothing was measured.
        latencies: Latency of every size; None if it was not asked for.
    """

    config: PreTrainedConfig
    budget: Budget
    selection: Selection
    costs: dict[SubNetwork, Costs]
    quality: Quality
    latencies: LatencyTable | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything, all sizes included, as values that JSON holds."""
        selection, table = self.selection, self.latencies
        latency = None
        if table:
            latency = {**table.conditions, "mean_error": table.mean_error, "worst_error": table.worst_error}
        return {
            "budget": self.budget.limits,
            "ranked_by": self.quality.name if selection.best in self.quality.values else "parameters",
            "best": self._facts(selection.best),
            "runner_up": self._facts(selection.runner_up) if selection.runner_up else None,
            "pareto_front": [str(size) for size in selection.pareto_front],
            "within": [str(size) for size in selection.within],
            "latency": latency,
            "sizes": [self._facts(size) for size in self.costs],
        }

    def _facts(self, size: SubNetwork) -> dict[str, Any]:
        table = self.latencies
        latency = {"latency_ms": table[size], "latency_measured": size in table.measured} if table else {}
        return {"size": str(size), **asdict(self.costs[size]), **latency, "quality": self.quality.values.get(size)}


def search(
    run: str | Path,
    budget: Budget,
    quality: str = "knn",
    device: str | None = None,
    batch_size: int = 1,
    compile: bool = False,
    measure_all: bool = False,
) -> Search:
    """Select a size of a run within a budget.

    Latency is measured if the budget limits it, or if a device or `measure_all` is given. A choice that rests on
    estimated latencies is confirmed by measuring the chosen sizes.

    Args:
        run: Folder or Hub id of a run, a checkpoint, or a saved elastic model.
        budget: What a size may cost.
        quality: Accuracy that ranks the sizes: `knn` or `linear`.
        device: Where latency is measured; the CPU by default.
        batch_size: Images of one forward pass.
        compile: Measure models compiled by `torch.compile`.
        measure_all: Measure every size instead of a grid.

    Raises:
        ValueError: If there is no such run or device, or no size fits the budget.
    """
    folder = resolve_run(run)
    run_folder = RunFolder.containing(folder).path
    config = elastic_config(AutoConfig.from_pretrained(folder))
    place = find_device(device or "cpu")
    sizes = costs(config)
    measured = read_quality(run_folder, config.space, quality)
    if budget.max_latency_ms is None and device is None and not measure_all:
        return Search(config, budget, select(config.space, budget, sizes, measured.values), sizes, measured)
    options: dict[str, Any] = {
        "full": measure_all,
        "compile": compile,
        "folder": run_folder,
        "size_costs": sizes,
    }
    table = latency_table(config, place, batch_size, **options)
    selection = select(config.space, budget, sizes, measured.values, table)
    for _ in range(_CONFIRMATIONS):
        chosen = [size for size in (selection.best, selection.runner_up) if size is not None]
        if all(size in table.measured for size in chosen):
            break
        table = latency_table(config, place, batch_size, also=chosen, **options)
        selection = select(config.space, budget, sizes, measured.values, table)
    return Search(config, budget, selection, sizes, measured, table)
