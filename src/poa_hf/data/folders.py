"""A folder as a dataset: which of its files are read, and what their split and class are.

- Image files are read from all sub-folders, whatever their names, unless the folder is one of shards with a few
  pictures beside them.
- The folders on top are splits if all of those that hold images have names of splits (`SPLITS`), and no image lies
  beside them.
- The class of an image is the folder on top that it lies in, or the one on top of its split, at any depth below.

Follows `listing`, which lists the files; `folder_metadata` reads a `metadata.csv` beside images.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any
from urllib.parse import unquote_to_bytes

from .folder_metadata import is_metadata, read_metadata
from .listing import ARCHIVE_SUFFIXES, Listing, kinds_of, shown, suffix_of
from .splits import split_ranges

logger = logging.getLogger(__name__)

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
SYSTEM_PATHS = type(PurePath())
FEW_PICTURES = 10  # per shard: with more of them, it is the shards that lie beside the images
LOADERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset", ".json": "json", ".jsonl": "json"}
LOADERS |= {".csv": "csv", ".tar.gz": "webdataset", ".tgz": "webdataset"}


def holds_images(listing: Listing) -> bool:
    """Whether a folder is one of image files: it has more than `FEW_PICTURES` of them for each shard."""
    shards = [path for path in listing.shards if not is_metadata(path)]
    return len(listing.images) > FEW_PICTURES * len(shards)


def open_images(listing: Listing, name: str, split: str, by_split: Mapping[str, Collection[str]] | None = None) -> Any:
    """Return a split of a folder of images, as a `datasets.Dataset` of the files' paths.

    It has the columns `image` and, if there are class folders, `label`, which is None outside of them. With metadata
    beside the images, its columns take the place of the labels.

    Args:
        listing: The folder's files.
        name: What messages call the folder.
        split: A split, or slices of splits as `datasets` writes them, such as `train[:80%]`.
        by_split: The images of each split, if the user names them; else folders on top say which are of which split.

    Raises:
        MissingSplit: If the folder has no such split.
        ValueError: For metadata that cannot be read.
    """
    import datasets
    import pyarrow as pa

    metadata_files = [path for path in (*listing.tables, *listing.shards) if is_metadata(path)]
    metadata = read_metadata(listing.root, metadata_files, name) if metadata_files else None
    # masks that the metadata names beside the images are no images themselves
    masks = metadata.linked_files if metadata is not None else set()
    images = [path for path in listing.images if shown(path) not in masks]
    if not images:
        raise ValueError(f"The folder {name} holds only files that its metadata names beside images: add the images.")
    splits = _splits_of_images(images) if by_split is None else _named_splits(images, by_split)
    ranges = split_ranges(split, {each: len(paths) for each, paths in splits.items()}, name)
    chosen = [path for each, start, stop in ranges for path in splits[each][start:stop]]
    nested = _are_in_split_folders(images)
    columns: dict[str, Any] = {"image": _image_column(listing.root, chosen)}
    features = datasets.Features(image=datasets.Image())
    if metadata is not None:
        found = metadata.columns(chosen)
        columns |= found
        schema = pa.schema([(column, values.type) for column, values in found.items() if column not in metadata.linked])
        features.update(datasets.Features.from_arrow_schema(schema))
        features.update({column: datasets.Image() for column in metadata.linked})
    elif class_names := sorted({c for path in images if (c := _class_of(path, nested)) is not None}):
        numbers: dict[str | None, int | None] = {each: number for number, each in enumerate(class_names)}
        numbers[None] = None
        columns["label"] = pa.array([numbers[_class_of(path, nested)] for path in chosen], pa.int64())
        features["label"] = datasets.ClassLabel(names=class_names)
    info = datasets.DatasetInfo(features=features, homepage=Path(listing.root).as_uri(), splits=_split_infos(splits))
    _say_what_is_left_out(
        listing,
        name,
        f"{len(images)} images",
        [path for path in (*listing.shards, *listing.tables, *listing.others) if not is_metadata(path)],
    )
    return datasets.Dataset.from_dict(columns, features=features, info=info, split=datasets.NamedSplit(split))


def folder_of_images(dataset: Any) -> str | None:
    """Return the folder that a dataset was made of by `open_images`; None for all others."""
    homepage = getattr(getattr(dataset, "info", None), "homepage", None) or ""
    # Where datasets of several folders are joined, there are several.
    if not homepage.startswith("file://") or "\n" in homepage:
        return None
    return path_of_uri(homepage)


def path_of_uri(uri: str, paths: type[PurePath] = SYSTEM_PATHS) -> str:
    """Return the path that `Path.as_uri` made an address of.

    >>> print(path_of_uri("file:///C:/my%20photos", PureWindowsPath))
    C:\\my photos

    Args:
        uri: The address.
        paths: The system's kind of paths.
    """
    path = os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))
    if issubclass(paths, PureWindowsPath):  # /C:/photos, or server/share/photos
        path = path.removeprefix("/") if path.startswith("/") else f"//{path}"
    return str(paths(path))


def path_in_folder(path: str, folder: str | None, paths: type[PurePath] = SYSTEM_PATHS) -> str:
    """Return an image's path relative to the folder of its dataset, or as it is if it lies elsewhere.

    A relative path has forward slashes on every system, so that the same image has the same name.

    Args:
        path: The path of the image.
        folder: The folder of its dataset; None if it is not known.
        paths: The system's kind of paths.
    """
    if folder is None or not paths(path).is_relative_to(shown(folder)):
        return path
    return paths(path).relative_to(shown(folder)).as_posix()


def choose_shards(
    listing: Listing, name: str, by_split: Mapping[str, Collection[str]] | None = None
) -> tuple[str, dict[str, list[str]]]:
    """Return the loader of `datasets` for a folder of shards or tables, and their absolute paths by split.

    The most frequent kind of file is read. The files are splits if the names of all of them say so; else all are the
    split `train`.

    Args:
        listing: The folder's files.
        name: What messages call the folder.
        by_split: The files of each split, if the user names them.

    Raises:
        ValueError: If the folder has neither shards nor tables.
    """
    candidates = listing.shards or listing.tables
    if not candidates:
        archives = [path for path in listing.others if suffix_of(path) in ARCHIVE_SUFFIXES]
        held = kinds_of([*listing.others, *listing.broken_links])
        advice = "unpack its archives" if archives else "give one that does"
        raise ValueError(
            f"The folder {name} holds no images, parquet files or tar archives{f' ({held})' if held else ''}: {advice}."
        )
    order = list(LOADERS)
    loaders = [LOADERS[suffix_of(path)] for path in candidates]
    loader = max(LOADERS.values(), key=lambda each: (loaders.count(each), -order.index(_suffix(each))))
    files = [path for path, each in zip(candidates, loaders, strict=True) if each == loader]
    read = set(files)
    rest = [
        path
        for path in (*listing.images, *listing.shards, *listing.tables, *listing.others)
        if path not in read and path.lower() != "readme.md"
    ]
    _say_what_is_left_out(listing, name, kinds_of(files), rest)
    splits = _splits_of_shards(files, name) if by_split is None else _named_splits(files, by_split)
    absolute = {each: [os.path.join(listing.root, path) for path in paths] for each, paths in splits.items()}
    return loader, absolute


def _splits_of_shards(files: Sequence[str], name: str) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    named = {path: _split_of_shard(path) for path in files}
    if None in named.values() and any(named.values()):
        odd = next(path for path, found in named.items() if found)
        logger.warning(
            "Folder %s: all %d files are the split train, as only some names are of splits (such as %s).",
            name,
            len(files),
            shown(odd),
        )
    whole = None in named.values()
    for path in files:
        splits.setdefault("train" if whole else str(named[path]), []).append(path)
    return _in_order(splits)


def _named_splits(files: Sequence[str], by_split: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    return {split: [path for path in files if path in chosen] for split, chosen in by_split.items()}


def _suffix(loader: str) -> str:
    return next(suffix for suffix, each in LOADERS.items() if each == loader)


def _split_of_shard(path: str) -> str | None:
    """Return the split that is a word of a file's name, or else the name of a folder that it lies in."""
    *folders, file = path.lower().split("/")
    found = {SPLITS[word] for word in re.split(r"[^a-z]+", file.partition(".")[0]) if word in SPLITS}
    if not found:
        found = {SPLITS[folder] for folder in folders if folder in SPLITS}
    return found.pop() if len(found) == 1 else None


