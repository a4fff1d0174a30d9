"""Geometry of patch features: which input an image becomes, and values of patches at the pixels of the image.

An image is shown to the model whole, with its aspect ratio: a centre crop would leave pixels without a value. Each
patch then stands for an equal part of the image. Between the centres of patches, values are interpolated bilinearly, as
`torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data.decoding import Pixels

_AT_ONCE = 2**24  # numbers of an upsampled map that are in memory at a time


def input_size(width: int, height: int, side: int, stride: int) -> tuple[int, int]:
    """Return height and width of the input that an image becomes.

    The short side becomes `side`, and the long side follows, both rounded to whole patches.

    Args:
        width: The image's width in pixels.
        height: Its height.
        side: The short side that is wanted.
        stride: The side of a patch.

    Example:
        >>> input_size(480, 360, 96, 16)
        (96, 128)
    """
    short = min(width, height)
    rows, columns = (max(1, round(length * side / short / stride)) for length in (height, width))
    return rows * stride, columns * stride


def resized(image: Pixels, height: int, width: int, resample: int) -> Pixels:
    """Resize a decoded image, also one of any number of channels."""
    return each_channel(image, lambda part: part.resize((width, height), resample))


def each_channel(image: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    """Apply a change of geometry to a decoded image: at once, or to an array channel by channel."""
    if isinstance(image, Image.Image):
        return change(image)
    channels = [change(Image.fromarray(np.ascontiguousarray(channel))) for channel in image.transpose(2, 0, 1)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def neighbours(positions: Tensor, patches: int, pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return between which patches pixels lie, along one axis.

    Args:
        positions: Pixels by number, (P,).
        patches: The number of patches.
        pixels: The number of pixels that they cover.

    Returns:
        The patch before, the patch after, and the weight of the latter, all (P,).
    """
    place = ((positions.double() + 0.5) * patches / pixels - 0.5).clamp(0, patches - 1)
    before = place.floor().long()
    return before, (before + 1).clamp(max=patches - 1), (place - before).float()


def at_pixels(features: Tensor, rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Return features of patches (h, w, D) at pixels of an image of this size, given by row and column: (P, D)."""
    top, bottom, down = neighbours(rows, features.shape[0], height)
    left, right, across = neighbours(columns, features.shape[1], width)
    down, across = down[:, None], across[:, None]
    upper = torch.lerp(features[top, left], features[top, right], across)
    lower = torch.lerp(features[bottom, left], features[bottom, right], across)
    return torch.lerp(upper, lower, down)


def upsampled(values: Tensor, height: int, width: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield values of patches (h, w, C) at all pixels of an image: slices of its rows, with (rows, width, C)."""
    device, channels = values.device, values.shape[2]
    top, bottom, down = neighbours(torch.arange(height, device=device), values.shape[0], height)
    left, right, across = neighbours(torch.arange(width, device=device), values.shape[1], width)
    at_once = max(1, _AT_ONCE // (width * channels))
    for start in range(0, height, at_once):
        part = slice(start, min(start + at_once, height))
        rows = torch.lerp(values[top[part]], values[bottom[part]], down[part, None, None])  # (rows, w, C)
        yield part, torch.lerp(rows[:, left], rows[:, right], across[:, None])


def patch_of_pixel(height: int, width: int, grid: tuple[int, int]) -> Tensor:
    """Return the number of the patch that each pixel of an image lies in: int64 (height, width)."""
    rows, columns = (
        ((torch.arange(pixels) + 0.5) * patches / pixels).long().clamp(max=patches - 1)
        for pixels, patches in zip((height, width), grid, strict=True)
    )
    return rows[:, None] * grid[1] + columns


def majorities(classes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the most frequent class of each patch: (h * w,) int64, -1 for a patch with no pixel of a class.

    Of equally frequent classes, the smallest is taken.

    Args:
        classes: The class of each pixel, int64 (height, width); negative for pixels that do not count.
        grid: Rows and columns of patches.
    """
    patches = grid[0] * grid[1]
    counted = classes >= 0
    if not counted.any():
        return torch.full((patches,), -1)
    known, numbers = classes[counted].unique(return_inverse=True)
    places = patch_of_pixel(classes.shape[0], classes.shape[1], grid)[counted] * len(known) + numbers
    counts = torch.bincount(places, minlength=patches * len(known)).view(patches, len(known))
    return torch.where(counts.sum(dim=1) > 0, known[counts.argmax(dim=1)], -1)


def resampling_of(processor: Any) -> int:
    """Return the filter with which an image processor resizes; bicubic where it does not say."""
    resample = getattr(processor, "resample", None)
    return int(Image.Resampling.BICUBIC if resample is None else resample)
