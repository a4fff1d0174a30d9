"""Errors of writing in words: the path, the reason and the free space, whichever library has written."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..formatting import format_bytes

# what torch and safetensors say when a file cannot be written; they do not pass on the system's error
_CUT_SHORT = re.compile(
    r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed|I/O error|file write failed|iostream error"
)
_SYSTEM_ERROR = re.compile(r"(?:I/O error: )?([A-Z][a-z ]+) \(os error \d+\)")
_ALMOST_NOTHING = 1_000_000  # bytes


class WriteError(OSError):
    """Something cannot be written, as when the disk is full."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within this context, what a library raises because it cannot write is raised as a `WriteError`.

    Args:
        path: The file or folder that is written.

    Raises:
        WriteError: With the path, the reason and the free space, in one sentence.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        free = _free_space(path)
        reason = _reason(error, free)
        if reason is None:
            raise
        space = "the free space is not known" if free is None else f"{format_bytes(free)} are free"
        raise WriteError(f"{path} cannot be written ({reason}; {space}): make room, or use another folder.") from error


def _reason(error: Exception, free: int | None) -> str | None:
    """Why nothing could be written, or None if the error is another one."""
    if isinstance(error, OSError):
        # an error of a connection is not one of a file
        return None if isinstance(error, ConnectionError | TimeoutError) else error.strerror
    text = str(error)
    if found := _SYSTEM_ERROR.search(text):
        return found[1]
    if not _CUT_SHORT.search(text):
        return None
    is_full = free is not None and free < _ALMOST_NOTHING
    return os.strerror(errno.ENOSPC) if is_full else "only a part of the file was taken"


def _free_space(path: Path) -> int | None:
    try:
        existing = next(parent for parent in path.absolute().parents if parent.is_dir())
        return shutil.disk_usage(existing).free
    except (OSError, StopIteration):
        return None