def _are_in_split_folders(paths: Iterable[str]) -> bool:
    tops = {path.partition("/")[0].lower() if "/" in path else None for path in paths}
    return all(top in SPLITS for top in tops)


def _splits_of_images(paths: Sequence[str]) -> dict[str, list[str]]:
    if not _are_in_split_folders(paths):
        return {"train": list(paths)}
    splits: dict[str, list[str]] = {}
    for path in paths:
        splits.setdefault(SPLITS[path.partition("/")[0].lower()], []).append(path)
    return _in_order(splits)


def _in_order(splits: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {split: splits[split] for split in dict.fromkeys(SPLITS.values()) if split in splits}


def _class_of(path: str, in_split_folders: bool) -> str | None:
    folders = path.split("/")[in_split_folders:-1]
    return shown(folders[0]) if folders else None


def _image_column(root: str, paths: Sequence[str]) -> Any:
    """Return the paths as an Arrow array for `datasets.Image`, which opens them when they are read."""
    import pyarrow as pa

    absolute = [os.path.join(root, path) for path in paths]
    texts = [shown(path) for path in absolute]
    # Arrow stores text as UTF-8 only, so a file whose name is none is read at once.
    contents = [None if path == text else _content(path) for path, text in zip(absolute, texts, strict=True)]
    arrays = [pa.array(contents, pa.binary()), pa.array(texts, pa.string())]
    return pa.StructArray.from_arrays(arrays, ["bytes", "path"])


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _split_infos(splits: Mapping[str, list[str]]) -> Any:
    import datasets

    infos = datasets.SplitDict()
    for each, paths in splits.items():
        infos.add(datasets.SplitInfo(name=each, num_examples=len(paths)))
    return infos


def _say_what_is_left_out(listing: Listing, name: str, read: str, rest: Sequence[str]) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    if rest:
        files = "1 file is" if len(rest) == 1 else f"{len(rest)} files are"
        logger.warning("Folder %s: %s are read, %s left out: %s.", name, read, files, kinds_of(rest))
    if listing.broken_links:
        logger.warning(
            "Folder %s: %d links lead nowhere and are left out (first: %s).",
            name,
            len(listing.broken_links),
            shown(listing.broken_links[0]),
        )
    for folder, reason in listing.unreadable.items():
        logger.warning("Folder %s: %s cannot be read (%s) and is left out.", name, shown(folder), reason)
