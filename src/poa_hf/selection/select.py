"""Choose a size: the best within a budget of parameters, FLOPs and latency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from ..elastic import ElasticSpace
from ..formatting import format_quantity, parse_quantity
from ..models.elastic_config import elastic_config
from ..sub_network import SubNetwork
from .costs import Costs
from .costs import costs as costs_of_space
from .latency_table import LatencyTable
from .pareto import pareto_front

_AXES = {"max_params": "parameters", "max_flops": "FLOPs", "max_latency_ms": "ms"}


@dataclass(frozen=True)
class Budget:
    """What a size may cost at most.

    Limits are numbers, or texts such as `30M`, `5G` and `4` (K, M, G or B, T for powers of 1000).

    Args:
        max_params: Parameters.
        max_flops: FLOPs of one image, counted as in `Costs`: a multiplication and its addition once.
        max_latency_ms: Milliseconds of one forward pass.

    Raises:
        ValueError: If a limit is not a positive number.

    Example:
        >>> Budget(max_params="30M", max_latency_ms=4).limits
        {'max_params': 30000000.0, 'max_latency_ms': 4.0}
    """

    max_params: float | str | None = None
    max_flops: float | str | None = None
    max_latency_ms: float | str | None = None

    def __post_init__(self) -> None:
        for name in _AXES:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, parse_quantity(value, name))

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, as numbers."""
        return {name: getattr(self, name) for name in _AXES if getattr(self, name) is not None}


@dataclass(frozen=True)
class Selection:
    """The outcome of `select`.

    Attributes:
        best: The best size within the budget.
        runner_up: The second best; None if only one size fits.
        pareto_front: The sizes within the budget that no other beats (`pareto_front`), the best first; where quality
            was measured or predicted, among the measured or else the predicted sizes only.
        within: All sizes within the budget, the best first.
    """

    best: SubNetwork
    runner_up: SubNetwork | None
    pareto_front: list[SubNetwork]
    within: list[SubNetwork]


def select(
    space: ElasticSpace | PreTrainedConfig | PreTrainedModel,
    budget: Budget = Budget(),  # noqa: B008 (frozen)
    costs: Mapping[SubNetwork, Costs] | None = None,
    quality: Mapping[SubNetwork, float] | None = None,
    latency: Mapping[SubNetwork, float] | LatencyTable | None = None,
    predicted: Mapping[SubNetwork, float] | None = None,
) -> Selection:
    """Select the best size within a budget.

    Sizes of measured quality come first, in descending order and the cheapest first among equals; then those of
    predicted quality, likewise. The others follow, those with the most parameters first and, among equals, those with
    the fewest FLOPs. The Pareto front weighs quality (predicted quality where none was measured, parameters where none
    was predicted either) against the costs that the budget limits, or against all known costs if it limits none.

    Args:
        space: An elastic configuration, or a model or `PoaConfig` that has one; or a space, together with `costs`.
        budget: What a size may cost.
        costs: The result of `costs(config)`; counted here by default.
        quality: A measure of some sizes, higher is better.
        latency: Milliseconds of every size, such as a `LatencyTable`; `max_latency_ms` needs it.
        predicted: A prediction of the same measure for other sizes, such as `predict` gives; it never comes before
            what was measured.

    Raises:
        ValueError: If no size is within the budget (with the costs of the cheapest), or if costs or latencies are
            needed and missing.

    Example:
        >>> from poa_hf import PoaViTConfig
        >>> from poa_hf.selection.select import Budget, select
        >>> config = PoaViTConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, min_hidden_size=64)
        >>> selection = select(config, Budget(max_params="200k"))
        >>> print(selection.best, [str(size) for size in selection.within])
        64x2 ['64x2', '64x1']
    """
    if isinstance(space, ElasticSpace):
        if costs is None:
            raise ValueError("A space has no costs by itself: pass the configuration instead, or costs=costs(config).")
    else:
        config = elastic_config(space)
        space, costs = config.space, costs_of_space(config) if costs is None else costs
    if budget.max_latency_ms is not None and latency is None:
        raise ValueError("max_latency_ms needs latencies: pass latency=latency_table(config, device).")
    spent = _spent(list(space), costs, latency)
    limits = budget.limits
    within = [size for size in space if all(spent[axis][size] <= limit for axis, limit in limits.items())]
    if not within:
        raise ValueError(_nothing_fits(list(space), limits, spent))
    known = [_numbers(quality), _numbers(predicted)]
    parameters = {size: float(cost.parameters) for size, cost in costs.items()}

    def place(size: SubNetwork) -> tuple[int, float, float]:
        rank, worth = next((rank, worth) for rank, worth in enumerate([*known, parameters]) if size in worth)
        return rank, -worth[size], costs[size].flops

    within.sort(key=place)
    front = _front(within, known, spent, limits)
    return Selection(within[0], within[1] if len(within) > 1 else None, front, within)


