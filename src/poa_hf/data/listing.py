"""What a folder holds: image files, shards, tables and what else, in a fixed order, through links and whatever names.

`folders` decides from it how the folder is read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

SHARD_SUFFIXES = {".parquet", ".arrow", ".tar", ".tar.gz", ".tgz"}
TABLE_SUFFIXES = {".jsonl", ".json", ".csv"}
ARCHIVE_SUFFIXES = {".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"}
_SYSTEM_NAMES = {"__macosx", "thumbs.db", "desktop.ini"}  # and all names that begin with a dot


@dataclass
class Listing:
    """The files of a folder, as paths relative to it with `/` between their parts, sorted.

    Args:
        root: The folder, as an absolute path.
        images: Files with the suffix of an image format that is read.
        shards: Parquet, Arrow and tar files.
        tables: JSON and CSV files.
        others: All other files.
        broken_links: Links that lead nowhere.
        unreadable: Folders that could not be listed, with the reasons.
    """

    root: str
    images: list[str] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    broken_links: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of all formats that are read (`formats.RASTER_FORMATS`), in lower case."""
    from PIL import Image

    from .formats import RASTER_FORMATS

    # MPO files are JPEG files with further views behind the first.
    return frozenset(s for s, name in Image.registered_extensions().items() if name in (*RASTER_FORMATS, "MPO"))


def list_folder(root: Path) -> Listing:
    """List a folder with all sub-folders. Hidden files and folders, and those that systems leave behind, are ignored.

    Links to files and folders are followed. A folder is read once: where it really lies, if that is within `root`, and
    else through the first link to it. So a loop of links ends.

    Args:
        root: The folder.

    Raises:
        ValueError: If the folder itself cannot be listed.
    """
    listing = Listing(os.path.abspath(root))
    seen: set[tuple[int, int]] = set()
    waiting, linked = [""], list[str]()
    while waiting or linked:
        if not waiting:
            linked.sort(key=_parts, reverse=True)
            waiting.append(linked.pop())
        folder = waiting.pop()
        try:
            status = os.stat(_join(listing.root, folder))
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(_join(listing.root, folder)) as entries:
                for entry in entries:
                    _sort_in(entry, f"{folder}/{entry.name}".lstrip("/"), listing, waiting, linked)
        except OSError as error:
            if not folder:
                raise ValueError(f"The folder {root} cannot be read ({error.strerror}): check its rights.") from error
            listing.unreadable[folder] = error.strerror or type(error).__name__
    for paths in (listing.images, listing.shards, listing.tables, listing.others, listing.broken_links):
        paths.sort(key=_parts)
    return listing


def kinds_of(paths: Iterable[str]) -> str:
    """Count files by suffix, the most frequent first.

    Example:
        >>> kinds_of(["a.txt", "b/c.TXT", "d.mp4", "LICENSE"])
        '2 .txt, 1 .mp4, 1 without a suffix'
    """
    counts = Counter(suffix_of(path) or "without a suffix" for path in paths)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def suffix_of(path: str) -> str:
    """Return the suffix of a file's name, in lower case."""
    suffix = os.path.splitext(path)[1].lower()
    return ".tar.gz" if suffix == ".gz" and path.lower().endswith(".tar.gz") else suffix


def shown(path: str) -> str:
    """Return a path as text that can be printed and stored, also where its bytes are no UTF-8."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _sort_in(entry: os.DirEntry[str], path: str, listing: Listing, waiting: list[str], linked: list[str]) -> None:
    name = entry.name.lower()
    if name.startswith(".") or name in _SYSTEM_NAMES:
        return
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # such as a link to itself
        is_folder = is_file = False
    if is_folder:
        (linked if entry.is_symlink() else waiting).append(path)
    elif not is_file:
        if entry.is_symlink():
            listing.broken_links.append(path)
        else:  # sockets, pipes and devices
            listing.others.append(path)
    elif (suffix := suffix_of(name)) in image_suffixes():
        listing.images.append(path)
    elif suffix in SHARD_SUFFIXES:
        listing.shards.append(path)
    elif suffix in TABLE_SUFFIXES:
        listing.tables.append(path)
    else:
        listing.others.append(path)


def _parts(path: str) -> list[str]:
    return path.split("/")


def _join(root: str, path: str) -> str:
    return os.path.join(root, path) if path else root
