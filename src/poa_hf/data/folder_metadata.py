"""Metadata beside image files: `metadata.csv`, `.jsonl` or `.parquet` with a column `file_name`, as `datasets` has it.

Follows `listing`; `folders` makes the other columns.
"""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Sequence
from typing import Any

from ..formatting import one_line
from .listing import shown, suffix_of

logger = logging.getLogger(__name__)

METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
FILE_NAME = "file_name"


def is_metadata(path: str) -> bool:
    """Whether a file is one of metadata by its name."""
    return posixpath.basename(path).lower() in METADATA


def metadata_columns(root: str, files: Sequence[str], images: Sequence[str], name: str) -> dict[str, Any]:
    """Return the columns of the metadata as Arrow arrays, with a row for each image, which is null where there is none.

    Args:
        root: The folder.
        files: The files of metadata, relative to the folder; each names images relative to its own place.
        images: The images, relative to the folder.
        name: What messages call the folder.

    Raises:
        ValueError: For a file that cannot be read, that has no column `file_name`, or one called `image`, or that has
            other types of columns than another one.
    """
    import pyarrow as pa

    tables = [_read(root, path) for path in files]
    rows: dict[str, int] = {}
    start = 0
    for path, table in zip(files, tables, strict=True):
        for number, file_name in enumerate(table[FILE_NAME].to_pylist(), start):
            rows[posixpath.normpath(posixpath.join(posixpath.dirname(path), str(file_name)))] = number
        start += len(table)
    try:
        table = pa.concat_tables(tables, promote_options="permissive").drop_columns([FILE_NAME])
    except pa.ArrowException as error:
        raise ValueError(f"The metadata files of {name} do not go together ({one_line(error)}): mend them.") from error
    numbers = [rows.get(shown(path)) for path in images]
    if None in numbers:
        first = shown(images[numbers.index(None)])
        logger.warning(
            "Folder %s: %d images are not in %s (first: %s): they are read, without labels.",
            name,
            numbers.count(None),
            shown(files[0]) if len(files) == 1 else "the metadata files",
            first,
        )
    missing = [path for path in rows if not os.path.exists(os.path.join(root, path))]
    if missing:
        logger.warning("Folder %s: %d files of the metadata do not exist (first: %s).", name, len(missing), missing[0])
    taken = table.take(pa.array(numbers, pa.int64()))
    return {column: taken[column].combine_chunks() for column in taken.column_names}


def _read(root: str, path: str) -> Any:
    """Read one file as an Arrow table."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    readers = {
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
        ".parquet": pyarrow.parquet.read_table,
    }
    place = os.path.join(root, path)
    try:
        with open(place, "rb") as file:
            table = readers[suffix_of(path)](file)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{place} cannot be read ({one_line(error)}): mend it, or move it away.") from error
    if FILE_NAME not in table.column_names:
        raise ValueError(
            f"{place} has no column {FILE_NAME!r} (its columns: {', '.join(table.column_names)}): add one with the "
            "images' paths, or give the file another name."
        )
    if "image" in table.column_names:
        raise ValueError(f"{place} has a column 'image', which is the name of the images' column: rename it.")
    return table
