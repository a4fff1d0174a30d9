"""Conversions between the grid of the masks and the feature maps of convolutional and hierarchical models."""

from torch import Tensor
from torch.nn.functional import interpolate


def mask_of_grid(masks: Tensor, height: int, width: int, times: int) -> Tensor:
    """Expand masks of squares to the resolution of a feature map.

    Args:
        masks: (B, squares), row by row.
        height: Rows of the map.
        width: Columns of the map.
        times: Positions of the map along one side of a square.

    Returns:
        bool (B, height, width).

    Raises:
        ValueError: If the squares do not cover the map.
    """
    rows, columns = height // times, width // times
    if height % times or width % times:
        raise ValueError(
            "bool_masked_pos needs images whose sides are multiples of the masked squares (the configuration's "
            f"patch_grid); these have {height / times:g} x {width / times:g} of them."
        )
    if masks.shape[1:] != (rows * columns,):
        raise ValueError(
            f"bool_masked_pos {tuple(masks.shape)} does not fit: these images have {rows} x {columns} squares to mask, "
            f"so give (B, {rows * columns})."
        )
    return masks.bool().unflatten(1, (rows, columns)).repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def upsampled_tokens(feature_map: Tensor) -> Tensor:
    """Return a map (B, D, h, w) at twice its size (nearest) as tokens (B, 4 * h * w, D) on the masks' grid."""
    return interpolate(feature_map, scale_factor=2, mode="nearest").flatten(2).transpose(1, 2)
