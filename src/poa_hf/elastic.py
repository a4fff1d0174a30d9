"""Which sub-networks exist, and which one is trained at a step: plain values, without tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from .formatting import listed
from .ranges import COUNT, WHOLE, Range, check_number
from .sub_network import SubNetwork

MOST_SIZES = 100_000
CANDIDATES = Range(2, MOST_SIZES, whole=True)  # the smallest and the full size are always among them


@dataclass(frozen=True)
class ElasticSpace:
    """All sub-networks of a configuration: every width with every choice of depths.

    A space is iterable, has a length and knows its members (`in`). Configurations give theirs as `config.space`.

    Attributes:
        widths: From small to large.
        depths: The choices of all stages' depths, from small to large.
        width_bias: How much more often the smallest width is trained than the largest; in between the weight falls
            linearly to 1 (the authors' `net_select_scale`).
        depth_bias: The same for depths.
        named: The usual names of some sizes, such as `small`.
        num_candidates: How many sizes are trained, evenly spread over the space, the smallest and the full one among
            them; None trains all. The others can be evaluated and extracted as well.

    Example:
        >>> space = ElasticSpace((32, 48), ((2,), (3,)), named={"small": SubNetwork(32, 2)})
        >>> [str(size) for size in space]
        ['32x2', '32x3', '48x2', '48x3']
        >>> space.resolve("small") == space.smallest, SubNetwork(48, 4) in space
        (True, False)
        >>> [str(space.sub_network_at(step)) for step in range(3)]  # all but the full one, in random order
        ['48x2', '32x2', '32x3']
    """

    widths: tuple[int, ...]
    depths: tuple[tuple[int, ...], ...]
    width_bias: float = 1.0
    depth_bias: float = 1.0
    named: dict[str, SubNetwork] = field(default_factory=dict, hash=False)
    num_candidates: int | None = None

    def __post_init__(self) -> None:
        if self.num_candidates is None:
            return
        check_number("num_candidates", self.num_candidates, CANDIDATES)
        sizes = len(self.widths) * len(self.depths)
        if self.num_candidates > sizes:
            there_are = (
                "there is 1 size: leave it out" if sizes == 1 else f"there are {sizes} sizes: give at most as many"
            )
            raise ValueError(f"num_candidates is {self.num_candidates}, but {there_are}; without it all are trained.")

    @staticmethod
    @lru_cache(maxsize=64)
    def from_axes(
        widths: Sequence[int],
        depths: tuple[tuple[int, ...], ...],
        width_bias: float,
        depth_bias: float,
        named: tuple[tuple[str, SubNetwork], ...],
        num_candidates: int | None = None,
    ) -> ElasticSpace:
        """Return the space of these hashable values, made only once: it is asked for at every step of training.

        Raises:
            ValueError: If there are more sizes than anybody could list, or fewer than candidates.
        """
        if len(widths) * len(depths) > MOST_SIZES:
            raise ValueError(
                f"{len(widths)} widths and {len(depths)} choices of depths make more than {MOST_SIZES:,} sizes: give "
                "larger steps, or larger smallest sizes."
            )
        return ElasticSpace(tuple(widths), depths, width_bias, depth_bias, dict(named), num_candidates)

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
        """The largest size, which the intact student has."""
        return SubNetwork(self.widths[-1], self.depths[-1])

    @property
    def smallest(self) -> SubNetwork:
        """The size of least width and depths."""
        return SubNetwork(self.widths[0], self.depths[0])

    @cached_property
    def by_cost(self) -> tuple[SubNetwork, ...]:
        """All sub-networks by width squared times the number of blocks, a rough measure of what they cost."""
        return tuple(sorted(self, key=lambda size: (size.width**2 * sum(size.depths), size)))

    @property
    def spread(self) -> tuple[SubNetwork, SubNetwork, SubNetwork]:
        """The smallest, a middle and the full sub-network, all of them trained, where three have to stand for all."""
        trained = {*self.candidates}
        sizes = [size for size in self.by_cost if size in trained]
        return sizes[0], sizes[len(sizes) // 2], sizes[-1]

    @cached_property
    def candidates(self) -> tuple[SubNetwork, ...]:
        """The sizes that are trained, in the order of the space: all, or `num_candidates` of them, evenly spread.

        Each one after the smallest and the full size is the one that is farthest from those before it, by width and
        depths as shares of their ranges. So a set of more candidates contains each set of fewer.
        """
        members = tuple(self)
        if self.num_candidates is None or self.num_candidates == len(members):
            return members
        places = np.array([(size.width, *size.depths) for size in members], dtype=float)
        places = (places - places.min(0)) / np.maximum(places.max(0) - places.min(0), 1)
        chosen: list[int] = []
        distances = np.full(len(members), np.inf)
        for index in (members.index(self.smallest), members.index(self.full)):
            chosen.append(index)
            distances = np.minimum(distances, np.linalg.norm(places - places[index], axis=1))
        while len(chosen) < self.num_candidates:
            # rounded, so that what is equally far stays so on every machine; the smaller one comes first
            chosen.append(int(distances.round(9).argmax()))
            distances = np.minimum(distances, np.linalg.norm(places - places[chosen[-1]], axis=1))
        return tuple(members[index] for index in sorted(chosen))

    def untrained(self, sizes: Iterable[SubNetwork]) -> str:
        """Return a sentence on which of these sizes are no candidates; an empty text if all are."""
        others = [size for size in sizes if size not in self.candidates]
        if not others:
            return ""
        are = "is a slice" if len(others) == 1 else "are slices"
        return f"{listed(others)} {are} of weights that were trained for {len(self.candidates)} other sizes only."

    @cached_property
    def bag(self) -> tuple[SubNetwork, ...]:
        """Every candidate `round(w_width * w_depth)` times, with the weights of its width and depths."""
        candidates = set(self.candidates)
        return tuple(
            SubNetwork(width, depths)
            for width, width_weight in zip(self.widths, np.linspace(self.width_bias, 1, len(self.widths)), strict=True)
            for depths, depth_weight in zip(self.depths, np.linspace(self.depth_bias, 1, len(self.depths)), strict=True)
            if SubNetwork(width, depths) in candidates
            for _ in range(round(width_weight * depth_weight))
        )

    def _drawn_from(self, *trained_anyway: SubNetwork) -> tuple[SubNetwork, ...]:
        """Return the bag without sizes that are trained at every step, unless there is no other."""
        return tuple(size for size in self.bag if size not in trained_anyway) or (trained_anyway[-1],)

    @cached_property
    def trained(self) -> tuple[SubNetwork, ...]:
        """The bag without the full network, which the intact student trains anyway, unless there is no other."""
        return self._drawn_from(self.full)

    @cached_property
    def _between(self) -> tuple[SubNetwork, ...]:
        """The bag without the full and the smallest network, unless there is no other."""
        return self._drawn_from(self.full, self.smallest)

    def sub_network_at(self, step: int, seed: int = 0, rank: int = 0) -> SubNetwork:
        """Return the sub-network that a process trains at a step.

        Each process draws without replacement from its own bag, which is shuffled anew whenever it is empty; the result
        depends on the arguments only.

        Args:
            step: The step, from 0.
            seed: The run's seed.
            rank: The process.
        """
        return _drawn(self.trained, step, seed, rank)

    def sub_networks_at(self, step: int, seed: int = 0, rank: int = 0, count: int = 1) -> tuple[SubNetwork, ...]:
        """Return the sub-networks that a process trains at a step, each once.

        One is that of `sub_network_at`. Of several, the first is the smallest (the sandwich rule of arXiv 1903.05134,
        whose largest one is the intact student), and the others are drawn from a bag without it. They are fewer than
        `count` where the bag yields a size twice, or has no more.

        Args:
            step: The step, from 0.
            seed: The run's seed.
            rank: The process.
            count: How many at most, at least 1.
        """
        check_number("count", count, COUNT)
        if count == 1:
            return (self.sub_network_at(step, seed, rank),)
        drawn = [_drawn(self._between, step * (count - 1) + index, seed, rank) for index in range(count - 1)]
        return tuple(dict.fromkeys([self.smallest, *drawn]))

    def resolve(self, size: str | SubNetwork) -> SubNetwork:
        """Return the sub-network of this space that a name (`small`), a text (`384x12`) or a value stands for.

        Raises:
            ValueError: If it is not in the space; the message tells which sizes exist and which are the nearest.
        """
        if isinstance(size, str):
            if size in self.named:
                return self.named[size]
            text = size
            try:
                size = SubNetwork.parse(text)
            except ValueError as error:
                names = ", ".join(self.named)
                raise ValueError(
                    f"{text[:40]!r} is neither a named size ({names}) nor WIDTHxDEPTH, such as 384x12."
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
        """Return the `count` sub-networks that are closest to `size` in relative width and total depth."""

        def distance(other: SubNetwork) -> float:
            width = abs(np.log(other.width / size.width))
            return width + abs(np.log(sum(other.depths) / sum(size.depths)))

        return sorted(self, key=distance)[:count]


@lru_cache(maxsize=64)
def stage_depths(smallest: tuple[int, ...], full: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return all choices of depths from a model's smallest to its full ones, sorted by their total number of blocks.

    >>> stage_depths((1, 2), (2, 3))
    ((1, 2), (1, 3), (2, 2), (2, 3))
    """
    ranges = [range(low, high + 1) for low, high in zip(smallest, full, strict=True)]
    if math.prod(map(len, ranges)) > MOST_SIZES:
        raise ValueError(
            f"Depths from {listed(smallest)} to {listed(full)} make more than {MOST_SIZES:,} choices: give larger "
            "smallest depths."
        )
    return tuple(sorted(product(*ranges), key=sum))


def block_indices(full_depth: int, depth: int) -> list[int]:
    """Return which of a stage's `full_depth` blocks a sub-network of `depth` blocks consists of, evenly spread.

    >>> block_indices(24, 12)
    [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23]
    """
    return [int(block) for block in np.linspace(0, full_depth - 1, depth)]


def _drawn(bag: Sequence[SubNetwork], draw: int, seed: int, rank: int) -> SubNetwork:
    """Return what a process draws from a bag, which is shuffled anew whenever it is empty."""
    for name, number in (("step", draw), ("seed", seed), ("rank", rank)):
        check_number(name, number, WHOLE)
    round_, position = divmod(draw, len(bag))
    return bag[_shuffled(len(bag), seed, rank, round_)[position]]


@lru_cache(maxsize=8)
def _shuffled(size: int, seed: int, rank: int, round_: int) -> np.ndarray:
    return np.random.default_rng([seed, rank, round_]).permutation(size)
