"""Decoding: from what a row holds (bytes, path, array, Pillow image) to pixels, or one kind of exception.

A model of 3 channels takes Pillow images in RGB, and one of 1 channel grey ones; whatever an image is, it is converted.
A model of any other number takes an image's channels as they are, as an array: an image with others is refused.

Transparent pixels are laid on white: the colour that a transparent pixel stores is arbitrary, and seldom meant to be
seen. The EXIF orientation is applied, as `datasets` does. Images of more than 8 bits, and floats, are scaled by the
rules of `arrays`. TIFF files that Pillow does not read are read by `tiff`.

Follows `rows`, which reads the values; `formats` opens files and `metadata` reads their orientation; `crops` cuts the
images.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile, get_sampling
from PIL.TiffImagePlugin import TiffImageFile

from .arrays import array_of, channels_of_array, image_from_array
from .crop_arguments import MAX_IMAGE_PIXELS
from .formats import UndecodableImage, UnknownFormat, check_size, open_header, pillow_limit, reason
from .metadata import QUARTER_TURNS, hide_metadata, orientation, turn_upright, without_metadata
from .tiff import is_tiff, read_tiff

__all__ = ["UndecodableImage", "as_pixels", "as_rgb", "open_image", "open_lazily", "oriented_size"]
__all__ += ["shrink_while_decoding", "stored_values"]

Pixels: TypeAlias = Image.Image | np.ndarray  # an array is uint8 (height, width, channels)

CONVERTED = (1, 3)  # numbers of channels to which any image is converted: grey and RGB
_PLAIN_MODES = ("LA", "RGB", "RGBA")  # whose channels are values of pixels, side by side

_WIDE_MODES = ("I", "F")  # and I;16 in its byte orders: more than 8 bits per pixel
_EVEN_SAMPLINGS = (0, 2)  # of colours in JPEG files: 4:4:4 and 4:2:0


def open_image(
    value: Any,
    max_pixels: int = MAX_IMAGE_PIXELS,
    num_channels: int = 3,
    value_range: Sequence[float] | None = None,
) -> Pixels:
    """Decode a row's value to an upright image with 8 bits per channel.

    Args:
        value: What `open_lazily` takes.
        max_pixels: The largest width times height that is decoded.
        num_channels: The channels that the model takes.
        value_range: The values that are black and white in arrays and files of more than 8 bits per channel; by
            default, `arrays` says.

    Returns:
        A Pillow image of mode RGB for 3 channels and L for 1; for other numbers an array, uint8 (height, width,
        channels).

    Raises:
        UndecodableImage: If the value is not an image, or broken, or too large, or has other channels.

    Example:
        >>> image = open_image(np.zeros((4, 6), dtype=np.uint8))
        >>> image.mode, image.size
        ('RGB', (6, 4))
        >>> open_image(np.zeros((4, 6, 12), dtype=np.uint16), num_channels=12, value_range=(0, 10_000)).shape
        (4, 6, 12)
    """
    image = open_lazily(value, max_pixels, num_channels, value_range)
    return as_pixels(image, max_pixels, num_channels, value_range)


def open_lazily(
    value: Any,
    max_pixels: int = MAX_IMAGE_PIXELS,
    num_channels: int = 3,
    value_range: Sequence[float] | None = None,
) -> Pixels:
    """Open a row's value, reading no more than the header if the format allows it.

    Args:
        value: What `datasets` gives undecoded (`{"bytes": ..., "path": ...}`); bytes; a path or fsspec URL; a Pillow
            image; an array, tensor or nested list of numbers (see `arrays` for their shapes and values); or an
            `UndecodableImage`, which is raised.
        max_pixels: The largest width times height that is decoded.
        num_channels: As for `open_image`.
        value_range: As for `open_image`.

    Raises:
        UndecodableImage: If the value is not an image, or too large.
    """
    try:
        if isinstance(value, UndecodableImage):
            raise value
        if isinstance(value, Image.Image):
            check_size(*value.size, max_pixels)
            # otherwise the caller's image would be shrunk (`shrink_while_decoding`) or lose its orientation (TIFF)
            return value.copy() if isinstance(value, JpegImageFile | TiffImageFile) else value
        if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if value is None:
            raise UndecodableImage("the row holds no image")
        if isinstance(value, str | os.PathLike):
            value = _read_file(os.fspath(value))
        if isinstance(value, bytes | bytearray | memoryview):
            value = _open_bytes(bytes(value), max_pixels, num_channels)
            if isinstance(value, Image.Image):
                return value
        if hasattr(value, "__array__") or isinstance(value, list):
            array = array_of(value)
            if num_channels in CONVERTED:
                return image_from_array(array, max_pixels, value_range)
            return channels_of_array(array, num_channels, max_pixels, value_range)
    except (UndecodableImage, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more
        raise UndecodableImage(reason(error)) from error
    raise UndecodableImage(f"a value of type {type(value).__name__} is not an image")


def as_pixels(
    image: Pixels,
    max_pixels: int = MAX_IMAGE_PIXELS,
    num_channels: int = 3,
    value_range: Sequence[float] | None = None,
) -> Pixels:
    """Read the pixels of what `open_lazily` returned, and return them as `open_image` does.

    Raises:
        UndecodableImage: If the pixels cannot be read, or have other channels.
    """
    if isinstance(image, np.ndarray):
        return image
    if num_channels in CONVERTED:
        image = as_rgb(image, max_pixels, value_range)
        return image if num_channels == 3 else image.convert("L")
    image = _read(image, max_pixels)
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    held = len(image.getbands())
    if held != num_channels or image.mode not in _PLAIN_MODES:
        raise UndecodableImage(f"it holds {held} channels ({image.mode}), where the model takes {num_channels}")
    return np.asarray(image)


def stored_values(value: Any, max_pixels: int = MAX_IMAGE_PIXELS) -> np.ndarray:
    """Decode a row's value to the numbers that it stores, upright and unscaled, such as the classes of a mask.

    Of an image with a palette, they are the numbers of its colours.

    Args:
        value: What `open_lazily` takes.
        max_pixels: The largest width times height that is decoded.

    Returns:
        (height, width) of any type of numbers, or (height, width, channels) for an image with several channels.

    Raises:
        UndecodableImage: If the value is not an image, or broken, or too large.
    """
    if not isinstance(value, Image.Image) and (hasattr(value, "__array__") or isinstance(value, list)):
        try:
            array = array_of(value)
        except ValueError as error:  # rows of several lengths
            raise UndecodableImage(reason(error)) from error
        if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
            array = array[0] if array.shape[0] == 1 else array[..., 0]
        if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "biuf":
            raise UndecodableImage(f"an array of shape {array.shape} and type {array.dtype} has no number per pixel")
        check_size(array.shape[1], array.shape[0], max_pixels)
        return array
    image = open_lazily(value, max_pixels, num_channels=1)
    return image if isinstance(image, np.ndarray) else np.asarray(_read(image, max_pixels))


def as_rgb(
    image: Image.Image, max_pixels: int = MAX_IMAGE_PIXELS, value_range: Sequence[float] | None = None
) -> Image.Image:
    """Read an image's pixels, and return it upright, in mode RGB with 8 bits per channel.

    Raises:
        UndecodableImage: If the pixels cannot be read.
    """
    return _read(image, max_pixels, lambda image: _to_rgb(image, value_range))


def _read(
    image: Image.Image, max_pixels: int, convert: Callable[[Image.Image], Image.Image] = lambda image: image
) -> Image.Image:
    """Read an image's pixels, turn it upright and convert it, with one kind of exception for all that may fail."""
    turned = orientation(image)
    try:
        with pillow_limit(max_pixels):
            return convert(turn_upright(_loaded(image), turned))
    except (UndecodableImage, MemoryError):
        raise
    except Exception as error:
        raise UndecodableImage(reason(error)) from error


