"""Files of a stream that end early, break in the middle, are missing, or are not what their names say.

The rule for training: rows before the damage are used, the rest of that file (of a parquet file: of that row group) is
left out, in every epoch alike. An evaluation refuses such files, since its numbers would be those of other images.

Follows `shards`, which reads the files.
"""

from __future__ import annotations

import glob
import gzip
import logging
import lzma
import tarfile
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from ..formatting import capitalised, listed, one_line
from .errors import UnreadableData, reading_error
from .folders import LOADERS
from .formats import UndecodableImage
from .listing import suffix_of

_DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
_PARQUET_LOG = logging.getLogger("datasets.packaged_modules.parquet.parquet")
ROW_GROUP = " (row group "  # between the names of a parquet file and of its row group
_TRIED = 100  # files that are opened one by one, to name the one that cannot be
_BLOCK = 512  # bytes; an archive is made of such blocks, and ends with at least two of zeros
# What libraries say of files that are sound, but not as `datasets` reads them: what is the matter, and what to do.
_FAULTS = (
    (
        "Must pass at least one table",
        "holds no file with a suffix",
        "name its members as in 0001.jpg, or take it out of the dataset",
    ),
    (
        "don't share the same prefix or the same types",
        "begins with samples of several kinds of files",
        "give each sample the same ones, such as .jpg and .cls, or unpack it into a folder of images",
    ),
    ("Duplicate field", "has one name twice", "give its members different names"),
    ("invalid literal for int() with base 10: b'", "has a .cls that is no whole number", "call such members .txt"),
    ("incompatible types", "has a field of several types", "write it as one type in all rows"),
    ("StopIteration", "holds no rows", "give one that holds some"),
    ("corresponds to no data", "holds no rows", "give one that holds some"),
)
_LFS, _PAGE = b"version https://git-lfs", (b"<!doctype", b"<html")


