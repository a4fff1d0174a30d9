"""Locks: a file that one process at a time may hold, freed by any end of that process.

They are POSIX record locks (`fcntl.lockf`), which the operating system keeps:

- A lock ends with its process, killed or not. A process that was forked from it, such as a data worker, does not
  inherit the lock, so workers that outlive a killed trainer do not keep it (they would keep a `flock`).
- Other machines see them too on file systems that share them: NFSv4, Lustre, GPFS, CephFS. A machine that dies frees
  its locks there once its lease has run out, about a minute and a half on NFS.

A lock file is removed when its lock is freed; what a killed process leaves behind is taken over. As the system frees a
process's lock when any descriptor of the file is closed, only this module may open lock files.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .layout import LOCK

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_HELD_BY_ANOTHER = {errno.EACCES, errno.EAGAIN}
_MAX_HOLDER_BYTES = 1000
# Record locks do not keep the threads and trainers of one process apart: those that it holds, by process and file.
_held: set[tuple[int, Path]] = set()
_guard = threading.Lock()


class LockedError(ValueError):
    """Another process, or another part of this one, holds a lock."""


@contextmanager
def locked_run(folder: Path) -> Iterator[None]:
    """Hold the folder of a run, which is made if it does not exist, so that no second run can write into it.

    Raises:
        LockedError: If another run holds it.
        ValueError: If the folder cannot be made or written to.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made ({error.strerror}): give another output_dir.") from error
    try:
        with locked(folder / LOCK):
            yield
    except LockedError as error:
        raise LockedError(
            f"{folder} is in use by another run ({error}): wait until it ends, stop it, or give another output_dir."
        ) from None
    finally:
        for path in created:  # those that nothing was written into
            try:
                path.rmdir()
            except OSError:
                break


@contextmanager
def locked(path: Path, patience: float = 0) -> Iterator[None]:
    """Hold a lock file. Where locks are not supported, a warning is logged and nothing is held.

    Args:
        path: The lock file, in a folder that exists.
        patience: How many seconds to wait for another holder.

    Raises:
        LockedError: If another process holds it, with who does and since when.
        ValueError: If the file cannot be written.
    """
    until = time.monotonic() + patience
    while True:
        try:
            descriptor = _acquire(path)
            break
        except LockedError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.02)
    try:
        yield
    finally:
        _release(path, descriptor)


def _acquire(path: Path) -> int:
    """Take the lock and return the descriptor of its file, or raise LockedError."""
    key = _key(path)
    with _guard:
        if key in _held:
            raise LockedError(f"process {key[0]}, which is this one")
        while True:
            descriptor = _open(path)
            try:
                _lock(descriptor, path)
                current = _is_still(path, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            if current:
                break
            os.close(descriptor)  # its former holder has removed it meanwhile
        _held.add(key)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    holder = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
    with suppress(OSError):  # a full disk: the lock holds without its holder's name
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)  # Windows has neither pwrite nor pread
        os.write(descriptor, json.dumps(holder).encode())
    return descriptor


def _release(path: Path, descriptor: int) -> None:
    with _guard:
        is_still = _is_still(path, descriptor)
        if fcntl is None:  # Windows removes no file that is open
            os.close(descriptor)
        if is_still:
            with suppress(PermissionError):  # another process has it open
                path.unlink(missing_ok=True)
        if fcntl is not None:
            os.close(descriptor)
        _held.discard(_key(path))


def _key(path: Path) -> tuple[int, Path]:
    return os.getpid(), path.parent.resolve() / path.name


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        if path.is_symlink():  # never written through
            path.unlink(missing_ok=True)
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise ValueError(f"{path.parent} cannot be written to ({error.strerror}): give another folder.") from error


def _lock(descriptor: int, path: Path) -> None:
    """Lock an open file for this process, or raise LockedError."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "not on this system")
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD_BY_ANOTHER:
            raise LockedError(_holder(descriptor)) from None
        logger.warning(
            "The file system of %s has no locks (%s): make sure that nothing else writes there at the same time.",
            path.parent,
            error.strerror,
        )


def _holder(descriptor: int) -> str:
    """Who has written down that they hold a lock, in words."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        content = json.loads(os.read(descriptor, _MAX_HOLDER_BYTES))
        host, since = (str(content[name]) for name in ("host", "since"))
        if not (host + since).isprintable():
            raise ValueError
        return f"process {int(content['process'])} on {host}, since {since}"
    except (OSError, ValueError, KeyError, TypeError):  # being written at this moment
        return "another process"


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the path still names the open file."""
    try:
        there, here = path.lstat(), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
