"""Count the FLOPs of a step."""

from collections.abc import Callable
from typing import Any

from poa_hf.models.flops import flop_counter


def count_flops(run: Callable[[], Any]) -> int:
    """Return the FLOPs of the matrix products in one call; a multiplication and its addition count as two."""
    with flop_counter() as counter:
        run()
    return counter.get_total_flops()
