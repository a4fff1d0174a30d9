"""Elastic values: which sub-networks exist and which one is trained at a step. No tensors here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from .formatting import listed


@dataclass(frozen=True, order=True, init=False)
class SubNetwork:
    """One size of an elastic family: a width and the number of blocks of each stage.

    A plain int for `depths` means a single stage. `str()` gives `384x12` (ViT), `96x2-2-6-2` (Swin) or
    `64x3-4-6-3` (ResNet), and `parse` reads the same.
    """

    width: int
    depths: tuple[int, ...]

    def __init__(self, width: int, depths: int | Sequence[int]) -> None:
        stages = tuple(depths) if isinstance(depths, tuple | list) else (depths,)
        numbers = (width, *stages)
        if not stages or not all(isinstance(number, int | np.integer) and number > 0 for number in numbers):
            raise ValueError(f"A sub-network has a positive whole width and depths, not {width!r} and {depths!r}.")
        object.__setattr__(self, "width", int(width))
        object.__setattr__(self, "depths", tuple(map(int, stages)))

    def __str__(self) -> str:
        return f"{self.width}x{'-'.join(map(str, self.depths))}"

    @classmethod
    def parse(cls, text: str) -> SubNetwork:
        match = re.fullmatch(r"\s*(\d+)x(\d+(?:-\d+)*)\s*", text)
        if match is None:
            raise ValueError(f"{text!r} is not a size: write WIDTHxDEPTH, as in 384x12 or 96x2-2-6-2.")
        return cls(int(match[1]), tuple(int(depth) for depth in match[2].split("-")))


@dataclass(frozen=True)
class ElasticSpace:
    """All sub-networks of a configuration: every width with every tuple of depths, both from small to large.

    `width_bias` and `depth_bias` say how much more often the smallest entry of an axis is trained than the largest
    (falling linearly to 1; the authors' `net_select_scale`).
    `named` maps the usual names of sizes to sub-networks of the space.
    """

    widths: tuple[int, ...]
    depths: tuple[tuple[int, ...], ...]
    width_bias: float = 1.0
    depth_bias: float = 1.0
    named: dict[str, SubNetwork] = field(default_factory=dict, hash=False)

    @staticmethod
    @lru_cache(maxsize=64)
    def of(
        widths: Sequence[int],
        depths: tuple[tuple[int, ...], ...],
        width_bias: float,
        depth_bias: float,
        named: tuple[tuple[str, SubNetwork], ...],
    ) -> ElasticSpace:
        """The space of these hashable values, made once: configurations are asked for theirs at every step."""
        return ElasticSpace(tuple(widths), depths, width_bias, depth_bias, dict(named))

    @cached_property
    def _members(self) -> dict[SubNetwork, None]:
        return {SubNetwork(width, depths): None for width in self.widths for depths in self.depths}

    def __iter__(self) -> Iterator[SubNetwork]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sub_network: object) -> bool:
        return sub_network in self._members

    @property
    def full(self) -> SubNetwork:
        return SubNetwork(self.widths[-1], self.depths[-1])

    @property
    def smallest(self) -> SubNetwork:
        return SubNetwork(self.widths[0], self.depths[0])

    @cached_property
    def by_cost(self) -> tuple[SubNetwork, ...]:
        """All sub-networks from cheap to dear, by width squared times blocks: good enough to pick a middle one."""
        return tuple(sorted(self, key=lambda size: (size.width**2 * sum(size.depths), size)))

    @property
    def spread(self) -> tuple[SubNetwork, SubNetwork, SubNetwork]:
        """The smallest, a middle and the full sub-network, which stand for all."""
        return self.by_cost[0], self.by_cost[len(self) // 2], self.by_cost[-1]

    @cached_property
    def bag(self) -> tuple[SubNetwork, ...]:
        """Every sub-network as often as it is weighted: `round(w_width * w_depth)` times."""
        return tuple(
            SubNetwork(width, depths)
            for width, width_weight in zip(self.widths, np.linspace(self.width_bias, 1, len(self.widths)), strict=True)
            for depths, depth_weight in zip(self.depths, np.linspace(self.depth_bias, 1, len(self.depths)), strict=True)
            for _ in range(round(width_weight * depth_weight))
        )

    @cached_property
    def _drawn(self) -> tuple[SubNetwork, ...]:
        """The bag without the full network, which the intact student trains anyway (unless it is all there is)."""
        return tuple(sub_network for sub_network in self.bag if sub_network != self.full) or (self.full,)

    def sub_network_at(self, step: int, seed: int = 0, rank: int = 0) -> SubNetwork:
        """The sub-network that process `rank` trains at `step`: without replacement from a bag shuffled anew each time
        that it is empty."""
        round_, position = divmod(step, len(self._drawn))
        return self._drawn[_shuffled(len(self._drawn), seed, rank, round_)[position]]

    def resolve(self, size: str | SubNetwork) -> SubNetwork:
        """A sub-network of this space from a name (`small`), a size (`384x12`) or a value.

        Raises ValueError for anything outside the space, with the sizes that exist and the nearest ones.
        """
        if isinstance(size, str):
            if size in self.named:
                return self.named[size]
            try:
                size = SubNetwork.parse(size)
            except ValueError as error:
                names = ", ".join(self.named)
                raise ValueError(
                    f"{size!r} is neither a named size ({names}) nor WIDTHxDEPTH, as in 384x12."
                ) from error
        if not isinstance(size, SubNetwork):
            raise ValueError(
                f"{size!r} is not a size: give a SubNetwork, a name ({', '.join(self.named)}) or WIDTHxDEPTH."
            )
        if size in self:
            return size
        nearest = ", ".join(map(str, self.nearest(size)))
        raise ValueError(
            f"{size} is not a size of this model: {len(self)} sizes exist, widths {listed(self.widths)} "
            f"with depths {listed(['-'.join(map(str, depths)) for depths in self.depths])}; the nearest are {nearest}."
        )

    def nearest(self, size: SubNetwork, count: int = 3) -> list[SubNetwork]:
        """The `count` sub-networks closest to `size` in relative width and total depth."""

        def distance(other: SubNetwork) -> float:
            width = abs(np.log(other.width / size.width))
            return width + abs(np.log(sum(other.depths) / sum(size.depths)))

        return sorted(self, key=distance)[:count]


@lru_cache(maxsize=64)
def stage_depths(smallest: tuple[int, ...], full: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Every choice of each stage's depth from its smallest to its full one, sorted by the total number of blocks."""
    ranges = [range(low, high + 1) for low, high in zip(smallest, full, strict=True)]
    return tuple(sorted(product(*ranges), key=sum))


def kept_blocks(full_depth: int, depth: int) -> list[int]:
    """Which of `full_depth` blocks a sub-network of `depth` blocks keeps: evenly spread, first and last included."""
    return [int(block) for block in np.linspace(0, full_depth - 1, depth)]


@lru_cache(maxsize=8)
def _shuffled(size: int, seed: int, rank: int, round_: int) -> np.ndarray:
    return np.random.default_rng([seed, rank, round_]).permutation(size)
