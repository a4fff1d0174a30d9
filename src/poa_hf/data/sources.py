"""Opening a dataset by name, and finding the column that holds its images."""

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TEXTURES = "textures"
# Field names of datasets that declare no features: WebDataset names fields by file extension.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
TABLE_SUFFIXES = {".parquet", ".tar", ".arrow", ".jsonl", ".json", ".csv"}


def open_dataset(name: str, config_name: str | None = None, split: str = "train", streaming: bool = True) -> Any:
    """Open images to train on: a `datasets` dataset, or the built-in `TextureDataset` for the name "textures".

    `name` is "textures", a dataset id on the Hub, or a local folder: parquet files, WebDataset tars, image files, or
    what `Dataset.save_to_disk` wrote. Folders of image files and saved datasets are opened map-style even when
    streaming: they need no more memory for it, and only then can they be shuffled as a whole.

    Raises ValueError when there is no such dataset or split, or no data in the folder.
    """
    if name == TEXTURES:
        from poa_hf.data.textures import TextureDataset

        return TextureDataset()
    import datasets

    folder = Path(name).expanduser()
    if not folder.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or os.sep == "\\" and os.sep in name:
            raise ValueError(f"The folder {name} does not exist: give a folder, a Hub id or {TEXTURES!r}.")
        return _load(name, name=config_name, split=split, streaming=streaming)
    if not folder.is_dir():
        raise ValueError(f"{name} is a file: give the folder that holds the dataset's files.")
    if (folder / "dataset_dict.json").is_file():
        # loaded as a whole: it is memory-mapped, so the other splits cost nothing
        return _pick_split(datasets.load_from_disk(str(folder)), name, split)
    if (folder / "state.json").is_file():
        saved = datasets.load_from_disk(str(folder))
        if saved.split is not None and str(saved.split) != split:
            raise MissingSplit(f"{name} has no split {split!r}: it is the saved split {str(saved.split)!r}.")
        return saved
    kind = _kind_of_folder(folder)
    if kind is None:
        raise ValueError(f"The folder {name} holds no images, parquet files or tar archives: give one that does.")
    if kind == "images":
        return _load("imagefolder", data_dir=str(folder), split=split, streaming=False, shown=name)
    return _load(str(folder), name=config_name, split=split, streaming=streaming)


def _load(path: str, split: str, streaming: bool, shown: str | None = None, **arguments) -> Any:
    import datasets

    shown = shown or path
    try:
        if streaming:
            return _pick_split(datasets.load_dataset(path, streaming=True, **arguments), shown, split)
        try:
            return datasets.load_dataset(path, split=split, **arguments)
        except ValueError as error:
            if "split" not in str(error).lower():
                raise
            splits = datasets.load_dataset(path, streaming=True, **arguments)
            return _pick_split(splits, shown, split) if split not in splits else _reraise(error)
    except MissingSplit:
        raise
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"The dataset {shown} could not be opened ({reason}): check its name, its configuration and, for a dataset "
            "on the Hub, the connection and your access rights."
        ) from error


class MissingSplit(ValueError):
    """A dataset has no split of that name."""


def _reraise(error: Exception):
    raise error


def _pick_split(splits: Any, name: str, split: str) -> Any:
    if split not in splits:
        raise MissingSplit(f"The dataset {name} has no split {split!r}: choose one of {', '.join(map(str, splits))}.")
    return splits[split]


def _kind_of_folder(folder: Path) -> str | None:
    """Tell "images" from "tables" by the first files met, so that a million images are not listed; None for neither."""
    for _, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        # an image folder's labels and captions may lie beside it in a file called metadata
        suffixes = {Path(f).suffix.lower() for f in files if not f.startswith((".", "metadata."))}
        if suffixes & TABLE_SUFFIXES and not suffixes & IMAGE_SUFFIXES:
            return "tables"
        if suffixes & IMAGE_SUFFIXES:
            return "images"
    return None


def find_image_column(dataset: Any, name: str | None = None) -> str | None:
    """The name of the column that holds the images; None if the dataset's items are images or (image, label) tuples.

    Looks at the features first (columns of type `datasets.Image`), and at common names where there are none. `name` is
    what the user asked for, if anything.

    Raises ValueError, listing the columns, when the column is missing or when none or several could be meant.
    """
    features = getattr(dataset, "features", None)
    columns = getattr(dataset, "column_names", None)
    if not columns:
        first = _first_item(dataset)
        if not isinstance(first, dict):
            if name is not None:
                raise ValueError(f"The dataset's items have no columns, so not {name!r}: leave out --image_column.")
            return None
        columns = list(first)
    listed = ", ".join(columns)
    if name is not None:
        if name in columns:
            return name
        near = difflib.get_close_matches(name, columns, n=1, cutoff=0)
        raise ValueError(
            f"The dataset has no column {name!r} (did you mean {near[0]!r}?): pass --image_column with one of {listed}."
        )
    found = []
    if features is not None:
        from datasets import Image as ImageFeature

        found = [column for column in columns if isinstance(features[column], ImageFeature)]
    if not found:
        found = [column for column in columns if column in IMAGE_COLUMNS]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ValueError(f"The dataset has no image column among {listed}: pass --image_column with the one to use.")
    raise ValueError(
        f"The dataset has several image columns ({', '.join(found)}; all columns: {listed}): pass --image_column with "
        "the one to use."
    )


def _first_item(dataset: Any) -> Any:
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        if len(dataset) == 0:
            raise ValueError("The dataset is empty: give one with at least one image.")
        return dataset[0]
    if not isinstance(dataset, Iterable):
        raise ValueError(f"A {type(dataset).__name__} is no dataset: give one with items to index or iterate.")
    for item in dataset:
        return item
    raise ValueError("The dataset is empty: give one with at least one image.")


def image_of_item(item: Any, column: str | None) -> Any:
    """The image value in an item of a dataset: a column of a dict, the first of a tuple, or the item itself."""
    if isinstance(item, dict):
        return item.get(column)
    if isinstance(item, tuple | list):
        return item[0] if len(item) else None
    return item