def _numbers(values: Mapping[SubNetwork, float] | None) -> dict[SubNetwork, float]:
    return {size: value for size, value in (values or {}).items() if not math.isnan(value)}


def _spent(
    sizes: list[SubNetwork],
    costs: Mapping[SubNetwork, Costs],
    latency: Mapping[SubNetwork, float] | LatencyTable | None,
) -> dict[str, dict[SubNetwork, float]]:
    """Return what each size costs, by the name of the limit; raise a ValueError if a size is missing."""
    known = latency.milliseconds if isinstance(latency, LatencyTable) else latency
    for noun, mapping in (("costs", costs), ("latencies", known)):
        missing = [size for size in sizes if mapping is not None and size not in mapping]
        if missing:
            raise ValueError(f"The {noun} lack {missing[0]}: pass those of every size of this space.")
    spent: dict[str, dict[SubNetwork, float]] = {
        "max_params": {size: costs[size].parameters for size in sizes},
        "max_flops": {size: costs[size].flops for size in sizes},
    }
    if known is not None:
        spent["max_latency_ms"] = {size: known[size] for size in sizes}
    return spent


def _front(
    within: list[SubNetwork],
    known: Sequence[Mapping[SubNetwork, float]],
    spent: Mapping[str, Mapping[SubNetwork, float]],
    limits: Mapping[str, float],
) -> list[SubNetwork]:
    axes = list(limits or spent)
    for quality in known:
        if found := {size: quality[size] for size in within if size in quality}:
            return pareto_front(found, [spent[axis] for axis in axes])
    parameters = {size: spent["max_params"][size] for size in within}
    other_axes = [axis for axis in axes if axis != "max_params"] or ["max_flops"]
    return pareto_front(parameters, [spent[axis] for axis in other_axes])


def _nothing_fits(
    sizes: list[SubNetwork], limits: Mapping[str, float], spent: Mapping[str, Mapping[SubNetwork, float]]
) -> str:
    """Say which limit excludes all sizes, with the cost of the cheapest; or, if only the limits together do, which size
    comes closest: the one that exceeds its limits by the smallest factor."""
    for axis, limit in limits.items():
        cheapest = min(sizes, key=lambda size: spent[axis][size])
        if spent[axis][cheapest] > limit:
            cost = f"{format_quantity(spent[axis][cheapest])} {_AXES[axis]}"
            verb = "takes" if axis == "max_latency_ms" else "has"
            return f"No size fits {axis} {format_quantity(limit)}: the cheapest, {cheapest}, {verb} {cost}."
    closest = min(sizes, key=lambda size: max(spent[axis][size] / limit for axis, limit in limits.items()))
    names = " and ".join(f"{axis} {format_quantity(limit)}" for axis, limit in limits.items())
    costs = ", ".join(f"{format_quantity(spent[axis][closest])} {_AXES[axis]}" for axis in limits)
    return f"No size fits {names} together: {closest} comes closest, with {costs}."
