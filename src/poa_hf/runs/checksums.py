"""Checksums of a saved model or checkpoint: the size and SHA-256 of each of its files, in `checksums.json`.

The process that finishes a folder computes them before the folder gets its name, from what the operating system still
holds in memory. SHA-256 is what `sha256sum` prints and what the Hub shows for a file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Container, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from .atomic import write_json
from .json_files import read_object
from .layout import CHECKSUMS

# Files up to this size are always compared; larger ones, the weights and the optimizer's state, if asked for.
SMALL = 1 << 20
_THREADS = 4
_DIGEST = re.compile("[0-9a-f]{64}")


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files in a folder and its sub-folders."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / CHECKSUMS]
    with ThreadPoolExecutor(_THREADS) as pool:  # hashing lets other threads run
        digests = list(pool.map(_digest, paths))
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    write_json(folder / CHECKSUMS, {"files": files})


def has_checksums(folder: Path) -> bool:
    """Whether a folder has checksums; what earlier versions have written has none."""
    return (folder / CHECKSUMS).exists()


def first_difference(
    folder: Path, thorough: bool, needed: Iterable[str] = (), only: Container[str] | None = None
) -> str | None:
    """Compare a folder with its checksums.

    Args:
        folder: A folder with checksums.
        thorough: Whether to read large files too; otherwise only their sizes are compared.
        needed: Names of files that must have a checksum.
        only: Names of the files to compare; all by default.

    Returns:
        The first difference in words, such as `optimizer.bin has 3 bytes instead of 8`, or None.
    """
    try:
        expected = _read(folder)
    except ValueError as error:
        return str(error).removeprefix(f"{folder}/").rstrip(".")
    if unlisted := sorted(set(needed) - expected.keys()):
        return f"{CHECKSUMS} does not list {unlisted[0]}"
    to_read = []
    for name, (size, digest) in expected.items():
        path = folder / name
        if only is not None and name not in only:
            continue
        if not path.is_file():
            return f"it lacks {name}"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found} bytes instead of {size}"
        if thorough or size <= SMALL:
            to_read.append((name, digest))
    with ThreadPoolExecutor(_THREADS) as pool:
        checked = pool.map(lambda item: _difference(folder, *item), to_read)
        return next((difference for difference in checked if difference), None)


def _difference(folder: Path, name: str, expected: str) -> str | None:
    try:
        same = _digest(folder / name) == expected
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None if same else f"{name} has another content than was written, by its checksum"


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path) -> dict[str, tuple[int, str]]:
    """Return size and digest by file name, or raise ValueError."""
    path = folder / CHECKSUMS
    files = read_object(path).get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{path} holds no checksums.")
    checksums = {}
    for name, entry in files.items():
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or not inside.parts or not name.isprintable():
            raise ValueError(f"{path} lists {name!r}, which is no file of the folder.")
        size, digest = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if type(size) is not int or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError(f"{path} has no size and SHA-256 for {name!r}.")
        checksums[name] = size, digest
    return checksums