class DamagedShard(UnreadableData):
    """A file of a stream is damaged. The rows before the damage have been read.

    Args:
        files: The file, or those that it may be.
        rows: The number of rows that were read of it; None if it was not opened to be read.
        cause: What the library that reads it said.
    """

    def __init__(self, files: list[str], rows: int | None, cause: str) -> None:
        self.files, self.rows, self.cause = files, rows, cause
        kind = next((kind for kind in map(_foreign_kind, files[:1]) if kind), None)
        read = "" if rows is None else f" after {rows} rows"
        what, remedy = f"is damaged{read}", "download or write it again, or take it out of the dataset"
        if kind is None:
            what, remedy = fault_of(cause) or (what, remedy)
        elif "LFS" in kind:
            remedy = 'run "git lfs pull" in its repository'
        self.what = f"{named(files)} {f'is {kind}' if kind else f'{what} ({cause})'}"
        super().__init__(f"{capitalised(self.what)}: {remedy}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return DamagedShard, (self.files, self.rows, self.cause)


class _StrictTarInfo(tarfile.TarInfo):
    """Refuses what `tarfile` takes for the end of an archive without a word."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":
                _check_rest(archive)
            elif archive.offset > 0:  # `tarfile` itself refuses what is wrong from the start
                raise tarfile.ReadError(f"{one_line(error)} at byte {archive.offset} instead of an end") from None
            raise


def _check_rest(archive: tarfile.TarFile) -> None:
    """Raise `ReadError` if anything but zeros follows the block of zeros that was read last."""
    assert archive.fileobj is not None
    while block := archive.fileobj.read(_BLOCK):
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"more data after a block of zeros at byte {archive.offset}")


@contextmanager
def strict_archives() -> Iterator[None]:
    """Let `tarfile` raise `ReadError` for archives without an end, while it reads for `datasets`.

    `datasets` logs some errors before it raises them; these are not shown a second time.
    """
    before = tarfile.TarFile.tarinfo, _PARQUET_LOG.disabled
    tarfile.TarFile.tarinfo, _PARQUET_LOG.disabled = _StrictTarInfo, True
    try:
        yield
    finally:
        tarfile.TarFile.tarinfo, _PARQUET_LOG.disabled = before


def shard_error(error: Exception, files: list[str], rows: int) -> Exception:
    """Return what to raise for an exception that came up while a shard was read.

    Args:
        error: The exception.
        files: The files of the shard.
        rows: The number of rows that were read of it.
    """
    import datasets

    if isinstance(error, UndecodableImage):
        place = f"row {rows}{' of ' + named(files) if files else ''}"
        return UnreadableData(
            f"A function of map or filter is given an image that cannot be decoded ({one_line(error)}), in a batch "
            f"after {place}: use .decode(False) before it, or leave out batched."
        )
    if isinstance(error, UnreadableData) or not files:
        return reading_error(error)
    if "packaged_modules" in _places(error) and (fault := fault_of(error)):  # no function of the user's
        return UnreadableData(f"{capitalised(named(files))} {fault[0]} ({one_line(error)}): {fault[1]}.")
    if is_damage(error):
        if len(files) > 1 and (empty := [file for file in files if holds_no_rows(file)]):
            return UnreadableData(
                f"{capitalised(named(empty))} holds no rows, which ends a stream that is read in its own order: "
                "take it out of the dataset."
            )
        return DamagedShard(files, rows, one_line(error))
    file = capitalised(named(files))
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, FileNotFoundError) or status == 404:
        return UnreadableData(
            f"{file} is missing, although the dataset was opened with it: restore it, or start a new run without it."
        )
    if isinstance(error, datasets.table.CastError):
        found, wanted = listed(sorted(error.table_column_names)), listed(sorted(error.requested_column_names))
        return UnreadableData(f"{file} has the columns {found} where the dataset has {wanted}: give files of one kind.")
    if isinstance(error, OSError):
        return UnreadableData(
            f"{file} could not be read after {rows} rows ({one_line(error)}): check the disk or the connection, and "
            "resume the run."
        )
    told = reading_error(error)
    return UnreadableData(f"{one_line(told)} ({named(files)}, after {rows} rows).") if told is not error else error


def fault_of(error: Exception | str) -> tuple[str, str] | None:
    """Say what `datasets` does not read in a sound file, and what to do about it; None for any other error."""
    text = one_line(error)
    return next(((what, remedy) for words, what, remedy in _FAULTS if words in text), None)


def _places(error: Exception) -> str:
    return "\n".join(frame.filename for frame in traceback.extract_tb(error.__traceback__))


def is_damage(error: Exception) -> bool:
    """Whether an exception means that a file's content is broken, rather than that it could not be fetched."""
    import pyarrow as pa

    # a function of the user's may raise the same
    if "packaged_modules" not in _places(error):
        return False
    if isinstance(error, (*_DAMAGE, gzip.BadGzipFile, pa.ArrowInvalid)):
        return True
    # Arrow's own OSErrors, on broken pages, have neither a type of their own nor a number
    return type(error) is OSError and error.errno is None


def holds_no_rows(file: str) -> bool:
    """Whether a parquet file, or the row group that is named behind it, is sound but empty (`datasets` refuses it)."""
    import fsspec
    import pyarrow.parquet as parquet

    path, _, group = file.removesuffix(")").partition(ROW_GROUP)
    if not path.lower().endswith(".parquet"):
        return False
    try:
        with fsspec.open(path) as opened:
            footer = parquet.read_metadata(opened)
    except Exception:
        return False
    return bool((footer.row_group(int(group)) if group else footer).num_rows == 0)


def named(files: list[str]) -> str:
    """Name a shard's file, or the files that one of them is."""
    return f"the file {files[0]}" if len(files) == 1 else f"one of the files {listed(files, 4)}"


def _foreign_kind(path: str) -> str | None:
    """Say what a local file is that is no data at all; None for others."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError:
        return None
    if not start:
        return "empty (0 bytes)"
    if start.startswith(_LFS):
        return "a Git LFS pointer instead of the data"
    return "a web page instead of the data" if start.lstrip().lower().startswith(_PAGE) else None


def sound_features(files: list[str]) -> Any:
    """Return the features of the first file that can be opened, for a dataset whose first file cannot.

    Raises:
        DamagedShard: If there is none; it names the first file.
    """
    first: DamagedShard | None = None
    for file in files:
        try:
            return _opened(file).features
        except Exception as error:
            if not is_damage(error):
                raise
            first = first or DamagedShard([file], None, one_line(error))
    assert first is not None
    raise first


def opening_error(error: Exception, name: str, files: list[str]) -> ValueError:
    """Return what to raise where local files cannot be opened; it names the first that cannot be opened by itself.

    Args:
        error: What was raised for all of them.
        name: What messages call the dataset.
        files: The files.
    """
    subject = f"The dataset {name}"
    for file in files[:_TRIED]:
        try:
            next(iter(_opened(file)), None)
        except Exception as alone:
            subject, error = capitalised(named([file])), alone
            break
    what, remedy = fault_of(error) or ("could not be read", "mend it, or take it out of the dataset")
    return ValueError(f"{subject} {what} ({one_line(error)}): {remedy}.")


def _opened(file: str) -> Any:
    """Open a local file of a dataset by itself, as a stream."""
    import datasets

    with strict_archives():
        return datasets.load_dataset(
            LOADERS[suffix_of(file)], data_files=[glob.escape(file)], split="train", streaming=True
        )
