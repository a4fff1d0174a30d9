"""Open a dataset by its name, and find the column that holds its images: the start of an image's way.

`rows` then reads the dataset's rows without decoding them.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tarfile import TarError
from typing import Any

from ..formatting import one_line, suggest
from ..locations import looks_local
from .damage import is_damage, sound_features, strict_archives
from .errors import MissingSplit as MissingSplit
from .errors import reading_error
from .folders import choose_shards, holds_images, open_images
from .listing import ARCHIVE_SUFFIXES, list_folder, suffix_of

TEXTURES = "textures"  # the name of the built-in images
TEXTURE_SPLITS = ("train", "test")
# Names of image columns in datasets that declare no features: WebDataset names fields by file extension.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")


def open_dataset(name: str, config_name: str | None = None, split: str = "train", streaming: bool = True) -> Any:
    """Open a dataset of images: one of `datasets`, or the built-in `TextureDataset` for the name "textures".

    Folders of image files and saved datasets are opened map-style even when streaming: they need no more memory that
    way, and only then can they be shuffled as a whole.

    Args:
        name: "textures", a dataset id on the Hub, or a local folder: parquet files, WebDataset tars, image files, or
            what `Dataset.save_to_disk` wrote.
        config_name: Configuration of the dataset.
        split: Split to open.
        streaming: Whether to stream instead of downloading and converting the dataset first.

    Returns:
        A `datasets.IterableDataset`, a `datasets.Dataset`, or a `TextureDataset`.

    Raises:
        MissingSplit: If the dataset has no such split.
        ValueError: If there is no such dataset, or no data in the folder.

    Example:
        >>> dataset = open_dataset("textures")
        >>> dataset[0]["image"].size
        (40, 40)
        >>> find_image_column(dataset)
        'image'
    """
    if name == TEXTURES:
        from .textures import EVALUATION_TEXTURES, TextureDataset

        check_texture_split(split)
        if split == "train":
            return TextureDataset()
        seed, length = EVALUATION_TEXTURES[split]
        return TextureDataset(seed=seed, length=length)
    import datasets

    folder = Path(name).expanduser()
    if not folder.exists():
        if looks_local(name):
            raise ValueError(f"The folder {name} does not exist: give a folder, a Hub id or {TEXTURES!r}.")
        return _load(name, split, streaming, name=config_name)
    if not folder.is_dir():
        if suffix_of(name) in ARCHIVE_SUFFIXES:
            raise ValueError(f"{name} is an archive: unpack it and give the folder that it makes.")
        raise ValueError(f"{name} is a file: give the folder that holds the dataset's files.")
    if (folder / "dataset_dict.json").is_file():
        # loaded as a whole: it is memory-mapped, so the other splits cost nothing
        return _pick_split(datasets.load_from_disk(str(folder)), name, split)
    if (folder / "state.json").is_file():
        saved = datasets.load_from_disk(str(folder))
        # one without a name is the train split only, or it would be its own test split as well
        saved_split = "train" if saved.split is None else str(saved.split)
        if saved_split != split:
            raise MissingSplit(f"{name} has no split {split!r}; it is the saved split {saved_split!r}.")
        return saved
    return _open_folder(folder, name, config_name, split, streaming)


def _open_folder(folder: Path, name: str, config_name: str | None, split: str, streaming: bool) -> Any:
    """Open a folder of images, shards or tables (see `folders`)."""
    if config_name is not None or _declares_configurations(folder / "README.md"):
        shards = [str(folder / path) for path in list_folder(folder).shards]
        return _load(str(folder), split, streaming, name, shards, name=config_name)
    listing = list_folder(folder)
    if holds_images(listing):
        return open_images(listing, name, split)
    loader, files = choose_shards(listing, name)
    # `datasets` takes paths for patterns
    escaped = {each: [glob.escape(path) for path in paths] for each, paths in files.items()}
    shards = [] if loader in ("json", "csv") else [path for paths in files.values() for path in paths]
    return _load(loader, split, streaming, name, shards, data_files=escaped)


def _declares_configurations(readme: Path) -> bool:
    """Whether a dataset card says which files belong to which configuration and split."""
    try:
        head = readme.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    except OSError:
        return False
    return len(head) == 3 and not head[0].strip() and any(line.startswith("configs:") for line in head[1].splitlines())


def check_texture_split(split: str) -> None:
    """Raise `MissingSplit` for a split that the built-in textures do not have."""
    _pick_split(dict.fromkeys(TEXTURE_SPLITS), TEXTURES, split)


def _load(
    path: str,
    split: str,
    streaming: bool,
    shown_name: str | None = None,
    files: Sequence[str] = (),
    **arguments: Any,
) -> Any:
    """Call `datasets.load_dataset`, with its errors in one sentence; `files` are those of a local dataset."""
    import datasets

    shown_name = shown_name or path
    try:
        with strict_archives():
            if streaming:
                return _pick_split(datasets.load_dataset(path, streaming=True, **arguments), shown_name, split)
            return datasets.load_dataset(path, split=split, **arguments)
    except MissingSplit:
        raise
    except (ValueError, OSError, TarError, datasets.exceptions.DatasetsError) as error:
        if streaming and is_damage(error) and files:
            # the first file says what the columns are, and is damaged: a sound one does as well
            return _load(path, split, streaming, shown_name, **arguments, features=sound_features(list(files)))
        if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
            error = error.__cause__
        if is_damage(error):
            remedy = "write it again" if streaming else "leave out --streaming false, to name it and to read the others"
            raise ValueError(
                f"The dataset {shown_name} could not be opened, because a file of it is damaged ({one_line(error)}): "
                f"{remedy}."
            ) from error
        if isinstance(error, ValueError) and not streaming:
            _pick_split(_streamed_splits(path, split, arguments), shown_name, split)
        raise ValueError(
            f"The dataset {shown_name} could not be opened ({one_line(error)}): check its name, its configuration and, "
            "for a dataset on the Hub, the connection and your access rights."
        ) from error


def _streamed_splits(path: str, split: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the dataset's splits, without reading their rows; or only `split` if they cannot be listed either."""
    import datasets

    try:
        return datasets.load_dataset(path, streaming=True, **arguments)
    except (ValueError, OSError, datasets.exceptions.DatasetsError):
        return {split: None}


