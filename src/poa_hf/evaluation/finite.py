"""The check that features are finite, for functions that take them from anywhere."""

from __future__ import annotations

from torch import Tensor

NOT_FINITE = "Some features are not finite: the model's weights, or its input, are broken."
_AT_ONCE = 2**16  # rows, as a copy of all features in another type may not fit into memory


def check_finite(*features: Tensor) -> None:
    """Raise ValueError unless all features (N, ...) are finite."""
    if not all(part.isfinite().all() for each in features for part in each.split(_AT_ONCE)):
        raise ValueError(NOT_FINITE)
