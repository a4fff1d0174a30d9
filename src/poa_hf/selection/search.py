"""Choosing a size of a run from what the run has measured and what its sizes cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..elastic import ElasticSpace
from ..runs.comparison import Comparison, choose_by
from ..runs.facts import RunFacts
from ..sub_network import SubNetwork
from .costs import Costs, costs
from .latency import find_device
from .latency_table import LatencyTable, latency_table
from .prediction import Prediction, predict
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
        quality: The measured values that rank the sizes; None if nothing was measured.
        latencies: Latency of every size; None if it was not asked for.
        prediction: Predicted values of sizes that were not measured; None if there is no useful prediction.
    """

    config: PreTrainedConfig
    budget: Budget
    selection: Selection
    costs: dict[SubNetwork, Costs]
    quality: Comparison | None
    latencies: LatencyTable | None = None
    prediction: Prediction | None = None

    @property
    def measured(self) -> dict[SubNetwork, float]:
        """The measured values of some sizes."""
        return {} if self.quality is None else self.quality.values

    @property
    def predicted(self) -> dict[SubNetwork, float]:
        """The predicted values of some sizes that were not measured."""
        return {} if self.prediction is None else self.prediction.values

    def to_dict(self) -> dict[str, Any]:
        """Return everything, all sizes included, as values that JSON holds."""
        selection, table = self.selection, self.latencies
        latency = None
        if table:
            latency = {**table.conditions, "mean_error": table.mean_error, "worst_error": table.worst_error}
        return {
            "budget": self.budget.limits,
            "ranked_by": self.quality.name if self.quality and self._is_known(selection.best) else "parameters",
            "best": self._facts(selection.best),
            "runner_up": self._facts(selection.runner_up) if selection.runner_up else None,
            "pareto_front": [str(size) for size in selection.pareto_front],
            "within": [str(size) for size in selection.within],
            "latency": latency,
            "prediction": self._prediction(),
            "sizes": [self._facts(size) for size in self.costs],
        }

    def _facts(self, size: SubNetwork) -> dict[str, Any]:
        table = self.latencies
        latency = {"latency_ms": table[size], "latency_measured": size in table.measured} if table else {}
        quality = {"quality": self.measured.get(size), "predicted_quality": self.predicted.get(size)}
        return {"size": str(size), **asdict(self.costs[size]), **latency, **quality}

    def _is_known(self, size: SubNetwork) -> bool:
        return size in self.measured or size in self.predicted

    def _prediction(self) -> dict[str, Any] | None:
        if self.prediction is None:
            return None
        return {name: value for name, value in vars(self.prediction).items() if name != "values"}


def search(
    run: str | Path,
    budget: Budget,
    quality: str | None = None,
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
        quality: The task or metric that ranks the sizes, such as `segmentation` or `clustering_nmi`; by default k-NN,
            else a linear probe, else whatever was measured.
        device: Where latency is measured; the CPU by default.
        batch_size: Images of one forward pass.
        compile: Measure models compiled by `torch.compile`.
        measure_all: Measure every size instead of a grid.

    Raises:
        ValueError: If there is no such run or device, or no size fits the budget, or other tasks were
            measured but not this one.
    """
    facts = RunFacts.read(run)
    if problem := facts.no_model or facts.no_evaluations:
        raise ValueError(problem)
    config = facts.backbone
    place = find_device(device or "cpu")
    sizes = costs(config)
    measured = choose_by(facts.comparisons, quality)
    prediction = None if measured is None else predicted_quality(config.space, measured)
    qualities = _qualities(measured, prediction)
    if budget.max_latency_ms is None and device is None and not measure_all:
        selection = select(config.space, budget, sizes, **qualities)
        return Search(config, budget, selection, sizes, measured, None, prediction)
    options: dict[str, Any] = {
        "full": measure_all,
        "compile": compile,
        "folder": facts.folder.path if facts.folder else None,
        "size_costs": sizes,
    }
    table = latency_table(config, place, batch_size, **options)
    selection = select(config.space, budget, sizes, latency=table, **qualities)
    for _ in range(_CONFIRMATIONS):
        chosen = [size for size in (selection.best, selection.runner_up) if size is not None]
        if all(size in table.measured for size in chosen):
            break
        table = latency_table(config, place, batch_size, also=chosen, **options)
        selection = select(config.space, budget, sizes, latency=table, **qualities)
    return Search(config, budget, selection, sizes, measured, table, prediction)


def predicted_quality(space: ElasticSpace, measured: Comparison) -> Prediction | None:
    """Predict the values of the sizes that were not measured, within the limits of what is measured (`predict`)."""
    kind = measured.kind
    low = 0.0 if min(measured.values.values()) >= 0 else -1.0
    return predict(space, measured.values, low, 1.0 if kind.is_share else math.inf)


def _qualities(measured: Comparison | None, prediction: Prediction | None) -> dict[str, dict[SubNetwork, float]]:
    """Return the measured and the predicted worth of sizes, as `select` takes them."""
    if measured is None:
        return {}
    worth = measured.kind.worth
    predicted = {} if prediction is None else prediction.values
    return {"quality": measured.worth, "predicted": {size: worth(value) for size, value in predicted.items()}}
