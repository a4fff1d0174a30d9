"""Open a dataset by its name: the start of an image's way.

`columns` then finds the column that holds its images, and `rows` reads the dataset's rows without decoding them.
"""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..formatting import one_line
from ..locations import looks_local
from .columns import find_image_column as find_image_column
from .columns import image_of_item as image_of_item
from .damage import fault_of, holds_no_rows, is_damage, opening_error, sound_features, strict_archives
from .data_files import as_arguments, select_files
from .errors import MissingSplit as MissingSplit
from .folders import choose_shards, holds_images, open_images
from .listing import ARCHIVE_SUFFIXES, TABLE_SUFFIXES, Listing, list_folder, suffix_of
from .shards import declared_length
from .splits import check_split_names, rows_of_splits, stream_of_splits

logger = logging.getLogger(__name__)

TEXTURES = "textures"  # the name of the built-in images
TEXTURE_SPLITS = ("train", "test")
# Names of `datasets` itself for a kind of files, with `data_files` or `data_dir` instead of a dataset's name.
KINDS_OF_FILES = ("parquet", "arrow", "webdataset", "imagefolder", "json", "csv")
_ROWS_AT_ONCE = 1000


def open_dataset(
    name: str,
    config_name: str | None = None,
    split: str = "train",
    streaming: bool = True,
    *,
    revision: str | None = None,
    data_dir: str | None = None,
    data_files: str | Sequence[str] | None = None,
) -> Any:
    """Open a dataset of images: one of `datasets`, or the built-in `TextureDataset` for the name "textures".

    Folders of image files and saved datasets are opened map-style even when streaming: they need no more memory that
    way, and only then can they be shuffled as a whole.

    Args:
        name: "textures", a dataset id on the Hub, or a local folder: parquet files, WebDataset tars, image files, or
            what `Dataset.save_to_disk` wrote.
        config_name: Configuration of the dataset.
        split: Split to open, or an expression such as `train[:90%]` or `train+validation`.
        streaming: Whether to stream instead of downloading and converting the dataset first.
        revision: Branch, tag or commit of a dataset on the Hub.
        data_dir: The folder within the dataset to read.
        data_files: The files of the dataset to read, as paths or patterns; `test=PATTERN` for another split than train.

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
    patterns = [data_files] if isinstance(data_files, str) else list(data_files or ())
    if not str(name).strip():  # which may be a path, too
        raise ValueError(f"The name of the dataset is empty: give a folder, a Hub id or {TEXTURES!r}.")
    folder = Path(name).expanduser()
    if name == TEXTURES:
        _refuse(name, "is built in", config_name=config_name, revision=revision, data_dir=data_dir, data_files=patterns)
        if folder.is_dir():
            logger.warning("%s are the built-in images: write ./%s to read the folder of this name.", name, name)
        return _open_textures(split)
    if not folder.exists():
        if looks_local(name):
            raise ValueError(f"The folder {name} does not exist: give a folder, a Hub id or {TEXTURES!r}.")
        if name not in KINDS_OF_FILES or patterns or data_dir is None:
            part: dict[str, Any] = {"revision": revision, "data_dir": data_dir, "data_files": as_arguments(patterns)}
            given = {option: value for option, value in part.items() if value is not None}
            return _load(name, split, streaming, name=config_name, **given)
        name, folder, data_dir = data_dir, Path(data_dir).expanduser(), None
    _refuse(name, "is a local folder", revision=revision)
    if not folder.is_dir():
        if suffix_of(name) in ARCHIVE_SUFFIXES:
            raise ValueError(f"{name} is an archive: unpack it and give the folder that it makes.")
        raise ValueError(
            f"{name} is {'a file' if folder.exists() else 'missing'}: give the folder that holds the dataset's files."
        )
    if data_dir is not None:
        name, folder = str(Path(name) / data_dir), folder / data_dir
        if not folder.is_dir():
            raise ValueError(f"data_dir {data_dir!r} is no folder in {folder.parent}: give one that is.")
    if _has_key(folder / "dataset_dict.json", "splits") or _has_key(folder / "state.json", "_data_files"):
        _refuse(name, "is a saved dataset", config_name=config_name, data_files=patterns)
        return _open_saved(folder, name, split)
    return _open_folder(folder, name, config_name, split, streaming, patterns)


def _has_key(path: Path, key: str) -> bool:
    """Whether a file is JSON with a key, as those of saved datasets are; others may be called alike."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and key in content


def _refuse(name: str, what: str, **options: Any) -> None:
    """Raise `ValueError` for options that have no meaning for a kind of dataset, if they are given."""
    for option, value in options.items():
        if value:
            shown = f"dataset_{option}" if option in ("config_name", "revision") else option
            raise ValueError(f"{name} {what}, so it has no {shown}: leave {shown} out.")


