"""TIFF files that Pillow does not read: more than four channels, one channel per page, floats in several channels.

They are read with tifffile, which `pip install 'poa_hf[tiff]'` brings along with the codecs of imagecodecs. Only pixels
and the orientation are read: what GeoTIFF, OME or ImageJ store beside them may name other files, and is ignored.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .formats import UndecodableImage, check_size
from .metadata import EXIF_ORIENTATION, turned_array

if TYPE_CHECKING:
    from tifffile import TiffPage

# the byte order, and 42 (TIFF) or 43 (BigTIFF) in it
_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLAIN_AXES = ("YX", "YXS", "SYX")  # rows, columns and samples
_WHITE_IS_ZERO, _PALETTE = 0, 3


def is_tiff(data: bytes) -> bool:
    """Whether a file's content begins as TIFF does."""
    return data[:4] in _STARTS


def read_tiff(data: bytes, wanted: Sequence[int], max_pixels: int) -> np.ndarray:
    """Read a TIFF file as an upright array (height, width, channels) of the type that it stores.

    The channels are those of the first page; or, if each page has one channel, as many pages of one size.

    Args:
        data: The file's content.
        wanted: The numbers of channels that the model takes.
        max_pixels: The largest width times height that is read.

    Raises:
        UndecodableImage: If tifffile is not installed, or the file has other channels or is too large.
        Exception: Whatever tifffile raises for a broken file.
    """
    try:
        import tifffile
    except ImportError as error:
        raise UndecodableImage(
            "it is a TIFF file that Pillow cannot read: install tifffile (pip install 'poa_hf[tiff]')"
        ) from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first: Any = file.pages[0]
        channels = _channels(first)
        check_size(first.imagewidth, first.imagelength, max_pixels)
        if channels in wanted:
            return _upright(_samples(first), first)
        pages: list[Any] = list(file.pages) if channels == 1 and len(file.pages) in wanted else []
        if pages and len({(page.shape, page.dtype) for page in pages}) == 1:
            return _upright(np.concatenate([_samples(page) for page in pages], axis=-1), first)
        count = len(file.pages)
        held = f"{channels} channel{'s' * (channels > 1)}" + (f" in each of {count} pages" if count > 1 else "")
        raise UndecodableImage(f"it holds {held}, where the model takes {' or '.join(map(str, wanted))}")


def _channels(page: TiffPage) -> int:
    if page.axes not in _PLAIN_AXES or page.photometric == _PALETTE:
        raise UndecodableImage(f"it is a TIFF file of the axes {page.axes}, not of rows, columns and channels")
    return int(page.samplesperpixel)


def _samples(page: TiffPage) -> np.ndarray:
    """Return a page as an array (height, width, channels) in which large values are light."""
    try:
        array = page.asarray()
    except (ValueError, KeyError) as error:
        if "imagecodecs" in str(error):
            raise UndecodableImage(
                "it is compressed in a way that needs imagecodecs: install it (pip install 'poa_hf[tiff]')"
            ) from error
        raise
    array = {"YX": array[..., None], "YXS": array, "SYX": np.moveaxis(array, 0, -1)}[page.axes]
    if page.photometric == _WHITE_IS_ZERO and array.dtype.kind in "bu":
        array = ~array
    return array


def _upright(array: np.ndarray, page: TiffPage) -> np.ndarray:
    tag = page.tags.get(EXIF_ORIENTATION)
    return turned_array(array, tag.value if tag is not None else 1)