def oriented_size(image: Pixels) -> tuple[int, int]:
    """Return width and height of the upright image, from its header."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    width, height = image.size
    # Pillow has swapped the sides of a TIFF image already
    return (height, width) if orientation(image) in QUARTER_TURNS and image.format != "TIFF" else (width, height)


def shrink_while_decoding(image: Pixels, needed: float) -> int:
    """Let a JPEG that has not been read yet be decoded at 1/2 or 1/4 of its size, but not below `needed` of it.

    Not at 1/8, which saves no more time and puts the edges of boxes into pixels that are eight wide. Nor where colours
    are stored at another resolution in one direction than in the other (4:2:2), as they would be blurred.

    Returns:
        The factor by which the sides are divided, 1, 2 or 4; the last row and column may be a part of a pixel.
    """
    factor = next((factor for factor in (4, 2) if needed * factor <= 1), 1)
    if factor == 1 or not isinstance(image, JpegImageFile) or min(image.size) < factor:
        return 1
    width, height = image.size
    if image.mode != "L" and get_sampling(image) not in _EVEN_SAMPLINGS:
        return 1
    drafted = image.draft(None, (width // factor, height // factor))
    return round(width / drafted[1][2]) if drafted else 1


def _read_file(path: str) -> bytes:
    if "://" not in path:
        with open(path, "rb") as file:
            return file.read()
    import fsspec

    with fsspec.open(path, "rb") as file:
        return bytes(file.read())


def _open_bytes(data: bytes, max_pixels: int, num_channels: int) -> Pixels:
    """Open a file's content: as an image, or of a TIFF file that needs it as an array of the type that it stores."""
    if num_channels not in CONVERTED and is_tiff(data):
        return read_tiff(data, [num_channels], max_pixels)
    try:
        return open_header(data, max_pixels)
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, UnknownFormat) and is_tiff(data):
            return read_tiff(data, CONVERTED, max_pixels)
        if (slim := without_metadata(data)) is None:
            raise
    return open_header(slim, max_pixels)


def _loaded(image: Image.Image) -> Image.Image:
    hide_metadata(image)
    file = getattr(image, "fp", None)
    try:
        image.load()
    except (SyntaxError, ValueError):
        # the text after the pixels of a PNG file is read with them
        data = without_metadata(file.getvalue()) if image.format == "PNG" and isinstance(file, io.BytesIO) else None
        if data is None:
            raise
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        image.load()
    return image


def _to_rgb(image: Image.Image, value_range: Sequence[float] | None = None) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode in _WIDE_MODES:
        # Pillow's own conversion clips at 255 instead of scaling
        values = np.asarray(image)
        scaled = image_from_array(values, image.width * image.height, value_range).convert("RGB")
        if (transparent := image.info.get("transparency")) is not None:
            scaled.paste((255, 255, 255), mask=Image.fromarray(values == transparent))
        return scaled
    if image.has_transparency_data:
        if image.mode == "La":  # Pillow converts it to this mode alone
            image = image.convert("LA")
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")
