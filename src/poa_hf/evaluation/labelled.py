"""Images with labels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..data.crop_arguments import MAX_IMAGE_PIXELS
from ..data.rows import Row
from .data.label_column import find_label_column
from .data.split_rows import BatchKey as BatchKey
from .data.split_rows import SplitRows


class UnlabelledImage(ValueError):
    """Raised for a row without a label, such as those in the test splits of many competitions."""


@dataclass(frozen=True)
class LabelledRow(Row):
    """An undecoded image with its label.

    Args:
        label: The label, which is 0 where the image is the `UndecodableImage` that the dataset raised.
    """

    label: int | str


class LabelledImages(SplitRows[LabelledRow]):
    """The rows of one split: undecoded images with their labels.

    Args:
        dataset: A `datasets` dataset, or anything with a length and items that are dicts or (image, label) tuples.
        image_column: The column with the images, found by its type or name by default.
        label_column: The column with the labels, found by its type or name by default.
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
        limit: int | None = None,
        seed: int = 0,
        name: str = "train",
        max_image_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        self.label_column = label_column
        super().__init__(dataset, image_column, limit, seed, name, max_image_pixels)

    def _find_columns(self, dataset: Any) -> list[str | None]:
        if self.folder is not None and self.label_column is None:
            _check_classes(dataset, self.folder)
        self.label_column = find_label_column(dataset, self.label_column)
        feature = (getattr(dataset, "features", None) or {}).get(self.label_column)
        self.class_names: list[str] | None = getattr(feature, "names", None)
        return [self.label_column]

    def labels(self) -> list[list[int | str]]:
        """Return the labels of all rows by shard, in their order; rows that can be read by index are one shard.

        Of a `datasets` dataset or stream only the labels are read, where its format allows that.

        Raises:
            ValueError: For a label that is missing or not a class.
        """
        import datasets

        if self.is_stream:
            return [
                [row.label for row in self._shard_rows(shard, columns=[self.label_column])] for shard in self._shards()
            ]
        if not isinstance(self.dataset, datasets.Dataset) or self.dataset.format["type"] is not None:
            return [[row.label for row in self._all_rows()]]
        values = self.dataset.select_columns([self.label_column]).select(self.indices)[self.label_column]
        return [[self._label(value, str(index)) for index, value in zip(self.indices, values, strict=True)]]

    def _row(self, name: str, image: Any, item: Any) -> LabelledRow:
        if item is None:
            return LabelledRow(name, image, 0)
        return LabelledRow(
            name, image, self._label(item[1] if self.label_column is None else item.get(self.label_column), name)
        )

    def _label(self, value: Any, row: str) -> int | str:
        if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
            value = value.item()  # a number of NumPy or torch
        if value is None or (isinstance(value, int) and value < 0):
            raise UnlabelledImage(f"Row {row} of the {self.name} split has no label ({value}): give a labelled split.")
        if not isinstance(value, int | str):
            raise ValueError(
                f"Row {row} of the {self.name} split has the label {str(value)[:40]} of type {type(value).__name__}, "
                "but labels are whole numbers or strings: pass --label_column with another column."
            )
        return int(value) if isinstance(value, bool) else value


def _check_classes(dataset: Any, folder: str) -> None:
    """Raise `UnlabelledImage`, which says what a folder holds, if images of it lie outside of class folders."""
    import datasets

    has_classes = isinstance(dataset.features.get("label"), datasets.ClassLabel)
    if not has_classes and len(dataset.features) > 1:
        return  # it has metadata
    labels = dataset.with_format(None)["label"][:] if has_classes else [None] * len(dataset)
    if None not in labels:
        return
    path = dataset.cast_column("image", datasets.Image(decode=False))[labels.index(None)]["image"]["path"]
    place, file = os.path.split(path)
    count = f"{labels.count(None)} images lie" if labels.count(None) > 1 else "1 image lies"
    classes = ", ".join(dataset.features["label"].names[:3]) if has_classes else "cat/1.jpg, dog/2.jpg"
    raise UnlabelledImage(
        f"{count} directly in {place}, outside of any class folder (first: {file}): move each into the folder of its "
        f"class ({classes}, ...), or add a metadata.csv with the columns file_name and label."
    )
