"""Images with labels and masks of their foreground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...data.columns import find_image_column
from ...data.crop_arguments import MAX_IMAGE_PIXELS
from ...data.decoding import Pixels, UndecodableImage, oriented_size, stored_values
from ...data.rows import as_stored, stored_type
from ..dense.pixel_values import find_values_column
from ..labelled import LabelledImages, LabelledRow

NO_MASKS = (
    "The task backgrounds needs a mask of the foreground beside each test image, or the folder of the backgrounds "
    "challenge: give a dataset that has one of them, or leave the task out."
)


@dataclass(frozen=True)
class MaskedRow(LabelledRow):
    """An undecoded image with its label and its mask.

    Args:
        mask: What the row holds, not decoded.
        split: The name of the split, for messages.
        max_pixels: The largest width times height of a mask that is decoded.
    """

    mask: Any = None
    split: str = "test"
    max_pixels: int = MAX_IMAGE_PIXELS


class MaskedImages(LabelledImages):
    """The rows of one split: undecoded images with their labels and masks.

    In a mask, 0 is background, and any other number foreground.

    Args:
        dataset: A `datasets` dataset, or anything with a length and items that are dicts.
        image_column: The column with the images, found by its type or name by default.
        label_column: The column with the labels, likewise.
        mask_column: The column with the masks, found by its name by default.
        limit: The number of images to use, as in `SplitRows`.
        seed: The seed of the random sample.
        name: What messages and records call the split.
        max_image_pixels: The largest width times height of an image that is decoded.

    Raises:
        ValueError: For columns that are missing or not clear, labels of a wrong type, or no rows at all.
        UnlabelledImage: If the first row has no label.
    """

    def __init__(
        self,
        dataset: Any,
        image_column: str | None = None,
        label_column: str | None = None,
        mask_column: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        name: str = "test",
        max_image_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        self.mask_column = mask_column
        super().__init__(dataset, image_column, label_column, limit, seed, name, max_image_pixels)

    def _find_image_column(self, dataset: Any, name: str | None) -> str | None:
        try:
            self.mask_column = find_values_column(dataset, "mask", self.mask_column)
        except ValueError as error:
            reason = str(error).removeprefix("The dataset")
            raise ValueError(f"The task backgrounds needs a mask for each test image: the dataset{reason}") from error
        return find_image_column(dataset, name, other_than=[self.mask_column])

    def _find_columns(self, dataset: Any) -> list[str | None]:
        if self.mask_column is None:
            raise ValueError("The dataset's items are tuples, which have no masks: give dicts with a mask.")
        self._mask_dtype = stored_type(dataset, self.mask_column)
        return [*super()._find_columns(dataset), self.mask_column]

    def _row(self, name: str, image: Any, item: Any) -> MaskedRow:
        row = super()._row(name, image, item)
        mask = None if item is None else as_stored(item.get(self.mask_column), self._mask_dtype)
        return MaskedRow(row.name, row.image, row.label, mask, self.name, self.max_image_pixels)


def foreground_of(row: MaskedRow, image: Pixels) -> NDArray[np.bool_]:
    """Return where the foreground of a decoded image is: bool (height, width).

    Raises:
        ValueError: In one sentence with the row, for a mask that is missing, broken or of another size than the image.
    """
    place = f"Row {row.name} of the {row.split} split"
    if row.mask is None:
        raise ValueError(f"{place} has no mask: give every image a mask, or leave the task backgrounds out.")
    try:
        values = stored_values(row.mask, row.max_pixels)
    except UndecodableImage as error:
        raise ValueError(f"{place} has a mask that cannot be read ({error}): mend it, or leave the row out.") from error
    foreground = values != 0
    if foreground.ndim == 3:  # black is background, whatever the opacity
        foreground = foreground[..., :3].any(axis=2) if values.shape[2] > 2 else foreground[..., 0]
    width, height = oriented_size(image)
    if foreground.shape != (height, width):
        raise ValueError(
            f"{place} has an image of {width} x {height} pixels, but a mask of {foreground.shape[1]} x "
            f"{foreground.shape[0]}: give both in one size."
        )
    return foreground
