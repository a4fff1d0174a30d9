"""Several datasets with weights: `--datasets photos:0.7 me/images:0.3`, or a list of mappings in a recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..formatting import shown_name, suggest

# The keys of a dataset in a list; those but the weight mean what the options of the same names do.
_TEXTS = ("dataset_name", "dataset_config_name", "dataset_split", "dataset_revision", "data_dir", "image_column")
_KEYS = (*_TEXTS, "data_files", "streaming", "weight")
_NUMBER = r"[+-]?[0-9.]+(?:e[+-]?[0-9]+)?"
_WEIGHT = re.compile(rf"(.+):({_NUMBER})", re.IGNORECASE)
_BETWEEN = re.compile(rf"(:{_NUMBER})[,\s]\s*(?=\S.*:{_NUMBER}\s*$)", re.IGNORECASE)


def read_datasets(entries: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the datasets of a list, each with its name, its weight and what else is given.

    Args:
        entries: Texts as on the command line, `NAME` or `NAME:WEIGHT`, and mappings as in a recipe. The weight follows
            the last colon, so that `C:\\\\photos:0.7` is a path.

    Raises:
        ValueError: For less than two datasets, weights of some only, or a key that is not known.

    Example:
        >>> read_datasets(["photos:0.7", {"dataset_name": "me/images", "weight": 0.3}])
        [{'dataset_name': 'photos', 'weight': 0.7}, {'dataset_name': 'me/images', 'weight': 0.3}]
    """
    found = [_from_mapping(each) if isinstance(each, Mapping) else _from_text(each) for each in _split(entries)]
    if len(found) < 2:
        raise ValueError("datasets names one dataset only: give two or more, or dataset_name.")
    missing = [each["dataset_name"] for each in found if "weight" not in each]
    if missing and len(missing) < len(found):
        raise ValueError(f"datasets gives no weight for {missing[0]}, but for others: give all of them one, or none.")
    return [{**each, "weight": each.get("weight", 1.0)} for each in found]


def open_images_of(recipe: Mapping[str, Any]) -> Any:
    """Open the images that a recipe names: those of one dataset, or a `DatasetMixture` of several.

    Args:
        recipe: The keys of a recipe, of which those that are missing have their defaults.

    Raises:
        ValueError: As `sources.open_dataset` does.
    """
    from .mixture import DatasetMixture
    from .sources import TEXTURES, open_dataset

    if recipe.get("datasets"):
        listed = read_datasets(recipe["datasets"])
        whole = {key: recipe[key] for key in ("dataset_split", "streaming") if key in recipe}
        opened = [open_images_of({**whole, **each}) for each in listed]
        columns = [each.get("image_column") for each in listed]
        return DatasetMixture(opened, [each["weight"] for each in listed], names_of(listed), columns)
    name = recipe.get("dataset_name")
    return open_dataset(
        TEXTURES if name is None else name,
        recipe.get("dataset_config_name"),
        recipe.get("dataset_split") or "train",
        bool(recipe.get("streaming", True)),
        revision=recipe.get("dataset_revision"),
        data_dir=recipe.get("data_dir"),
        data_files=recipe.get("data_files"),
    )


def shares_of(datasets: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return what messages call each dataset, and its share in words, such as `70 %`."""
    total = math.fsum(each["weight"] for each in datasets)
    shares = [f"{100 * each['weight'] / total:.3g} %" for each in datasets]
    return list(zip(names_of(datasets), shares, strict=True))


def names_of(datasets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what messages call the datasets: the last part of a folder's path, and more of it where two are alike."""
    shown = [Path(each["dataset_name"]).name if _is_local(each) else each["dataset_name"] for each in datasets]
    if len(set(shown)) < len(shown):
        keys = ("dataset_name", "dataset_config_name", "data_dir", "dataset_split")
        shown = [" ".join(str(each[key]) for key in keys if each.get(key)) for each in datasets]
    return [name if shown.count(name) == 1 else f"{name} {number}" for number, name in enumerate(shown)]


def _is_local(dataset: Mapping[str, Any]) -> bool:
    return Path(dataset["dataset_name"]).expanduser().exists()


def _split(entries: Sequence[Any]) -> list[Any]:
    """Split `a:0.7,b:0.3` and `a:0.7 b:0.3`, as other lists may be written; elsewhere both signs are part of a name."""
    parts: list[Any] = []
    for each in entries:
        parts += _BETWEEN.sub("\\1\n", each.strip()).split("\n") if isinstance(each, str) else [each]
    return parts


def _from_text(entry: Any) -> dict[str, Any]:
    text = "" if entry is None or isinstance(entry, bool | list | tuple) else str(entry)
    if not text.strip():
        raise ValueError(f"datasets names a dataset {entry!r}: give NAME:WEIGHT.")
    match = _WEIGHT.fullmatch(text)
    if match is None:
        return {"dataset_name": text}
    return {"dataset_name": match[1], "weight": _weight(match[2], match[1])}


def _from_mapping(entry: Mapping[str, Any]) -> dict[str, Any]:
    for key in entry:
        if key not in _KEYS:
            raise ValueError(
                f"{shown_name(key)} is not a known key of a dataset in datasets: {suggest(str(key), _KEYS)}"
            )
    given = {key: value for key, value in entry.items() if value is not None}
    if not given.get("dataset_name"):
        raise ValueError("A dataset in datasets has no dataset_name: give it a Hub id or a folder.")
    for key in _TEXTS:
        if key in given:
            if isinstance(given[key], list | dict):
                raise ValueError(f"{key} of a dataset in datasets is {given[key]!r}: give a single text.")
            given[key] = str(given[key])
    if "data_files" in given:
        files = given["data_files"]
        given["data_files"] = [files] if isinstance(files, str) else [str(each) for each in files]
    if not isinstance(given.get("streaming", True), bool):
        raise ValueError(f"streaming of {given['dataset_name']} is {given['streaming']!r}: give true or false.")
    if "weight" in given:
        given["weight"] = _weight(given["weight"], given["dataset_name"])
    return given


def _weight(value: Any, name: str) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if isinstance(value, bool) or not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"The weight of {name} in datasets is {value}: give a number above 0.")
    return weight
