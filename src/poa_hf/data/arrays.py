"""Arrays as images: which shapes they have, and which values are black and white.

An array does not say what its numbers mean, so its type and its largest value do:

| values | black to white |
| --- | --- |
| bool | False to True |
| uint8 | 0 to 255 |
| uint16 | 0 to 65535 |
| floats up to 2 | 0 to 1 |
| floats above 8, and other integers, up to 320 | 0 to 255 |
| floats and other integers above 320, up to 81,919 | 0 to 65535 |
| int32 of 2**24 and more | 0 to 2**31 - 1 |
| uint32, int64 and uint64 of 2**24 up to 2**32 | 0 to 2**32 - 1 |

A range that is given (`value_range`) comes before these rules, for all types but bool and uint8: values outside it are
clipped. Measured values need one, such as reflectances up to 10,000 in uint16, which would all be nearly black.

Resampling overshoots: values beyond black and white by up to a quarter of the range are clipped. What has no rule is
refused, such as -1 of images in -1..1, or images with mean 0 and standard deviation 1. NaN and infinities are black.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from .crop_arguments import MAX_IMAGE_PIXELS
from .formats import UndecodableImage, check_size

CHANNELS = (1, 2, 3, 4)  # grey, grey and opacity, colour, colour and opacity
OVERSHOOT = 0.25  # of the range: the most by which resampled values lie outside
_LARGEST_FRACTION = 2
_SMALLEST_WHITE = 8  # an image in 0..255 that has no larger value would be black; standardised ones have none
_SMALLEST_32_BIT = 2**24  # an image in 0..2**32 that has no larger value would be black


def image_from_array(
    array: np.ndarray, max_pixels: int = MAX_IMAGE_PIXELS, value_range: Sequence[float] | None = None
) -> Image.Image:
    """Make a Pillow image of mode L, LA, RGB or RGBA from an array.

    Args:
        array: (height, width), (height, width, channels) or (channels, height, width), with 1 to 4 channels: grey,
            grey and opacity, colour, colour and opacity. The channels are the last dimension if both could be.
        max_pixels: The largest width times height.
        value_range: The values that are black and white; by default, the rules above say.

    Raises:
        UndecodableImage: For other shapes, types or values, or too many pixels.

    Example:
        >>> image_from_array(np.array([[0.0, 0.5, 1.02]])).getpixel((1, 0))
        128
    """
    if array.ndim == 3 and array.shape[-1] not in CHANNELS and array.shape[0] in CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or array.size == 0:
        raise UndecodableImage(f"an array of shape {array.shape} is not an image")
    if array.ndim == 3 and array.shape[-1] not in CHANNELS:
        raise UndecodableImage(
            f"an array of shape {array.shape} is not an image of 1 to 4 channels: give the model the num_channels of "
            "the images if it is meant"
        )
    check_size(array.shape[1], array.shape[0], max_pixels)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return Image.fromarray(np.ascontiguousarray(to_8_bits(array, value_range)))


def channels_of_array(
    array: np.ndarray,
    num_channels: int,
    max_pixels: int = MAX_IMAGE_PIXELS,
    value_range: Sequence[float] | None = None,
) -> np.ndarray:
    """Return the channels of an image as they are, in 8 bits: uint8 (height, width, channels).

    Args:
        array: (height, width, channels), or else (channels, height, width).
        num_channels: The number of channels that is wanted.
        max_pixels: The largest width times height.
        value_range: The values that are black and white; by default, the rules above say.

    Raises:
        UndecodableImage: For other shapes, types or values, or too many pixels.

    Example:
        >>> channels_of_array(np.zeros((5, 12, 16), np.uint16), 5).shape
        (12, 16, 5)
    """
    if array.ndim == 3 and array.shape[-1] != num_channels and array.shape[0] == num_channels:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] != num_channels or array.size == 0:
        raise UndecodableImage(f"an array of shape {array.shape} is not an image of {num_channels} channels")
    check_size(array.shape[1], array.shape[0], max_pixels)
    return np.ascontiguousarray(to_8_bits(array, value_range))


def array_of(value: Any) -> np.ndarray:
    """Return an array, tensor or nested list of numbers as a NumPy array; tensors from any device and in bfloat16."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.is_floating_point() else value
    return np.asarray(value)


def to_8_bits(array: np.ndarray, value_range: Sequence[float] | None = None) -> np.ndarray:
    """Scale an array's values to 0..255 by the rules above: uint8 of the same shape.

    Args:
        array: The values.
        value_range: The values that are black and white, except in bool and uint8.

    Raises:
        UndecodableImage: For a type that is no number, or values that no rule covers.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind not in "iuf":
        raise UndecodableImage(f"an array of type {array.dtype} is not an image")
    if array.dtype.kind == "f":
        array = np.where(np.isfinite(array), array, array.dtype.type(0))
    if value_range is not None:
        return _scaled(array, *value_range)
    white = _white(array)
    if int(array.min()) < -OVERSHOOT * white:
        raise UndecodableImage(
            f"its values reach from {array.min():.6g} to {array.max():.6g}: scale them to 0..1 (floats) or 0..255"
        )
    return _scaled(array, 0, white)


def _scaled(array: np.ndarray, black: float, white: float) -> np.ndarray:
    # float64 is exact for all integers up to 2**32
    scaled = (np.clip(array.astype(np.float64), black, white) - black) * (255 / (white - black))
    return np.rint(scaled).astype(np.uint8)


def _white(array: np.ndarray) -> int:
    """Return the value that is white."""
    high = array.max()
    if array.dtype == np.uint16:
        return 65535
    if array.dtype.kind == "f" and high <= _LARGEST_FRACTION:
        return 1
    if array.dtype.kind in "iu" or high > _SMALLEST_WHITE:
        for white in (255, 65535):
            if high <= white * (1 + OVERSHOOT):
                return white
    if array.dtype.kind in "iu" and _SMALLEST_32_BIT <= high < 2**32:
        return 2**31 - 1 if array.dtype == np.int32 else 2**32 - 1
    raise UndecodableImage(f"its values reach {high:.6g}: scale them to 0..1 (floats), 0..255 or 0..65535")