def _open_textures(split: str) -> Any:
    from .textures import EVALUATION_TEXTURES, TextureDataset

    check_texture_split(split)
    if split == "train":
        return TextureDataset()
    seed, length = EVALUATION_TEXTURES[split]
    return TextureDataset(seed=seed, length=length)


def check_texture_split(split: str) -> None:
    """Raise `MissingSplit` for a split that the built-in textures do not have."""
    check_split_names(TEXTURE_SPLITS, TEXTURES, split)
    if split not in TEXTURE_SPLITS:
        raise ValueError(f"{TEXTURES} are drawn without end, so {split!r} is no split of them: choose train or test.")


def _open_saved(folder: Path, name: str, split: str) -> Any:
    """Open what `save_to_disk` wrote; it is memory-mapped, so splits that are not used cost nothing."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise ValueError(
            f"The saved dataset {name} could not be opened ({one_line(error)}): write it again by save_to_disk, or "
            "restore its files."
        ) from error
    if isinstance(saved, datasets.DatasetDict):
        return rows_of_splits(saved, split, name)
    # one without a name is the train split only, or it would be its own test split as well
    saved_split = "train" if saved.split is None else str(saved.split)
    if saved_split == split:
        return saved
    try:
        return rows_of_splits({saved_split.partition("[")[0]: saved}, split, name)
    except MissingSplit:
        raise MissingSplit(f"{name} has no split {split!r}; it is the saved split {saved_split!r}.") from None


def _open_folder(
    folder: Path, name: str, config_name: str | None, split: str, streaming: bool, patterns: Sequence[str]
) -> Any:
    """Open a folder of images, shards or tables (see `folders`)."""
    if config_name is not None or (not patterns and _declares_configurations(folder / "README.md")):
        shards = [str(folder / path) for path in list_folder(folder).shards]
        given = {"data_files": as_arguments(patterns)} if patterns else {}
        return _load(str(folder), split, streaming, name, shards, name=config_name, **given)
    listing: Listing = list_folder(folder)
    by_split: dict[str, set[str]] | None = None
    if patterns:
        listing, by_split = select_files(listing, patterns, name)
    if holds_images(listing):
        return open_images(listing, name, split, by_split)
    loader, files = choose_shards(listing, name, by_split)
    if "::" in (odd := next((path for paths in files.values() for path in paths if "::" in path), "")):
        raise ValueError(f"The path {odd} has '::' in it, which `datasets` takes for several addresses: rename it.")
    # `datasets` takes paths for patterns
    escaped = {each: [glob.escape(path) for path in paths] for each, paths in files.items()}
    shards = [path for paths in files.values() for path in paths]
    return _load(loader, split, streaming, name, shards, data_files=escaped)


def _declares_configurations(readme: Path) -> bool:
    """Whether a dataset card says which files belong to which configuration and split."""
    try:
        text = readme.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    head = text.removeprefix("\ufeff").split("---\n", 2)
    return len(head) == 3 and not head[0].strip() and any(line.startswith("configs:") for line in head[1].splitlines())


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
            opened = datasets.load_dataset(path, streaming=streaming, split=None if streaming else split, **arguments)
    except MemoryError:
        raise
    except Exception as error:
        if streaming and is_damage(error) and files:
            # the first file says what the columns are, and is damaged: a sound one does as well
            return _load(path, split, streaming, shown_name, **arguments, features=sound_features(list(files)))
        if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
            error = error.__cause__
        if is_damage(error) and "batch_size" not in arguments and any(map(holds_no_rows, files)):
            # by default, the number of rows of a file's first row group
            return _load(path, split, streaming, shown_name, files, **arguments, batch_size=_ROWS_AT_ONCE)
        if files and (fault_of(error) or suffix_of(files[0]) in TABLE_SUFFIXES):
            raise opening_error(error, shown_name, list(files)) from error
        if is_damage(error):
            remedy = "write it again" if streaming else "leave out --streaming false, to name it and to read the others"
            raise ValueError(
                f"The dataset {shown_name} could not be opened, because a file of it is damaged ({one_line(error)}): "
                f"{remedy}."
            ) from error
        if isinstance(error, ValueError) and not streaming:
            check_split_names(_streamed_splits(path, split, arguments), shown_name, split)
        if files:
            raise opening_error(error, shown_name, list(files)) from error
        part = "".join(f", its {option}" for option in ("data_dir", "data_files") if option in arguments)
        raise ValueError(
            f"The dataset {shown_name} could not be opened ({one_line(error)}): check its name{part}, its "
            "configuration and, for a dataset on the Hub, the connection and your access rights."
        ) from error
    return stream_of_splits(opened, split, shown_name, declared_length) if streaming else opened


def _streamed_splits(path: str, split: str, arguments: Mapping[str, Any]) -> Iterable[str]:
    """Return the dataset's splits, without reading their rows; or only `split` if they cannot be listed either."""
    import datasets

    try:
        return datasets.load_dataset(path, streaming=True, **arguments)
    except Exception:
        return [split]