def _pick_split(splits: Mapping[str, Any], name: str, split: str) -> Any:
    if split not in splits:
        raise MissingSplit(f"The dataset {name} has no split {split!r}: choose one of {', '.join(map(str, splits))}.")
    return splits[split]


def find_image_column(dataset: Any, name: str | None = None) -> str | None:
    """Find the column that holds the images.

    Columns of type `datasets.Image` come first, then those of type `Array2D` and `Array3D`, then common names. Of a
    dataset with a transform (`set_transform`), the columns are those of the transformed items.

    Args:
        dataset: A `datasets` dataset or any collection of images, tuples or dicts.
        name: The column that the user asked for, if any.

    Returns:
        The column's name, or None if the dataset's items are images or (image, label) tuples.

    Raises:
        ValueError: If the column is missing, or if none or several could be meant; the message lists the columns.

    Example:
        >>> find_image_column([{"jpg": b"...", "cls": 3}])
        'jpg'
        >>> find_image_column([{"jpg": b"...", "png": b"..."}], name="png")
        'png'
    """
    features = getattr(dataset, "features", None)
    columns = getattr(dataset, "column_names", None)
    if isinstance(form := getattr(dataset, "format", None), dict) and form.get("type") == "custom":
        features, columns = None, None  # they are the transform's
    if not columns:
        first = _first_item(dataset)
        if not isinstance(first, dict):
            if name is not None:
                raise ValueError(f"The dataset's items have no columns, so not {name!r}: leave out --image_column.")
            return None
        columns = list(first)
    if name is not None:
        if name in columns:
            return name
        raise ValueError(f"The dataset has no column {name!r} for --image_column: {suggest(name, columns)}")
    candidates: list[str] = []
    if features is not None:
        import datasets

        for kinds in (datasets.Image, (datasets.Array2D, datasets.Array3D)):
            candidates = candidates or [column for column in columns if isinstance(features[column], kinds)]
    candidates = candidates or [column for column in columns if column in IMAGE_COLUMNS]
    if len(candidates) == 1:
        return candidates[0]
    names = ", ".join(columns)
    if not candidates:
        raise ValueError(f"The dataset has no image column among {names}: pass --image_column with the one to use.")
    raise ValueError(
        f"The dataset has several image columns ({', '.join(candidates)}; all columns: {names}): pass --image_column "
        "with the one to use."
    )


def _first_item(dataset: Any) -> Any:
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        if len(dataset) == 0:
            raise ValueError("The dataset is empty: give one with at least one image.")
        try:
            return dataset[0]
        except OSError:
            raise
        except Exception as error:
            raise reading_error(error) from error
    if not isinstance(dataset, Iterable):
        raise ValueError(f"A {type(dataset).__name__} is not a dataset: give one with items to index or iterate.")
    try:
        for item in dataset:
            return item
    except Exception as error:
        raise reading_error(error) from error
    raise ValueError("The dataset is empty: give one with at least one image.")


def image_of_item(item: Any, column: str | None) -> Any:
    """Return the image in an item of a dataset: a column of a dict, the first of a tuple, or the item itself."""
    if isinstance(item, dict):
        return item.get(column)
    if isinstance(item, tuple | list):
        return item[0] if len(item) else None
    return item
