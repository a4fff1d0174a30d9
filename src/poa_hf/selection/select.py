"""Choosing a size: the best within a budget of parameters, FLOPs and latency."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from ..elastic import ElasticSpace, SubNetwork
from ..formatting import format_quantity
from ..models.elastic_config import elastic_config
from ..runs.evaluations import Evaluation, load_evaluations
from ..runs.layout import RunFolder
from .costs import Costs
from .costs import costs as costs_of_space
from .latency_table import LatencyTable

_UNITS = {"t": 1e12, "g": 1e9, "b": 1e9, "m": 1e6, "k": 1e3, "": 1}
_AXES = {"max_params": "parameters", "max_flops": "FLOPs", "max_latency_ms": "ms"}


@dataclass(frozen=True)
class Budget:
    """What a size may cost at most: numbers, or texts such as `30M`, `5G` and `4` (K, M, G or B, T for powers of 1000).

    FLOPs are counted as in `Costs`: a multiplication and its addition once. ValueError for what is no positive number.
    """

    max_params: float | str | None = None
    max_flops: float | str | None = None
    max_latency_ms: float | str | None = None

    def __post_init__(self):
        for name in _AXES:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, parse_quantity(value, name))

    @property
    def limits(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in _AXES if getattr(self, name) is not None}


@dataclass(frozen=True)
class Quality:
    """What was measured of some sizes, higher is better; a column's title and a name for it."""

    values: dict[SubNetwork, float] = field(default_factory=dict)
    title: str = ""
    name: str = ""


@dataclass(frozen=True)
class Selection:
    """The outcome of `select`.

    `within` are all sizes within the budget, best first; `best` and `runner_up` are its first two (`runner_up` None if
    there is only one). `pareto_front` are those of them that none of them equals or beats in worth and every cost
    and beats in one, the best first; where quality was measured, of the measured sizes alone.
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
) -> Selection:
    """The best size within `budget`.

    By measured quality where there is one: measured sizes come before all others, equal ones the cheaper first. What
    was never measured has no quality to be chosen for, so it follows, by size: the most parameters first, of equal ones
    the fewest FLOPs. The Pareto front weighs quality, or else parameters, against the costs that the budget limits, or
    against all that are known if it limits none.

    Args:
        space: An elastic configuration, a model or a run's configuration; or a space alone, together with `costs`.
        costs: What `costs(config)` gives; counted here by default.
        quality: A measure of some sizes, higher is better, as `read_quality` finds it.
        latency: Milliseconds of every size, as `latency_table` gives them; `max_latency_ms` needs it.

    Raises:
        ValueError: If no size is within the budget (with what the cheapest one costs), or costs or latencies are
            needed and missing.
    """
    if isinstance(space, ElasticSpace):
        if costs is None:
            raise ValueError("A space alone has no costs: pass the configuration in its place, or costs=costs(config).")
    else:
        config = elastic_config(space)
        space, costs = config.space, costs_of_space(config) if costs is None else costs
    if budget.max_latency_ms is not None and latency is None:
        raise ValueError("max_latency_ms needs latencies: pass latency=latency_table(config, device).")
    sizes = list(space)
    spent = {
        "max_params": {size: _entry(costs, size, "costs").parameters for size in sizes},
        "max_flops": {size: costs[size].flops for size in sizes},
    }
    if latency is not None:
        spent["max_latency_ms"] = {size: _entry(latency, size, "latencies") for size in sizes}
    limits = budget.limits
    within = [size for size in sizes if all(spent[axis][size] <= limit for axis, limit in limits.items())]
    if not within:
        raise ValueError(_nothing_fits(sizes, limits, spent))
    quality = {size: value for size, value in (quality or {}).items() if not math.isnan(value)}

    def rank(size: SubNetwork) -> tuple:
        if size in quality:
            return 0, -quality[size], costs[size].flops
        return 1, -costs[size].parameters, costs[size].flops

    within.sort(key=rank)
    measured = [size for size in within if size in quality]
    worth = quality if measured else spent["max_params"]
    axes = [spent[axis] for axis in limits or spent if measured or axis != "max_params"] or [spent["max_flops"]]
    front = _pareto_front(measured or within, worth, axes)
    return Selection(within[0], within[1] if len(within) > 1 else None, front, within)


def read_quality(run: str | Path, space: ElasticSpace, task: str = "knn") -> Quality:
    """What `quality_of` finds in a run's `evaluations.json`. ValueError for a broken file."""
    return quality_of(load_evaluations(RunFolder.containing(run).evaluations), space, task)


