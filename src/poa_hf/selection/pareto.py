"""The Pareto front: the sizes that no other size beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..sub_network import SubNetwork


def pareto_front(worth: Mapping[SubNetwork, float], costs: Sequence[Mapping[SubNetwork, float]]) -> list[SubNetwork]:
    """Return the sizes that no other size beats, the best first.

    A size beats another if it is at least as good in worth and in every cost, and better in one of them.

    Args:
        worth: What makes a size good, higher is better; only these sizes are compared.
        costs: One mapping per kind of cost, lower is better.

    Example:
        >>> small, narrow, large = SubNetwork(16, 2), SubNetwork(16, 4), SubNetwork(32, 4)
        >>> front = pareto_front({small: 0.7, narrow: 0.6, large: 0.8}, [{small: 1.0, narrow: 2.0, large: 4.0}])
        >>> [str(size) for size in front]
        ['32x4', '16x2']
    """
    points = {size: (-value, *(cost[size] for cost in costs)) for size, value in worth.items()}

    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))

    front: list[SubNetwork] = []
    for size in sorted(worth, key=lambda size: points[size]):  # whatever beats a size comes before it
        if not any(beats(points[better], points[size]) for better in front):
            front.append(size)
    return front
