"""The column of a dataset that holds the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...data.columns import chosen_column

# Label columns of datasets that declare no classes; WebDataset names fields by file extension.
LABEL_COLUMNS = ("label", "labels", "cls", "class", "target")


def find_label_column(dataset: Any, name: str | None = None) -> str | None:
    """Return the name of the column that holds the classes; None if the dataset's items are (image, label) tuples.

    Args:
        dataset: The dataset. A column of type `datasets.ClassLabel` has precedence over the common names.
        name: What the user asked for, if anything.

    Raises:
        ValueError: If there is no such column, several could be meant, or its type is none of labels (`ClassLabel`,
            whole numbers or strings, one per image).
    """
    import datasets

    features, columns = getattr(dataset, "features", None), getattr(dataset, "column_names", None)
    if not columns:
        first = next(iter(dataset))
        if not isinstance(first, Mapping):
            if isinstance(first, tuple | list) and len(first) > 1:
                return None
            raise ValueError("The dataset's items have no labels: give (image, label) items or a label column.")
        columns = list(first)
    candidates = [column for column in columns if features and isinstance(features[column], datasets.ClassLabel)]
    candidates = candidates or [column for column in columns if column in LABEL_COLUMNS]
    name = chosen_column(columns, candidates, name, "label_column", "label column")
    feature = features[name] if features else None
    if feature is not None and not isinstance(feature, datasets.ClassLabel):
        kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
        if not kind.startswith(("int", "uint", "string", "large_string", "bool")):
            raise ValueError(
                f"The column {name!r} is of type {kind}, but labels are whole numbers or strings: pass --label_column "
                "with another column."
            )
    return name
