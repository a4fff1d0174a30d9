"""Metadata of image files: the orientation is read from it, and nothing else may spoil an image.

Cameras, editors and web crawlers leave EXIF, XMP and text behind that is against the standards. Pixels need none of it,
so a file that cannot be read with its metadata is read without.
"""

from __future__ import annotations

import struct
import warnings

import numpy as np
from PIL import Image

EXIF_ORIENTATION = 0x0112
# Orientations 5 to 8 turn the image by a quarter, so width and height change places.
QUARTER_TURNS = (5, 6, 7, 8)
MIRRORED_COLUMNS = (2, 3, 6, 7)  # the upright image's left edge is the stored image's right or lower edge
MIRRORED_ROWS = (3, 4, 7, 8)  # its upper edge is the stored image's lower or right edge
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_JPEG_SCAN = 0xDA
_JPEG_PIXELS = {0xE0, 0xEE}  # JFIF and Adobe: how the components make colours


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if it is missing or cannot be read.

    Must be asked before the pixels are read: Pillow turns TIFF images while it does so.
    """
    try:
        # the tags of a TIFF file are the header that has been read already
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on other fields, which are not used
            tags = image.tag_v2 if image.format == "TIFF" else image.getexif()  # type: ignore[attr-defined]
            value = tags.get(EXIF_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # a broken header in EXIF raises SyntaxError, struct.error, ValueError, KeyError and more
        return 1
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


def hide_metadata(image: Image.Image) -> None:
    """Keep Pillow from looking at the EXIF data of a TIFF image, and from turning it, while its pixels are read."""
    if image.format == "TIFF":
        image.info["exif"] = b""
        image.info.pop("xmp", None)


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn and mirror an image as its EXIF orientation says; its metadata are not touched."""
    return image.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else image


def turned_array(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an array (height, width, channels) as an EXIF orientation says."""
    if orientation in QUARTER_TURNS:
        array = array.swapaxes(0, 1)
    if orientation in MIRRORED_ROWS:
        array = array[::-1]
    return array[:, ::-1] if orientation in MIRRORED_COLUMNS else array


def without_metadata(data: bytes) -> bytes | None:
    """Return a JPEG or PNG file with what its pixels need alone; None for others, and if that changes nothing."""
    if data[:2] == b"\xff\xd8":
        slim = _jpeg_without_metadata(data)
    elif data[:8] == _PNG_START:
        slim = _png_without_metadata(data)
    else:
        return None
    return slim if slim != data else None


def _jpeg_without_metadata(data: bytes) -> bytes:
    kept, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker == _JPEG_SCAN:
            break
        end = place + 2 + struct.unpack_from(">H", data, place + 2)[0]
        application = 0xE0 <= marker <= 0xEF or marker == 0xFE  # and comments
        if not application or marker in _JPEG_PIXELS:
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def _png_without_metadata(data: bytes) -> bytes:
    kept, place = [data[:8]], 8
    while place + 8 <= len(data):
        length = struct.unpack_from(">I", data, place)[0]
        end = place + 12 + length
        if data[place + 4 : place + 8] in _PNG_PIXELS:
            kept.append(data[place:end])
        place = end
    return b"".join(kept)
