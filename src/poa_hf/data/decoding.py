"""Decoding: from what a row holds (bytes, path, array, Pillow image) to an RGB Pillow image, or one kind of exception.

Transparent pixels are laid on white: the colour that a transparent pixel stores is arbitrary, and seldom meant to be
seen. The EXIF orientation is applied, as `datasets` does. 16-bit grey is scaled to 8 bits by 1/257.

Follows `rows`, which reads the values; `crops` cuts the images.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..formatting import one_line

EXIF_ORIENTATION = 0x0112
# Orientations 5 to 8 turn the image by a quarter, so width and height change places.
QUARTER_TURNS = (5, 6, 7, 8)


class UndecodableImage(Exception):
    """A row holds no image that can be read. The message is the reason, without the row's name."""


def open_image(value: Any) -> Image.Image:
    """Decode a row's value to an upright RGB image.

    Args:
        value: What `open_lazily` takes.

    Raises:
        UndecodableImage: If the value is not an image, or broken.

    Example:
        >>> image = open_image(np.zeros((4, 6), dtype=np.uint8))
        >>> image.mode, image.size
        ('RGB', (6, 4))
    """
    return as_rgb(open_lazily(value))


def open_lazily(value: Any) -> Image.Image:
    """Open a row's value, reading no more than the header if the format allows it.

    Args:
        value: What `datasets` gives undecoded (`{"bytes": ..., "path": ...}`); bytes; a path or fsspec URL; a Pillow
            image; an array or tensor, (height, width), (height, width, channels) or (channels, height, width) with 1, 3
            or 4 channels, of uint8, uint16, bool, or float in 0..1; or an `UndecodableImage`, which is raised.

    Raises:
        UndecodableImage: If the value is not an image.
    """
    try:
        if isinstance(value, UndecodableImage):
            raise value
        if isinstance(value, Image.Image):
            # otherwise the caller's JPEG would stay shrunk (`shrink_while_decoding`)
            return value.copy() if value.format == "JPEG" else value
        if isinstance(value, dict) and ("bytes" in value or "path" in value):
            value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        if value is None:
            raise UndecodableImage("the row holds no image")
        if isinstance(value, bytes | bytearray | memoryview):
            return Image.open(io.BytesIO(value))
        if isinstance(value, str | os.PathLike):
            return _open_path(os.fspath(value))
        if hasattr(value, "__array__"):
            return _from_array(np.asarray(value))
    except UndecodableImage:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more
        raise UndecodableImage(_reason(error)) from error
    raise UndecodableImage(f"a value of type {type(value).__name__} is not an image")


def as_rgb(image: Image.Image) -> Image.Image:
    """Read an image's pixels, and return it upright, in mode RGB with 8 bits per channel.

    Raises:
        UndecodableImage: If the pixels cannot be read.
    """
    try:
        image.load()
        if _orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:
        raise UndecodableImage(_reason(error)) from error


def oriented_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of the upright image, from its header.

    Raises:
        UndecodableImage: If the header cannot be read, or the image has no pixels.
    """
    try:
        turned = _orientation(image) in QUARTER_TURNS
    except MemoryError:
        raise
    except Exception as error:
        raise UndecodableImage(_reason(error)) from error
    width, height = image.size
    if width == 0 or height == 0:
        raise UndecodableImage("the image has no pixels")
    return (height, width) if turned else (width, height)


def shrink_while_decoding(image: Image.Image, needed: float) -> None:
    """Let a JPEG that has not been read yet be decoded at 1/2, 1/4 or 1/8 of its size, but not below `needed` of it."""
    if image.format == "JPEG" and 0 < needed < 1:
        width, height = image.size
        image.draft(None, (int(np.ceil(width * needed)), int(np.ceil(height * needed))))


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(EXIF_ORIENTATION, 1)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        # Pillow's message has the address of a buffer, which changes from run to run
        return "its bytes are in no known image format"
    return one_line(error)


def _open_path(path: str) -> Image.Image:
    if "://" not in path:
        with open(path, "rb") as file:
            return Image.open(io.BytesIO(file.read()))
    import fsspec

    with fsspec.open(path, "rb") as file:
        return Image.open(io.BytesIO(file.read()))


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or array.size == 0:
        raise UndecodableImage(f"an array of shape {array.shape} is not an image")
    return Image.fromarray(np.ascontiguousarray(_to_8_bits(array)))


def _to_8_bits(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "f":
        array = np.nan_to_num(array.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        # floats lie in 0..1 as a rule; some TIFF files hold 0..255
        return np.rint(np.clip(array * (255 if array.max() <= 1 else 1), 0, 255)).astype(np.uint8)
    if array.dtype == np.uint16 or array.dtype.kind in "iu" and array.max() > 255:
        return ((np.clip(array, 0, 65535).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.clip(array, 0, 255).astype(np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow's own conversion clips at 255 instead of scaling; some formats' 16-bit files come in mode I
        return Image.fromarray(_to_8_bits(np.clip(np.asarray(image), 0, 65535).astype(np.uint16))).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        return white
    return image.convert("RGB")
