"""Choosing a size of a run from what the run has measured and what its sizes cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..elastic import SubNetwork
from ..runs.comparison import Comparison, choose
from ..runs.facts import RunFacts
from .costs import Costs, costs
from .latency import find_device
from .latency_table import LatencyTable, latency_table
from .select import Budget, Selection, select

# How often a choice based on estimated latencies is measured and made again.
_CONFIRMATIONS = 5


@dataclass(frozen=True)
class Search:
    """A selection and what it was made from.

    Attributes:
        config: The run's elastic configuration.
        budget: What a size may cost.
        selection: The outcome.
        costs: Costs of every size.
        quality: The measured accuracies that rank the sizes; None if nothing was measured.
        latencies: Latency of every size; None if it was not asked for.
    """

    config: PreTrainedConfig
    budget: Budget
    selection: Selection
    costs: dict[SubNetwork, Costs]
    quality: Comparison | None
    latencies: LatencyTable | None = None

    @property
    def accuracies(self) -> dict[SubNetwork, float]:
        """The measured accuracies of some sizes."""
        return {} if self.quality is None else self.quality.values

    def to_dict(self) -> dict[str, Any]:
        """Return everything, all sizes included, as values that JSON holds."""
        selection, table = self.selection, self.latencies
        latency = None
        if table:
            latency = {**table.conditions, "mean_error": table.mean_error, "worst_error": table.worst_error}
        return {
            "budget": self.budget.limits,
            "ranked_by": self.quality.name if self.quality and selection.best in self.accuracies else "parameters",
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
        return {"size": str(size), **asdict(self.costs[size]), **latency, "quality": self.accuracies.get(size)}


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

    Latency is measured if the budget limits it, or if a device or `measure_all` is set. A choice based on
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
    facts = RunFacts.read(run)
    if problem := facts.no_model or facts.no_evaluations:
        raise ValueError(problem)
    config = facts.backbone
    place = find_device(device or "cpu")
    sizes = costs(config)
    measured = choose(facts.comparisons, [f"{quality}_accuracy"])
    worth = {} if measured is None else measured.worth
    if budget.max_latency_ms is None and device is None and not measure_all:
        return Search(config, budget, select(config.space, budget, sizes, worth), sizes, measured)
    options: dict[str, Any] = {
        "full": measure_all,
        "compile": compile,
        "folder": facts.folder.path if facts.folder else None,
        "size_costs": sizes,
    }
    table = latency_table(config, place, batch_size, **options)
    selection = select(config.space, budget, sizes, worth, table)
    for _ in range(_CONFIRMATIONS):
        chosen = [size for size in (selection.best, selection.runner_up) if size is not None]
        if all(size in table.measured for size in chosen):
            break
        table = latency_table(config, place, batch_size, also=chosen, **options)
        selection = select(config.space, budget, sizes, worth, table)
    return Search(config, budget, selection, sizes, measured, table)
