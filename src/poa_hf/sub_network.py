"""One size of an elastic model: a plain value, without tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, order=True, init=False)
class SubNetwork:
    """One size of an elastic model: a width and the number of blocks of each stage.

    Sub-networks are hashable and ordered by width, then depths. As text they are written `384x12` (ViT), `96x2-2-6-2`
    (Swin) or `64x3-4-6-3` (ResNet), which `parse` reads.

    Args:
        width: Channels; what they are channels of depends on the family (ViT: the hidden size, Swin: the first stage,
            ResNet: the middle of the first stage's blocks).
        depths: Blocks of each stage; a single number for a model of one stage.

    Raises:
        ValueError: If a number is not a positive integer.

    Example:
        >>> size = SubNetwork(96, (2, 2, 6, 2))
        >>> str(size)
        '96x2-2-6-2'
        >>> SubNetwork.parse("384x12") == SubNetwork(384, 12)
        True
        >>> SubNetwork(384, 12).depths
        (12,)
    """

    width: int
    depths: tuple[int, ...]

    def __init__(self, width: int, depths: int | Sequence[int]) -> None:
        stages = tuple(depths) if isinstance(depths, Sequence | np.ndarray) else (depths,)
        numbers = (width, *stages)
        if not stages or not all(_is_count(number) for number in numbers):
            raise ValueError(f"A sub-network's width and depths are positive integers, not {width!r} and {depths!r}.")
        object.__setattr__(self, "width", int(width))
        object.__setattr__(self, "depths", tuple(map(int, stages)))

    def __str__(self) -> str:
        return f"{self.width}x{'-'.join(map(str, self.depths))}"

    @classmethod
    def parse(cls, text: str) -> SubNetwork:
        """Return the sub-network that `str` writes as `text`.

        Raises:
            ValueError: If `text` is not of the form `WIDTHxDEPTH` or `WIDTHxDEPTH-DEPTH-...`.
        """
        match = re.fullmatch(r"\s*([0-9]{1,9})x([0-9]{1,9}(?:-[0-9]{1,9})*)\s*", str(text))
        if match is None:
            raise ValueError(f"{str(text)[:40]!r} is not a size: write WIDTHxDEPTH, such as 384x12 or 96x2-2-6-2.")
        return cls(int(match[1]), tuple(int(depth) for depth in match[2].split("-")))


def _is_count(number: object) -> bool:
    return isinstance(number, int | np.integer) and not isinstance(number, bool) and bool(number > 0)
