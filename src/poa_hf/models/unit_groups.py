"""Which units of a model can change places without changing its function, and how they do.

Slicing keeps the leading units of every axis: channels, attention heads, hidden units. Nothing in a plain architecture
depends on which of them lead. So each family says where its units lie, and one function permutes any of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class UnitAxis:
    """An axis along which parameters hold the units of a group.

    Attributes:
        parameters: Pattern that the whole names of the parameters match.
        axis: The axis.
        entries: Entries that a unit takes there; None means those that the group says.
        copies: How many times the units lie side by side there, as the channels in Swin's patch merging do 4 times.
    """

    parameters: str
    axis: int
    entries: int | None = None
    copies: int = 1


@dataclass(frozen=True)
class UnitGroup:
    """Units that may change places with each other: the function stays as it is if all their axes are permuted alike.

    Attributes:
        name: Unique in the model, such as `encoder.layer.3.heads`.
        count: Number of units.
        axes: Where parameters hold the units.
        inputs_of: Names of modules whose input holds the units, where their importance is read.
        outputs_of: Names of modules whose output holds them, likewise.
        entries: Entries that a unit takes on an axis: a head has as many as its size, which never move inside it.
        together: Number of neighbours that must stay neighbours, such as the channels that a GroupNorm normalises
            together. They may change places with each other, and with their neighbours as a whole.
        are_features: Whether the units are the channels of the model's features, which projection heads read.
    """

    name: str
    count: int
    axes: tuple[UnitAxis, ...]
    inputs_of: tuple[str, ...] = ()
    outputs_of: tuple[str, ...] = ()
    entries: int = 1
    together: int = 1
    are_features: bool = False

    def order_by(self, importance: Tensor) -> list[int]:
        """Return the units, the most important first, with those that must stay neighbours as neighbours.

        Units of equal importance keep their order. Neighbours count by the sum of their importance.

        Args:
            importance: One number per unit (count,).
        """
        runs = importance.view(-1, self.together)  # (runs, together)
        first = runs.sum(dim=1).argsort(descending=True, stable=True)  # (runs,)
        within = runs.argsort(dim=1, descending=True, stable=True)[first]  # (runs, together)
        return (first[:, None] * self.together + within).flatten().tolist()

    def check_order(self, order: Sequence[int]) -> None:
        """Raise ValueError unless an order is one of these units that leaves the model's function as it is."""
        if sorted(order) != list(range(self.count)):
            raise ValueError(f"The order of {self.name} does not name each of its {self.count} units once.")
        runs = torch.tensor(order).view(-1, self.together) // self.together
        if bool((runs != runs[:, :1]).any()):
            raise ValueError(f"The order of {self.name} parts units that are normalised together.")

    def indices(self, order: Sequence[int], axis: UnitAxis) -> Tensor:
        """Return the entries of an axis in their new order (copies * count * entries,), for `Tensor.index_select`.

        Args:
            order: The units in their new order.
            axis: The axis.
        """
        entries = axis.entries or self.entries
        one = (torch.tensor(order)[:, None] * entries + torch.arange(entries)).flatten()  # (count * entries,)
        return (torch.arange(axis.copies)[:, None] * len(one) + one).flatten()

    def parameters(self, names: Iterable[str]) -> Iterator[tuple[str, UnitAxis]]:
        """Yield each of the parameters that hold the units, with the axis."""
        patterns = [(re.compile(axis.parameters), axis) for axis in self.axes]
        for name in names:
            for pattern, axis in patterns:
                if pattern.fullmatch(name):
                    yield name, axis


@torch.no_grad()
def permute_units(model: nn.Module, groups: Iterable[UnitGroup], orders: Mapping[str, Sequence[int]]) -> None:
    """Put the units of a model into another order, in place, which leaves its function as it is.

    Args:
        model: The model that the groups belong to.
        groups: The groups of its units.
        orders: The units of each group in their new order, by the group's name; other groups stay as they are.

    Raises:
        ValueError: If an order does not fit its group. Nothing is changed then.
    """
    ordered = [group for group in groups if group.name in orders]
    for group in ordered:
        group.check_order(orders[group.name])
    parameters = dict(model.named_parameters())
    for group in ordered:
        for name, axis in group.parameters(parameters):
            tensor = parameters[name]
            index = group.indices(orders[group.name], axis).to(tensor.device)
            tensor.copy_(tensor.index_select(axis.axis, index))
