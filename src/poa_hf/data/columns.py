"""The column of a dataset that holds its images, and the image in an item.

Follows `sources`, which opens the dataset; `rows` reads the column.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ..formatting import suggest
from .errors import reading_error

# Names of image columns in datasets that declare no features: WebDataset names fields by file extension.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
# Names of columns with a value for each pixel, which are often stored as images: not what a model is shown.
MASK_COLUMNS = (
    *("mask", "masks", "segmentation", "segmentation_mask", "semantic_segmentation", "semantic_mask", "seg"),
    *("annotation", "label_map", "labelmap"),
)
# Tables of other libraries, which are no collections of rows, and what makes datasets of them.
_TABLES = {
    ("pandas", "DataFrame"): "datasets.Dataset.from_pandas(dataset)",
    ("polars", "DataFrame"): "datasets.Dataset.from_polars(dataset)",
    ("pyarrow", "Table"): "datasets.Dataset(dataset)",
}
DEPTH_COLUMNS = ("depth", "depth_map", "depths")


def column_features(dataset: Any) -> tuple[list[str] | None, Any]:
    """Return the names of a dataset's columns, and what `datasets` knows of their types.

    Of a dataset with a transform (`set_transform`), they are those of the transformed items.

    Args:
        dataset: A `datasets` dataset or any collection of images, tuples or dicts.

    Returns:
        The names, or None if the items are no dicts; and the features by name, or None if they are not known.

    Raises:
        ValueError: For a table of another library.
    """
    for kind in type(dataset).__mro__:
        if remedy := _TABLES.get((kind.__module__.partition(".")[0], kind.__name__)):
            raise ValueError(f"A {kind.__name__} of {kind.__module__.partition('.')[0]} is no dataset: give {remedy}.")
    features = getattr(dataset, "features", None)
    columns = getattr(dataset, "column_names", None)
    if isinstance(form := getattr(dataset, "format", None), dict) and form.get("type") == "custom":
        features, columns = None, None
    if not columns:
        first = _first_item(dataset)
        columns = list(first) if isinstance(first, Mapping) else None
    return columns, features


def find_image_column(dataset: Any, name: str | None = None, other_than: Collection[str | None] = ()) -> str | None:
    """Find the column that holds the images.

    Columns of type `datasets.Image` come first, then those of type `Array2D` and `Array3D`, then common names. Columns
    that are called like masks or depth maps are passed over where there is another one. Of a dataset with a transform
    (`set_transform`), the columns are those of the transformed items.

    Args:
        dataset: A `datasets` dataset or any collection of images, tuples or dicts.
        name: The column that the user asked for, if any.
        other_than: Columns that are known to hold something else.

    Returns:
        The column's name, or None if the dataset's items are images or (image, label) tuples.

    Raises:
        ValueError: If the column is missing, or if none or several could be meant; the message lists the columns.

    Example:
        >>> find_image_column([{"jpg": b"...", "cls": 3}])
        'jpg'
        >>> find_image_column([{"jpg": b"...", "png": b"..."}], name="png")
        'png'
    """
    columns, features = column_features(dataset)
    if columns is None:
        if name is not None:
            raise ValueError(f"The dataset's items have no columns, so not {name!r}: leave out --image_column.")
        return None
    candidates: list[str] = []
    if features is not None:
        import datasets

        for kinds in (datasets.Image, (datasets.Array2D, datasets.Array3D)):
            candidates = candidates or [column for column in columns if isinstance(features[column], kinds)]
    candidates = candidates or [column for column in columns if column in IMAGE_COLUMNS]
    candidates = [column for column in candidates if column not in other_than]
    candidates = [each for each in candidates if each not in MASK_COLUMNS + DEPTH_COLUMNS] or candidates
    return chosen_column(columns, candidates, name, "image_column", "image column")


def chosen_column(columns: Sequence[str], candidates: Sequence[str], name: str | None, option: str, what: str) -> str:
    """Return the column that is named, or else the only one that can be meant.

    Args:
        columns: All columns.
        candidates: Those that can be meant.
        name: What the user says.
        option: The option by which the user says it.
        what: What the column is, with the word "column" in it.

    Raises:
        ValueError: If there is no such column, or none or several can be meant; the message lists the columns.
    """
    if name is not None:
        if name in columns:
            return name
        raise ValueError(f"The dataset has no column {name!r} for --{option}: {suggest(name, columns)}")
    if len(candidates) == 1:
        return candidates[0]
    remedy = f"pass --{option} with the one to use"
    if candidates:
        found = f"several {what.replace('column', 'columns')} ({', '.join(candidates)}; all"
    else:
        found = f"no {what} (its"
        remedy += ", or give a dataset that has one"
    raise ValueError(f"The dataset has {found} columns: {', '.join(columns)}): {remedy}.")


def _first_item(dataset: Any) -> Any:
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        if len(dataset) == 0:
            raise ValueError("The dataset is empty: give one with at least one image.")
        try:
            return dataset[0]
        except OSError:
            raise
        except Exception as error:
            raise reading_error(error) from error
    if not isinstance(dataset, Iterable):
        raise ValueError(f"A {type(dataset).__name__} is not a dataset: give one with items to index or iterate.")
    try:
        for item in dataset:
            return item
    except Exception as error:
        raise reading_error(error) from error
    raise ValueError("The dataset is empty: give one with at least one image.")


def image_of_item(item: Any, column: str | None) -> Any:
    """Return the image in an item of a dataset: a column of a dict, the first of a tuple, or the item itself.

    A list is taken for a tuple, unless it holds nothing but lists: then it is an image as nested lists.

    Example:
        >>> image_of_item(("cat.jpg", 3), None), image_of_item([[0, 255], [255, 0]], None)
        ('cat.jpg', [[0, 255], [255, 0]])
    """
    if isinstance(item, Mapping):
        return item.get(column)
    if isinstance(item, list) and item and all(isinstance(each, list) for each in item):
        return item
    if isinstance(item, tuple | list):
        return item[0] if len(item) else None
    return item
