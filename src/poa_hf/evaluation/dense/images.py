"""Images with a value for each pixel, such as a class or a distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...data.columns import find_image_column
from ...data.crop_arguments import MAX_IMAGE_PIXELS
from ...data.rows import Row, as_stored, stored_type
from ..data.split_rows import SplitRows
from .pixel_values import find_values_column


@dataclass(frozen=True)
class DenseRow(Row):
    """An undecoded image with the values of its pixels.

    Args:
        values: By kind ("mask", "depth"), what the row holds, not decoded.
    """

    values: Mapping[str, Any]


class DenseImages(SplitRows[DenseRow]):
    """The rows of one split: undecoded images with values of their pixels.

    Args:
        dataset: A `datasets` dataset, or anything with a length and items that are dicts or (image, values) tuples.
        kinds: What the values are: "mask", "depth", both or none.
        columns: The columns of the values by kind, found by their names by default.
        image_column: The column with the images, found by its type or name by default.
        limit: The number of images to use, as in `SplitRows`.
        seed: The seed of the random sample.
        name: What messages and records call the split.
        max_image_pixels: The largest width times height of an image that is decoded.

    Raises:
        ValueError: For columns that are missing or not clear, or no rows at all.
    """

    def __init__(
        self,
        dataset: Any,
        kinds: Sequence[str] = ("mask",),
        columns: Mapping[str, str | None] | None = None,
        image_column: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        name: str = "train",
        max_image_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        self.kinds, self._asked = tuple(kinds), columns or {}
        super().__init__(dataset, image_column, limit, seed, name, max_image_pixels)

    def _find_image_column(self, dataset: Any, name: str | None) -> str | None:
        self._columns = {kind: find_values_column(dataset, kind, self._asked.get(kind)) for kind in self.kinds}
        return find_image_column(dataset, name, other_than=[*self._columns.values(), *self._asked.values()])

    def _find_columns(self, dataset: Any) -> list[str | None]:
        self._dtypes = {kind: stored_type(dataset, column) for kind, column in self._columns.items()}
        return list(self._columns.values())

    def _row(self, name: str, image: Any, item: Any) -> DenseRow:
        values = {}
        for kind, column in self._columns.items() if item is not None else ():
            values[kind] = as_stored(item[1] if column is None else item.get(column), self._dtypes[kind])
        return DenseRow(name, image, values)
