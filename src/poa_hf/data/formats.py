"""Image files: which formats are read, and how large an image may be, from the header alone.

Only raster formats that Pillow decodes by itself are read. PostScript, Windows metafiles and the like are programs for
an interpreter, and a few formats (FITS, IPTC, HDF5, ...) hand their content to other readers; Pillow never sees either.

`metadata` reads an image's orientation, and `decoding` its pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image, UnidentifiedImageError

from ..formatting import one_line
from .crop_arguments import MAX_IMAGE_PIXELS

RASTER_FORMATS = (
    # what data sets are made of
    *("JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "BMP", "JPEG2000", "PPM"),
    # what is found now and then
    *("BLP", "CUR", "DCX", "DDS", "DIB", "FLI", "FTEX", "GBR", "ICNS", "ICO", "IM", "MSP", "PCD", "PCX", "PIXAR"),
    *("PSD", "QOI", "SGI", "SUN", "TGA", "XBM", "XPM", "XVTHUMB"),
)

# The beginnings of files that are not read, with what they are and what to do.
_PILLOW = "which this Pillow was built without: install one of Pillow's own wheels (pip install --upgrade pillow)"
_CONVERT = "which is not a raster format that is read: convert it to PNG or JPEG"
_FRAMES = "where an image is needed: give its frames as images"
_SIGNATURES = (
    (0, b"%!PS", f"PostScript, {_CONVERT}"),
    (0, b"\xc5\xd0\xd3\xc6", f"PostScript, {_CONVERT}"),
    (0, b"%PDF", f"PDF, {_CONVERT}"),
    (0, b"\xd7\xcd\xc6\x9a", f"a Windows metafile, {_CONVERT}"),
    (0, b"SIMPLE  =", f"FITS, {_CONVERT}"),
    (0, b"\x89HDF\r\n\x1a\n", f"HDF5, {_CONVERT}"),
    (0, b"<svg", f"SVG, {_CONVERT}"),
    (0, b"<?xml", f"XML, {_CONVERT}"),
    (0, b"\xff\x0a", f"JPEG XL, {_CONVERT}"),
    (0, b"\0\0\0\x0cJXL ", f"JPEG XL, {_CONVERT}"),
    (4, b"ftyphei", f"HEIC, {_CONVERT}"),
    (4, b"ftyphev", f"HEIC, {_CONVERT}"),
    (4, b"ftypavi", f"AVIF, {_PILLOW}"),
    (8, b"WEBP", f"WebP, {_PILLOW}"),
    (4, b"ftyp", f"a video, {_FRAMES}"),
    (8, b"AVI ", f"a video, {_FRAMES}"),
    (0, b"\x1a\x45\xdf\xa3", f"a video, {_FRAMES}"),
    (0, b"\0\0\1\xba", f"a video, {_FRAMES}"),
    (0, b"version https://git-lfs", 'a Git LFS pointer instead of the image: run "git lfs pull" in its repository'),
    (0, b"<!DOCTYPE html", "a web page instead of an image: download the image again"),
    (0, b"<html", "a web page instead of an image: download the image again"),
)


class UndecodableImage(Exception):
    """A row holds no image that can be read. The message is the reason, without the row's name."""


class UnknownFormat(UndecodableImage):
    """The bytes of a file are in no format that is read."""


class RestOfShard(UndecodableImage):
    """Stands for the rows of a damaged file that cannot be read."""


class BrokenImage(bytes):
    """The bytes of an image that `datasets` could not decode (see `decoding_steps`), with the reason."""

    reason = ""


def unbroken(value: Any) -> Any:
    """Return a value of a row, or the `UndecodableImage` of one with a `BrokenImage`."""
    broken = value.get("bytes") if isinstance(value, Mapping) else None
    return UndecodableImage(broken.reason) if isinstance(broken, BrokenImage) else value


def open_header(data: bytes, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Open the bytes of an image file, and read no more than its header.

    Of files with several images (GIF, TIFF, animated WebP, PNG or AVIF) the first is read.

    Args:
        data: The file's content.
        max_pixels: The largest width times height that is decoded.

    Raises:
        UnknownFormat: If the format is not among `RASTER_FORMATS`.
        UndecodableImage: If the image is too large.
        Exception: Whatever Pillow's readers raise for a broken header.
    """
    Image.init()
    formats = [name for name in RASTER_FORMATS if name in Image.OPEN]
    try:
        with pillow_limit(max_pixels):
            image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise UnknownFormat(_describe(data)) from error
    check_size(*image.size, max_pixels)
    return image


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise `UndecodableImage` for an image without pixels, or with more of them than allowed."""
    if width < 1 or height < 1:
        raise UndecodableImage("the image has no pixels")
    if width * height > max_pixels:
        raise UndecodableImage(
            f"it is {width} x {height} pixels large, and more than {max_pixels} are not decoded: raise "
            "max_image_pixels if the image is sound"
        )


@contextmanager
def pillow_limit(max_pixels: int) -> Iterator[None]:
    """Let Pillow's own limit be ours while a file is read: it refuses frames, tiles and canvases within the file."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd metadata, of files that are then read without trouble
            yield
    except Image.DecompressionBombError as error:
        raise UndecodableImage(
            f"it holds more than the {max_pixels} pixels that are decoded: raise max_image_pixels if the image is sound"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def reason(error: Exception) -> str:
    """Why an image cannot be read, on one line: the text of an error of Pillow's readers."""
    text = one_line(error)
    if text.startswith("decoder ") and text.endswith("not available"):
        return f"it needs Pillow's {text.removesuffix(' not available')}, {_PILLOW}"
    return text


def _describe(data: bytes) -> str:
    start = data[:64].lstrip()
    if not data:
        return "it is empty (0 bytes)"
    for offset, signature, description in _SIGNATURES:
        if start[offset : offset + len(signature)].lower() == signature.lower():
            return f"it is {description}"
    if start.isascii() and start.decode().isprintable():
        return "its bytes are text, in no known image format"
    # Pillow's message has the address of a buffer, which changes from run to run
    return "its bytes are in no known image format"
