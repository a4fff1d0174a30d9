"""Metadata beside image files: `metadata.csv`, `.jsonl` or `.parquet` with a column `file_name`, as `datasets` has it.

Follows `listing`; `folders` makes the other columns.
"""

from __future__ import annotations

import logging
import os
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..formatting import one_line
from .columns import DEPTH_COLUMNS, MASK_COLUMNS
from .listing import shown, suffix_of

logger = logging.getLogger(__name__)

METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}
FILE_NAME = "file_name"


def is_metadata(path: str) -> bool:
    """Whether a file is one of metadata by its name."""
    return posixpath.basename(path).lower() in METADATA


@dataclass(frozen=True)
class Metadata:
    """The metadata beside the images of a folder.

    Args:
        root: The folder.
        name: What messages call the folder.
        files: The files of metadata, relative to the folder.
        table: Their rows together, as an Arrow table without the names of files.
        numbers: The row of each image by its path, relative to the folder.
        linked: By column, the path of the file that each row names beside its image, relative to the folder; None where
            it names none.
    """

    root: str
    name: str
    files: Sequence[str]
    table: Any
    numbers: Mapping[str, int]
    linked: Mapping[str, Sequence[str | None]]

    @property
    def linked_files(self) -> set[str]:
        """All files that rows name beside their images, relative to the folder."""
        return {path for paths in self.linked.values() for path in paths if path is not None}

    def columns(self, images: Sequence[str]) -> dict[str, Any]:
        """Return the columns as Arrow arrays, with a row for each image, which is null where there is none.

        Columns of linked files are as `datasets.Image` takes them.

        Args:
            images: The images, relative to the folder.
        """
        import pyarrow as pa

        numbers = [self.numbers.get(shown(path)) for path in images]
        if None in numbers:
            logger.warning(
                "Folder %s: %d images are not in %s (first: %s): they are read, without labels.",
                self.name,
                numbers.count(None),
                shown(self.files[0]) if len(self.files) == 1 else "the metadata files",
                shown(images[numbers.index(None)]),
            )
        missing = [path for path in self.numbers if not os.path.exists(os.path.join(self.root, path))]
        if missing:
            logger.warning(
                "Folder %s: %d files of the metadata do not exist (first: %s).", self.name, len(missing), missing[0]
            )
        taken = self.table.take(pa.array(numbers, pa.int64()))
        columns = {column: taken[column].combine_chunks() for column in taken.column_names}
        for column, paths in self.linked.items():
            chosen = [None if number is None else paths[number] for number in numbers]
            absolute = [None if path is None else os.path.join(self.root, path) for path in chosen]
            columns[column] = pa.StructArray.from_arrays(
                [pa.array([None] * len(absolute), pa.binary()), pa.array(absolute, pa.string())], ["bytes", "path"]
            )
        return columns


def read_metadata(root: str, files: Sequence[str], name: str) -> Metadata:
    """Read the metadata of a folder.

    Columns such as `mask_file_name` name a file for each image, as in `datasets`: they become columns of images, here
    `mask`, if they are called like masks or depth maps.

    Args:
        root: The folder.
        files: The files of metadata, relative to the folder; each names images relative to its own place.
        name: What messages call the folder.

    Raises:
        ValueError: For a file that cannot be read, that has no column `file_name`, one called `image` or two of one
            name, or that has other types of columns than another one; for an image with two different rows.
    """
    import pyarrow as pa

    tables = [_read(root, path) for path in files]
    columns = {f"{each}_{FILE_NAME}": each for each in (*MASK_COLUMNS, *DEPTH_COLUMNS)}
    found = list(dict.fromkeys(each for table in tables for each in table.column_names if each in columns))
    rows: dict[str, int] = {}
    linked: dict[str, list[str | None]] = {columns[each]: [] for each in found}
    start = 0
    for path, table in zip(files, tables, strict=True):
        folder = posixpath.dirname(path)
        for number, file_name in enumerate(table[FILE_NAME].to_pylist(), start):
            first = rows.setdefault(_place(folder, file_name), number)
            if first != number and _row(tables, first) != _row(tables, number):
                place = os.path.join(root, path)
                raise ValueError(f"{place} names {file_name} a second time, with other values: leave one row of it.")
        for each in found:
            values = table[each].to_pylist() if each in table.column_names else [None] * len(table)
            linked[columns[each]] += [_place(folder, value) if value else None for value in values]
        start += len(table)
    try:
        table = pa.concat_tables(tables, promote_options="permissive").drop_columns([FILE_NAME, *found])
    except pa.ArrowException as error:
        raise ValueError(f"The metadata files of {name} do not go together ({one_line(error)}): mend them.") from error
    return Metadata(root, name, files, table, rows, linked)


def _place(folder: str, file_name: Any) -> str:
    return posixpath.normpath(posixpath.join(folder, str(file_name)))


def _row(tables: Sequence[Any], number: int) -> dict[str, str]:
    """Return the values of one row of all tables, as text in which missing numbers are alike."""
    for table in tables:
        if number < len(table):
            (row,) = table.drop_columns([FILE_NAME]).slice(number, 1).to_pylist()
            return {column: str(value) for column, value in row.items()}
        number -= len(table)
    raise IndexError(f"row {number}")


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
            content = file.read()
        if suffix_of(path) != ".parquet":
            content.decode()
        table = readers[suffix_of(path)](pa.BufferReader(content))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{place} is not in UTF-8 (line {line}): save it in this encoding.") from error
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{place} cannot be read ({one_line(error)}): mend it, or move it away.") from error
    if twice := [column for column, count in Counter(table.column_names).items() if count > 1]:
        raise ValueError(f"{place} has {twice[0]!r} as the name of several columns: rename all but one.")
    if FILE_NAME not in table.column_names:
        raise ValueError(
            f"{place} has no column {FILE_NAME!r} (its columns: {', '.join(table.column_names)}): add one with the "
            "images' paths, or give the file another name."
        )
    if "image" in table.column_names:
        raise ValueError(f"{place} has a column 'image', which is the name of the images' column: rename it.")
    return table
