"""Atomic writing: a file or folder is complete under its name, or absent.

What is being written lies beside its target under a name that begins with `UNFINISHED`. It is flushed to the disk
before it is renamed, so that a power failure does not leave a complete-looking file without content. What a crash
leaves behind is removed by `remove_leftovers`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .writing import writing

UNFINISHED = ".unfinished-"  # being written or deleted: never read
# what a system may find out about a file only when it is flushed; other errors mean that it cannot flush
_NOT_ON_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 with line feeds, replacing one that exists."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file, ended by a line feed, replacing one that exists."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, replacing one that exists; a symbolic link is replaced, not followed."""
    aside = path.with_name(UNFINISHED + path.name)
    aside.unlink(missing_ok=True)
    try:
        with writing(path), open(aside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _flush(path.parent)


@contextmanager
def written_folder(
    target: Path, is_main: bool = True, wait_for_everyone: Callable[[], object] = lambda: None
) -> Iterator[Path]:
    """Yield an empty folder to write into, which becomes `target` when the block ends without an error.

    An existing folder of that name is replaced. Several processes may write together: all of them enter and leave the
    block, and the main one makes and renames the folder.

    Args:
        target: The folder to write.
        is_main: Whether this is the main process.
        wait_for_everyone: A barrier of the processes.

    Raises:
        WriteError: If the disk is full, or the folder cannot be written for another reason.
    """
    with unfinished_folder(target, is_main, wait_for_everyone) as folder:
        yield folder
    if is_main:
        old = target.with_name(f"{UNFINISHED}deleted-{target.name}")
        if target.is_symlink() or target.exists():
            delete(old)
            target.rename(old)
        folder.rename(target)
        _flush(target.parent)
        delete(old)
    wait_for_everyone()


@contextmanager
def unfinished_folder(
    target: Path, is_main: bool = True, wait_for_everyone: Callable[[], object] = lambda: None
) -> Iterator[Path]:
    """Yield an empty folder beside `target` to write into, and flush its content to the disk when the block ends.

    Its files then have the usual mode of new files (some libraries make theirs readable by their owner only). The
    folder keeps its unfinished name, and is removed after an error.

    Args:
        target: The folder beside which to write.
        is_main: Whether this is the main process.
        wait_for_everyone: A barrier of the processes.
    """
    folder = target.with_name(UNFINISHED + target.name)
    if is_main:
        with writing(target):
            delete(folder)
            folder.mkdir(parents=True)
    wait_for_everyone()
    try:
        with writing(target):
            yield folder
            for path in folder.rglob("*"):
                _flush(path)
        wait_for_everyone()
        if is_main:
            _use_default_mode(folder)
            _flush(folder)
    except BaseException:
        if is_main:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def move_file(source: Path, target: Path) -> None:
    """Rename a file that is on the disk already, replacing one that exists."""
    source.replace(target)
    _flush(target.parent)


def delete(path: Path) -> None:
    """Remove a file or folder, if it exists; a crash in between leaves nothing under its name."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith(UNFINISHED):
        doomed = path.with_name(f"{UNFINISHED}deleted-{path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        path = path.rename(doomed)
    shutil.rmtree(path)


def remove_leftovers(folder: Path) -> None:
    """Remove what a crash while writing or deleting has left in a folder."""
    for path in folder.glob(UNFINISHED + "*"):
        delete(path)


def _use_default_mode(folder: Path) -> None:
    """Give all files below a folder the mode of a new file."""
    # found by making a file: reading the umask changes it for a moment, for other threads too
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def _flush(path: Path) -> None:
    """Make sure that a file's content, or a folder's entries, are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # some file systems cannot open a folder
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _NOT_ON_THE_DISK:
            raise
    finally:
        os.close(descriptor)
