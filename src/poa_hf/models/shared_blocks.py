"""Outputs of many sizes of a ViT for one batch, where sizes of one width share the blocks that they begin with.

A size consists of some blocks of the full model, evenly spread. Two sizes of one width whose first blocks are the same
compute the same up to there, to the last bit, so that one of them can go on with what the other has computed. All 143
sizes of ViT-L have 2,574 blocks together, of which 1,771 differ in that sense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby, pairwise, takewhile
from typing import Any, TypeVar

from torch import Tensor, nn

from ..elastic import block_indices
from ..sub_network import SubNetwork

Output = TypeVar("Output")


def shared_outputs(
    sizes: Sequence[SubNetwork],
    full_depth: int,
    model_of: Callable[[SubNetwork], tuple[Sequence[nn.Module], Callable[[], Output]]],
) -> Iterator[tuple[SubNetwork, Output]]:
    """Yield the output of every size, those of one width one after the other, from blocks that are computed once.

    Only few hidden states are kept at a time: those at which a later size of the same width leaves this one's path.

    Args:
        sizes: The sizes.
        full_depth: The number of blocks of the full model.
        model_of: Returns the blocks of the model that computes a size, and a function that computes it. It calls each
            block once, with hidden states as its first argument, which returns hidden states.
    """
    paths = {size: block_indices(full_depth, size.depths[0]) for size in sizes}
    for _, group in groupby(sorted(paths, key=lambda size: (size.width, paths[size])), key=lambda size: size.width):
        of_width = list(group)
        # how many blocks each size but the first shares with the one before it
        shared = [0, *(_common(paths[first], paths[second]) for first, second in pairwise(of_width))]
        kept: dict[int, Tensor] = {}  # hidden states by the number of blocks that they have passed
        for number, size in enumerate(of_width):
            wanted = _places_to_keep(shared[number + 1 :])
            blocks, compute = model_of(size)
            with _going_on(blocks, shared[number], kept, wanted):
                output = compute()
            kept = {place: states for place, states in kept.items() if place in wanted}
            yield size, output


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of items with which both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _places_to_keep(shared: Sequence[int]) -> set[int]:
    """Return the places on a path at which later ones leave it, from what each of them shares with the one before."""
    places, least = set(), None
    for count in shared:
        least = count if least is None else min(least, count)
        places.add(least)
    return places


@contextmanager
def _going_on(blocks: Sequence[nn.Module], start: int, kept: dict[int, Tensor], wanted: set[int]) -> Iterator[None]:
    """Let blocks begin with the hidden states that have passed the first `start` of them, and keep those at places."""
    originals = [block.forward for block in blocks]

    def keeping(place: int) -> Callable[..., Tensor]:
        def forward(*inputs: Any, **options: Any) -> Tensor:
            kept[place] = originals[place - 1](*inputs, **options)
            return kept[place]

        return forward

    with ExitStack() as changes:
        for place, block in enumerate(blocks, 1):
            if place < start:
                changes.enter_context(_with_forward(block, _unchanged))
            elif place == start:
                changes.enter_context(_with_forward(block, lambda *inputs, **options: kept[start]))
            elif place in wanted:
                changes.enter_context(_with_forward(block, keeping(place)))
        yield


@contextmanager
def _with_forward(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Let a module compute something else."""
    own = module.__dict__.get("forward")  # a module may have one beside that of its class
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _unchanged(hidden_states: Tensor, *inputs: Any, **options: Any) -> Tensor:
    return hidden_states  # nothing reads it: a later block puts what was kept in its place
