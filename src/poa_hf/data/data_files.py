"""Which files of a dataset are read: patterns such as `data/*.parquet`, each for a split, and those of a folder.

Follows `listing`, which lists a folder; `sources` opens the files.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .listing import Listing


def patterns_by_split(patterns: Sequence[str]) -> dict[str, list[str]]:
    """Sort patterns by their splits: `test=data/b*.parquet` is of the split test, one without a split of train.

    >>> patterns_by_split(["a.parquet", "test=b.parquet"])
    {'train': ['a.parquet'], 'test': ['b.parquet']}
    """
    found: dict[str, list[str]] = {}
    for pattern in patterns:
        split, equals, rest = pattern.partition("=")
        # year=2020/a.parquet is a path
        split, rest = (split, rest) if equals and split in ("train", "validation", "test") else ("train", pattern)
        found.setdefault(split, []).append(rest)
    return found


def select_files(listing: Listing, patterns: Sequence[str], name: str) -> tuple[Listing, dict[str, set[str]]]:
    """Return the files of a folder that patterns name, and their paths by split.

    A pattern is a path or a glob, relative to the folder or absolute; a folder stands for all files in it.

    Args:
        listing: The folder's files.
        patterns: What `patterns_by_split` takes.
        name: What messages call the folder.

    Raises:
        ValueError: If a pattern names no file of the folder.
    """
    files = [*listing.images, *listing.shards, *listing.tables, *listing.others]
    by_split: dict[str, set[str]] = {}
    for split, texts in patterns_by_split(patterns).items():
        chosen = by_split.setdefault(split, set())
        for text in texts:
            found = _matches(listing.root, text, files)
            if not found:
                raise ValueError(f"data_files {text!r} is no file of {name}: give a path or pattern within the folder.")
            chosen |= found
    read = set().union(*by_split.values())
    kinds: dict[str, Any] = {
        kind: [p for p in getattr(listing, kind) if p in read] for kind in ("images", "shards", "tables", "others")
    }
    return dataclasses.replace(listing, **kinds, broken_links=[], unreadable={}), by_split


def _matches(root: str, pattern: str, files: Sequence[str]) -> set[str]:
    pattern = os.path.expanduser(pattern)
    # a name with brackets is a pattern that does not match itself
    found = {*glob.glob(pattern, root_dir=root, recursive=True), pattern}
    wanted = {Path(os.path.relpath(os.path.join(root, path), root)).as_posix() for path in found}
    if "." in wanted:
        return set(files)
    return {path for path in files if path in wanted or not wanted.isdisjoint(_folders(path))}


def _folders(path: str) -> list[str]:
    """The folders that a file lies in: those of `a/b/c.jpg` are `a` and `a/b`."""
    return ["/".join(path.split("/")[: depth + 1]) for depth in range(path.count("/"))]


def as_arguments(patterns: Sequence[str] | None) -> Mapping[str, list[str]] | None:
    """Return patterns as `datasets.load_dataset` takes them."""
    return None if not patterns else patterns_by_split(patterns)
