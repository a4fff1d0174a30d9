"""What a folder of embeddings says of itself: `embeddings.json`, and a record of each part, which makes it complete."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ..runs.atomic import write_json
from ..runs.json_files import read_object
from .files import DTYPES, FORMATS

MANIFEST = "embeddings.json"
RECORDS = ".parts"  # hidden, so that libraries which read all files of a folder find the embeddings alone
PAGES = ("index.html", "query.html")
SKIPPED_IMAGES = "skipped_images.jsonl"

# Types of what a manifest holds; those of a dictionary come before those of its entries.
_NOTHING = type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "dataset", "decoding"), (dict,)),
    **dict.fromkeys(("model.source", "model.name", "model.size", "dataset.name"), (str, _NOTHING)),
    **dict.fromkeys(("dataset.image_column", "dataset.label_column"), (str, _NOTHING)),
    "dataset.options": (dict,),
    "dataset.max_images": (int, _NOTHING),
    "decoding.num_channels": (int,),
    "decoding.value_range": (list, _NOTHING),
    **dict.fromkeys(("dimension", "rows_per_shard"), (int,)),
    **dict.fromkeys(("images", "skipped"), (int, _NOTHING)),
    **dict.fromkeys(("class_names", "patches"), (list, _NOTHING)),
    "complete": (bool,),
}
_OPTIONS = ("config_name", "split", "revision", "data_dir", "data_files")  # of `open_dataset`, that choose rows
_Content = TypeVar("_Content")


@dataclass
class Manifest:
    """What embeddings are made of and how they are stored. All but the last three are fixed when the first is written.

    Args:
        model: `source` (a folder or Hub id; None for a model in memory), `name`, `size` (None for a model of one size),
            `step`, and hashes of its `weights` and its `processor`.
        dataset: `name` (None for a dataset in memory), the `options` with which it was opened, its columns, the number
            of its `rows` if that is known, the limit `max_images`, and a hash of its `first` image.
        decoding: The arguments of `open_image`.
        dimension: Numbers of each image's features.
        patches: Rows, columns and numbers of the features of patches; None without them.
        dtype: One of `DTYPES`.
        bf16: Whether they were computed in bfloat16.
        format: One of `FORMATS`.
        rows_per_shard: The rows of the dataset that a part is made of.
        class_names: The names of labels that are numbers, if they have names.
        complete: Whether all parts are written.
        images: The number of images with features, once all are written.
        skipped: The number of images that could not be decoded, once all are written.
    """

    model: dict[str, Any]
    dataset: dict[str, Any]
    decoding: dict[str, Any]
    dimension: int
    patches: list[int] | None
    dtype: str
    bf16: bool
    format: str
    rows_per_shard: int
    class_names: list[str] | None = None
    complete: bool = False
    images: int | None = None
    skipped: int | None = None

    def write(self, folder: Path) -> None:
        """Write it into a folder.

        Raises:
            ValueError: If it holds what `read` would refuse.
        """
        path, content = folder / MANIFEST, asdict(self)
        if fault := Manifest(**json.loads(json.dumps(content)))._fault():
            raise ValueError(f"{path} cannot say that {fault}: give another value.")
        write_json(path, content)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder.

        Raises:
            ValueError: If the folder holds no embeddings, or its manifest is damaged.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise ValueError(
                f"{folder} holds no embeddings ({MANIFEST} is missing): give a folder that poa embed wrote."
            )
        manifest = _made(cls, read_object(path), path)
        if fault := manifest._fault():
            raise ValueError(f"{path} is damaged: {fault}; embed the images once more.")
        manifest.decoding = {name: manifest.decoding.get(name) for name in ("num_channels", "value_range")}
        return manifest

    def _fault(self) -> str | None:
        """Return what no folder of embeddings says of itself; None if nothing is wrong."""
        for name, allowed in _KINDS.items():
            part, _, key = name.partition(".")
            value = getattr(self, part).get(key) if key else getattr(self, part)
            if type(value) not in allowed:
                return f"{name} is {str(value)[:40]!r}"
        for name, value in self.dataset["options"].items():
            texts = value if isinstance(value, list) else [value]
            if name not in _OPTIONS or not all(isinstance(text, str) or text is None for text in texts):
                return f"dataset.options has {name[:40]!r}"
        if self.rows_per_shard < 1 or self.format not in FORMATS or self.dtype not in DTYPES:
            return "its format, dtype or rows_per_shard is none that poa embed writes"
        return None

    def differences(self, other: Manifest) -> Iterator[tuple[str, str, str]]:
        """Yield what makes embeddings of another kind: the name of each field, and its values here and there."""
        for name in (each.name for each in fields(self) if each.name not in ("complete", "images", "skipped")):
            mine, theirs = (json.loads(json.dumps(getattr(each, name))) for each in (self, other))
            if isinstance(mine, dict):
                for key in {**mine, **theirs}:
                    if mine.get(key) != theirs.get(key):
                        yield f"{name}.{key}", str(mine.get(key)), str(theirs.get(key))
            elif mine != theirs:
                yield name, str(mine), str(theirs)


@dataclass
class Record:
    """A part that is complete: its record is written after its files.

    Args:
        number: The number of the part.
        rows: The images with features.
        files: The size in bytes of each file by its name.
        skipped: Number, name and reason of each row that could not be decoded.
        after: Where a stream goes on after the part; None for a dataset that can be indexed.
    """

    number: int
    rows: int
    files: dict[str, int]
    skipped: list[list[Any]] = field(default_factory=list)
    after: list[int] | None = None

    def write(self, folder: Path) -> None:
        """Write it into the folder of the embeddings."""
        write_json(_record_path(folder, self.number), asdict(self), indent=None)

    def is_intact(self, folder: Path) -> bool:
        """Whether all files of the part are there in their size."""
        paths = {folder / name: size for name, size in self.files.items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())


def read_records(folder: Path) -> list[Record]:
    """Read the records of all parts that are complete, by number.

    Raises:
        ValueError: If a record is damaged.
    """
    records = []
    for path in sorted((folder / RECORDS).glob("*.json")):
        record = _made(Record, read_object(path), path)
        kinds = (int, int, dict, list)
        values = (record.number, record.rows, record.files, record.skipped)
        if any(type(value) is not kind for value, kind in zip(values, kinds, strict=True)) or not (
            path == _record_path(folder, record.number)
            and all(re.fullmatch(r"part-\d+\.[\w.]+", name) for name in record.files)
            and (record.after is None or [type(place) for place in record.after] == [int] * 3)
        ):
            raise ValueError(f"{path} is damaged: delete it, and run poa embed once more to write its part again.")
        records.append(record)
    return records


def _record_path(folder: Path, number: int) -> Path:
    return folder / RECORDS / f"{number:05d}.json"


def _made(kind: type[_Content], content: dict[str, Any], path: Path) -> _Content:
    try:
        return kind(**content)
    except TypeError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and run poa embed once more.") from error
