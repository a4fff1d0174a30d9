"""Values of pixels, as rows hold them: classes (masks) and distances (depth maps)."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ...data.columns import DEPTH_COLUMNS, MASK_COLUMNS, chosen_column, column_features
from ...data.decoding import open_lazily, stored_values

COLUMNS = {"mask": MASK_COLUMNS, "depth": DEPTH_COLUMNS}  # usual names, by what the values are
KINDS = tuple(COLUMNS)
MAX_CLASS = 65_535  # what a 16-bit mask can hold
_WORDS = {"mask": "masks", "depth": "depth maps"}


def find_values_column(dataset: Any, kind: str, name: str | None = None) -> str | None:
    """Find the column that holds a value for each pixel.

    Columns that are called `label` or `labels` are masks if they are images. WebDataset fields may have the ending of
    their files (`mask.png`).

    Args:
        dataset: A `datasets` dataset, or any collection of tuples or dicts.
        kind: What the values are, one of `KINDS`.
        name: The column that the user asked for, if any.

    Returns:
        The column's name, or None if the items are (image, values) tuples.

    Raises:
        ValueError: If the column is missing, or if none or several could be meant; the message lists the columns.
    """
    import datasets

    columns, features = column_features(dataset)
    if columns is None:
        first = dataset[0] if hasattr(dataset, "__getitem__") else next(iter(dataset))
        if isinstance(first, tuple | list) and len(first) > 1:
            return None
        raise ValueError(f"The dataset's items have no {_WORDS[kind]}: give dicts, or (image, {kind}) tuples.")
    candidates = [column for column in columns if column in COLUMNS[kind]]
    candidates = candidates or [column for column in columns if column.partition(".")[0] in COLUMNS[kind]]
    if not candidates and kind == "mask" and features:
        images = datasets.Image, datasets.Array2D, datasets.Array3D
        candidates = [each for each in columns if each in ("label", "labels") and isinstance(features[each], images)]
    return chosen_column(columns, candidates, name, f"{kind}_column", f"column of {_WORDS[kind]}")


def read_mask(value: Any, max_pixels: int) -> np.ndarray:
    """Return the classes of pixels, int64 (height, width), from a file, a Pillow image, an array or nested lists.

    Raises:
        UndecodableImage: If the value cannot be read.
        ValueError: If it is a colour image, a JPEG, or holds numbers that are not whole.
    """
    _refuse_jpeg(value, max_pixels)
    values = _single_channel(stored_values(value, max_pixels))
    with np.errstate(invalid="ignore"):  # NaN is found below
        classes = values.astype(np.int64)
    if values.dtype.kind == "f" and not (classes == values).all():
        raise ValueError("holds numbers that are not whole, where a mask holds the number of a class for each pixel")
    return classes


def read_depth(value: Any, max_pixels: int, scale: float) -> np.ndarray:
    """Return distances of pixels, float32 (height, width); NaN where nothing was measured (0, negative or not finite).

    Args:
        value: A file, a Pillow image, an array or nested lists.
        max_pixels: The largest width times height that is decoded.
        scale: What a stored value is divided by, such as 1000 where millimetres are stored and metres are wanted.

    Raises:
        UndecodableImage: If the value cannot be read.
        ValueError: If it is a colour image.
    """
    values = _single_channel(stored_values(value, max_pixels)).astype(np.float64) / scale
    measured = np.isfinite(values) & (values > 0)
    return np.where(measured, values, np.nan).astype(np.float32)


def compact(values: np.ndarray) -> np.ndarray:
    """Return classes in the smallest type that holds them, as batches of large masks wait for the model; others as they
    are."""
    if values.dtype.kind not in "iu":
        return values
    low, high = int(values.min()), int(values.max())
    for kind in (np.uint8, np.uint16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values


def check_same_size(kind: str, values: np.ndarray, width: int, height: int) -> None:
    """Raise ValueError for a mask or depth map of another size than its image."""
    if values.shape != (height, width):
        raise ValueError(
            f"has an image of {width} x {height} pixels, but a {kind} of {values.shape[1]} x {values.shape[0]}: give "
            "both in one size"
        )


def _refuse_jpeg(value: Any, max_pixels: int) -> None:
    """Raise ValueError for a mask whose classes were changed by its compression, along all borders between them."""
    is_array = not isinstance(value, Image.Image) and (hasattr(value, "__array__") or isinstance(value, list))
    if not is_array and getattr(open_lazily(value, max_pixels, num_channels=1), "format", None) == "JPEG":
        raise ValueError("is a mask in JPEG, whose compression changes the numbers of classes: store it as PNG")


def _single_channel(values: np.ndarray) -> np.ndarray:
    """Return the only channel (height, width), also of a grey image that is stored in colour."""
    if values.ndim == 2:
        return values
    colours = values[..., :3] if values.shape[-1] > 2 else values[..., :1]
    if (colours != colours[..., :1]).any():
        raise ValueError(
            "holds colours, where one number per pixel is needed: convert them to the numbers of classes, or give "
            "another column"
        )
    return colours[..., 0]
