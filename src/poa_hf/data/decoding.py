"""Decoding: from what a row holds (bytes, path, array, Pillow image) to an RGB Pillow image, or one kind of exception.

Transparent pixels are laid on white: the colour that a transparent pixel stores is arbitrary, and seldom meant to be
seen. The EXIF orientation is applied, as `datasets` does. Images of more than 8 bits, and floats, are scaled by the
rules of `arrays`.

Follows `rows`, which reads the values; `formats` opens files and `metadata` reads their orientation; `crops` cuts the
images.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile, get_sampling

from .arrays import array_of, image_from_array
from .crop_arguments import MAX_IMAGE_PIXELS
from .formats import UndecodableImage, check_size, open_header, pillow_limit, reason
from .metadata import QUARTER_TURNS, hide_metadata, orientation, turn_upright, without_metadata

__all__ = ["UndecodableImage", "as_rgb", "open_image", "open_lazily", "oriented_size", "shrink_while_decoding"]

_WIDE_MODES = ("I", "F")  # and I;16 in its byte orders: more than 8 bits per pixel
_EVEN_SAMPLINGS = (0, 2)  # of colours in JPEG files: 4:4:4 and 4:2:0


def open_image(value: Any, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode a row's value to an upright RGB image.

    Args:
        value: What `open_lazily` takes.
        max_pixels: The largest width times height that is decoded.

    Raises:
        UndecodableImage: If the value is not an image, or broken, or too large.

    Example:
        >>> image = open_image(np.zeros((4, 6), dtype=np.uint8))
        >>> image.mode, image.size
        ('RGB', (6, 4))
    """
    return as_rgb(open_lazily(value, max_pixels), max_pixels)


def open_lazily(value: Any, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Open a row's value, reading no more than the header if the format allows it.

    Args:
        value: What `datasets` gives undecoded (`{"bytes": ..., "path": ...}`); bytes; a path or fsspec URL; a Pillow
            image; an array, tensor or nested list of numbers (see `arrays` for their shapes and values); or an
            `UndecodableImage`, which is raised.
        max_pixels: The largest width times height that is decoded.

    Raises:
        UndecodableImage: If the value is not an image, or too large.
    """
    try:
        if isinstance(value, UndecodableImage):
            raise value
        if isinstance(value, Image.Image):
            check_size(*value.size, max_pixels)
            # otherwise the caller's image would be shrunk (`shrink_while_decoding`) or lose its orientation (TIFF)
            return value.copy() if value.format in ("JPEG", "TIFF") else value
        if isinstance(value, dict) and ("bytes" in value or "path" in value):
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if value is None:
            raise UndecodableImage("the row holds no image")
        if isinstance(value, str | os.PathLike):
            value = _read_file(os.fspath(value))
        if isinstance(value, bytes | bytearray | memoryview):
            return _open_bytes(bytes(value), max_pixels)
        if hasattr(value, "__array__") or isinstance(value, list):
            return image_from_array(array_of(value), max_pixels)
    except (UndecodableImage, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more
        raise UndecodableImage(reason(error)) from error
    raise UndecodableImage(f"a value of type {type(value).__name__} is not an image")


def as_rgb(image: Image.Image, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Read an image's pixels, and return it upright, in mode RGB with 8 bits per channel.

    Raises:
        UndecodableImage: If the pixels cannot be read.
    """
    turned = orientation(image)
    try:
        with pillow_limit(max_pixels):
            image = _loaded(image)
            return _to_rgb(turn_upright(image, turned))
    except (UndecodableImage, MemoryError):
        raise
    except Exception as error:
        raise UndecodableImage(reason(error)) from error


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of the upright image, from its header."""
    width, height = image.size
    # Pillow has swapped the sides of a TIFF image already
    return (height, width) if orientation(image) in QUARTER_TURNS and image.format != "TIFF" else (width, height)


def shrink_while_decoding(image: Image.Image, needed: float) -> int:
    """Let a JPEG that has not been read yet be decoded at 1/2 or 1/4 of its size, but not below `needed` of it.

    Not at 1/8, which saves no more time and puts the edges of boxes into pixels that are eight wide. Nor where colours
    are stored at another resolution in one direction than in the other (4:2:2), as they would be blurred.

    Returns:
        The factor by which the sides are divided, 1, 2 or 4; the last row and column may be a part of a pixel.
    """
    factor = next((factor for factor in (4, 2) if needed * factor <= 1), 1)
    width, height = image.size
    if factor == 1 or not isinstance(image, JpegImageFile) or min(width, height) < factor:
        return 1
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


def _open_bytes(data: bytes, max_pixels: int) -> Image.Image:
    try:
        return open_header(data, max_pixels)
    except MemoryError:
        raise
    except Exception:
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


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode in _WIDE_MODES:
        # Pillow's own conversion clips at 255 instead of scaling
        return image_from_array(np.asarray(image), image.width * image.height).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")
