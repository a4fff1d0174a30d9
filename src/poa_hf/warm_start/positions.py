"""Position embeddings of a source on the grid of patches of the model that starts from it."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import PreTrainedConfig, PreTrainedModel

from ..models.elastic_config import ElasticConfigMixin, image_shape

# Patches per side of a square, or rows and columns.
Grid: TypeAlias = int | tuple[int, int]
# Families whose stock class smooths position embeddings when it makes them fewer.
_ANTIALIASED = {"poa_dinov2_with_registers"}


def grid_text(grid: Grid) -> str:
    """Return a grid in words.

    >>> grid_text(37), grid_text((14, 28))
    ('37x37', '14x28')
    """
    return f"{grid}x{grid}" if isinstance(grid, int) else f"{grid[0]}x{grid[1]}"


def square_image_size(config: PreTrainedConfig, name: str) -> int:
    """Return the side in pixels of the square images that a model starts with, in whole patches.

    Pixels beyond the last whole patch are dropped, as no patch embedding reads them. For images that are not square,
    it is the longer side.

    Args:
        config: Configuration of the source's backbone.
        name: What errors call the source.

    Raises:
        ValueError: If the position embeddings are of a grid that the source itself cannot use.
    """
    _, height, width = image_shape(config)
    patch = _patch_size(config)
    if height != width and config.model_type in ("dinov2", "dinov2_with_registers"):
        # their stock classes take the position embeddings for those of a square, whatever image_size says
        patches = (height // patch) * (width // patch)
        side = round(patches**0.5)
        if side**2 != patches:
            raise ValueError(
                f"{name} has position embeddings of {height // patch}x{width // patch} patches (image_size), which "
                f"{config.model_type} itself cannot use, as it takes them for those of a square: give another model."
            )
        return side * patch
    return max(height, width) // patch * patch


def resize_positions(
    pretrained: PreTrainedModel, config: PreTrainedConfig, ours: ElasticConfigMixin
) -> tuple[Grid, Grid] | None:
    """Put the position embeddings of a source on our grid of patches, in place.

    Those of a square are interpolated as the source itself does for larger images. Those of another grid become what
    our model interpolates back to exactly them, for images of the source's size.

    Args:
        pretrained: The source.
        config: Its configuration.
        ours: The configuration of our model, whose images are square.

    Returns:
        The grids before and after; None if the embeddings stay as they are, or there are none.
    """
    table = dict(pretrained.named_parameters()).get("embeddings.position_embeddings")
    if table is None:
        return None
    embeddings: Any = pretrained.embeddings
    _, height, width = image_shape(config)
    rows, columns = height // _patch_size(config), width // _patch_size(config)
    side = ours.image_size // _patch_size(ours)
    if rows == columns or config.model_type in ("dinov2", "dinov2_with_registers"):
        if side**2 == rows * columns:
            return None
        prefix = table.shape[1] - rows * columns
        tokens = table.new_empty(1, prefix + side**2, table.shape[2])  # only the shape is read
        resized = embeddings.interpolate_pos_encoding(tokens, ours.image_size, ours.image_size)
    else:
        prefix = table.shape[1] - rows * columns
        grid = table[:, prefix:].unflatten(1, (rows, columns)).permute(0, 3, 1, 2)  # (1, D, rows, columns)
        grid = _square_grid(grid, side, antialias=ours.model_type in _ANTIALIASED)
        resized = torch.cat([table[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)
    embeddings.position_embeddings = nn.Parameter(resized)
    return rows if rows == columns else (rows, columns), side


def _square_grid(grid: Tensor, side: int, antialias: bool) -> Tensor:
    """Return a (1, D, side, side) grid that is interpolated back to this one of (1, D, rows, columns)."""
    options: dict[str, Any] = {"mode": "bicubic", "align_corners": False, "antialias": antialias}
    rows, columns = grid.shape[2:]
    grid = grid.double()
    square = interpolate(grid, size=(side, side), **options)
    # Interpolation is linear along each axis; the least change of the square that gives back the grid exactly.
    rest = grid - interpolate(square, size=(rows, columns), **options)
    unit = torch.eye(side, dtype=grid.dtype, device=grid.device)[None, None]  # (1, 1, side, side)
    down = [interpolate(unit, size=(length, side), **options)[0, 0] for length in (rows, columns)]
    square = square + torch.linalg.pinv(down[0]) @ rest @ torch.linalg.pinv(down[1]).T
    return square.float()


def _patch_size(config: PreTrainedConfig) -> int:
    """Side of a patch in pixels; 1 for a model without patches."""
    size = getattr(config, "patch_size", 1)
    return size if isinstance(size, int) else size[0]
