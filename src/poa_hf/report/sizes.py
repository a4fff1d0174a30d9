"""The report's table of sizes, and which sizes it names and shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from ..elastic import ElasticSpace
from ..formatting import format_quantity
from ..runs.comparison import Comparison, one_per_measure
from ..runs.facts import RunFacts
from ..runs.metrics import display_order
from ..selection.costs import Costs
from ..sub_network import SubNetwork


@dataclass(frozen=True)
class Column:
    """A column of the table of sizes.

    Args:
        values: What the column is sorted by; a size without a value has an empty cell.
        shown: How a value is written.
    """

    title: str
    values: Mapping[SubNetwork, float]
    shown: Callable[[float], str]


def size_columns(
    facts: RunFacts, costs: Mapping[SubNetwork, Costs], latencies: Mapping[str, Mapping[SubNetwork, float]]
) -> list[Column]:
    """Return the columns: costs, each measured latency, and each measure of quality, of which one set of records counts
    (`runs.comparison`)."""
    if not costs:
        return []
    columns = [
        Column("parameters", {size: cost.parameters for size, cost in costs.items()}, format_quantity),
        Column("FLOPs", {size: cost.flops for size, cost in costs.items()}, format_quantity),
    ]
    columns += [Column(title, values, "{:.3g}".format) for title, values in latencies.items()]
    counting = one_per_measure(facts.comparisons)
    counting.sort(key=lambda found: (found.example.dataset, display_order(found.example)))
    for comparison, title in zip(counting, _titles(counting, facts.steps), strict=True):
        shown = partial(comparison.kind.shown, unit=False)
        columns.append(Column(f"{title}, %" if comparison.kind.is_share else title, comparison.values, shown))
    return columns


def _titles(comparisons: list[Comparison], step: int | None) -> list[str]:
    """Short titles that say in what the comparisons differ: dataset, its configuration, test split; and the step, if it
    is not that of the model."""
    examples = [comparison.example for comparison in comparisons]
    several = {
        name: len({getattr(record, name) for record in examples}) > 1
        for name in ("dataset", "dataset_config", "test_split")
    }
    titles = []
    for comparison in comparisons:
        record = comparison.example
        parts = [comparison.title]
        parts += [str(getattr(record, name)) for name, differs in several.items() if differs and getattr(record, name)]
        if record.step is not None and step is not None and record.step != step:
            parts.append(f"step {record.step:,}")
        titles.append(", ".join(parts))
    return titles


def size_name(space: ElasticSpace, size: SubNetwork) -> str:
    """The name of a size in its space, such as `small`; empty for most sizes."""
    return ", ".join(name for name, named in space.named.items() if named == size)


def three_sizes(space: ElasticSpace) -> list[SubNetwork]:
    """The named sizes if there are three, else the smallest, a middle one and the full one; from small to large."""
    named = set(space.named.values())
    return [size for size in space.by_cost if size in (named if len(named) == 3 else space.spread)]