def quality_of(evaluations: Iterable[Evaluation], space: ElasticSpace, task: str = "knn") -> Quality:
    """The accuracies of `task` (`knn` or `linear`) in one set of records that compare: the same data, step and
    settings. Of several sets, k-NN with k = 20 comes first, then the latest step, then the one with the most sizes,
    then the most test images. Empty where nothing was measured.
    """
    sets: dict[str, list[Evaluation]] = {}
    for record in evaluations:
        if record.metric == f"{task}_accuracy" and record.size in map(str, space):
            sets.setdefault(replace(record, size="", model="").key, []).append(record)

    def preference(records: list[Evaluation]) -> tuple:
        first = records[0]
        return first.settings.get("k") == 20, first.step or 0, len(records), first.test_images

    if not sets:
        return Quality()
    chosen = max(sets.values(), key=preference)
    first = chosen[0]
    title = f"{first.settings['k']}-NN" if "k" in first.settings else task
    step = "" if first.step is None else f" at step {first.step:,}"
    values = {SubNetwork.parse(record.size): record.value for record in chosen}
    return Quality(values, title, f"{title} accuracy on {first.dataset}{step}")


def parse_quantity(value: float | str, name: str = "A limit") -> float:
    """A positive number from `30M`, `1.5e9` or `4`; `name` is what an error calls it."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(-?\d*\.?\d+(?:e[+-]?\d+)?)\s*([a-z]*)\s*", value.lower())
        if match is None or match[2] not in _UNITS:
            raise ValueError(f"{name} {value!r} is not understood: write a number as 4, 30M or 5G (K, M, G, T).")
        value = float(match[1]) * _UNITS[match[2]]
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, not {value:g}.")
    return float(value)


def _entry(mapping: Mapping, size: SubNetwork, what: str):
    try:
        return mapping[size]
    except KeyError:
        raise ValueError(f"The {what} lack {size}: pass those of every size of this space.") from None


def _nothing_fits(sizes: list[SubNetwork], limits: dict[str, float], spent: dict) -> str:
    """Which limit no size keeps and what the cheapest costs there; or, if it is their combination, what comes closest:
    the size that exceeds its limits by the smallest factor."""
    for axis, limit in limits.items():
        cheapest = min(sizes, key=spent[axis].get)
        if spent[axis][cheapest] > limit:
            cost = f"{format_quantity(spent[axis][cheapest])} {_AXES[axis]}"
            verb = "takes" if axis == "max_latency_ms" else "has"
            return f"No size fits {axis} {format_quantity(limit)}: the cheapest, {cheapest}, {verb} {cost}."
    closest = min(sizes, key=lambda size: max(spent[axis][size] / limit for axis, limit in limits.items()))
    wishes = " and ".join(f"{axis} {format_quantity(limit)}" for axis, limit in limits.items())
    costs = ", ".join(f"{format_quantity(spent[axis][closest])} {_AXES[axis]}" for axis in limits)
    return f"No size fits {wishes} together: {closest} comes closest, with {costs}."


def _pareto_front(sizes: list[SubNetwork], worth: Mapping, axes: list[Mapping]) -> list[SubNetwork]:
    points = {size: (-worth[size], *(axis[size] for axis in axes)) for size in sizes}

    def beats(one: tuple, other: tuple) -> bool:
        return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))

    front = []
    for size in sorted(sizes, key=points.get):  # whatever beats a size comes before it
        if not any(beats(points[found], points[size]) for found in front):
            front.append(size)
    return front
