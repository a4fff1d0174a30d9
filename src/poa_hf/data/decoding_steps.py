"""The steps of a stream in which `datasets` itself decodes images, before functions of the user's.

`IterableDataset.decode(False)` ends decoding in the last step only. Here no earlier step decodes where no function can
see the images, as behind `rename_column` or a filter by other columns; and where one can, an image that cannot be
decoded passes by the functions to the end, where it is a bad row like any other.

Follows `decoding`; `rows` hands on the streams, and `shards` divides them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from typing import Any

import datasets
from PIL import Image

from .decoding import open_image
from .formats import BrokenImage, UndecodableImage, reason, unbroken

FORMATTED, MAPPED, FILTERED = "FormattedExamplesIterable", "MappedExamplesIterable", "FilteredExamplesIterable"
KEEP = "keep"  # in place of the features of a filter's rows: rows with broken images are kept
IN_THREADS = "_apply_async"  # the function of the step that `IterableDataset.decode(num_threads=...)` adds


class TolerantImage(datasets.Image):
    """An image feature that gives a `BrokenImage` as bytes, instead of an error, for what cannot be decoded."""

    def decode_example(self, value: Any, token_per_repo_id: Any = None) -> Any:
        """Return a Pillow image, or an undecoded value with a `BrokenImage`."""
        if _is_broken(value):
            return value
        try:
            return super().decode_example(value, token_per_repo_id)
        except MemoryError:
            raise
        except Exception as error:
            broken = BrokenImage((value.get("bytes") if isinstance(value, Mapping) else None) or b"")
            broken.reason = _reason(value, error)
            return {"bytes": broken, "path": None}


def with_tolerant_steps(step: Any, is_seen: bool = False) -> Any:
    """Return a copy of a stream's last step, and of all that it reads from, which decodes as this module says.

    Args:
        step: The step (`IterableDataset._ex_iterable`).
        is_seen: Whether a later function sees the images that this step gives.
    """
    step, name = copy(step), type(step).__name__
    if name == FORMATTED and step.features and not step.ex_iterable.is_typed:
        step._features, is_seen = _features(step.features, is_seen), False
    elif name == MAPPED and _name(step.function) == IN_THREADS:
        features = _features(step._features, is_seen)
        pool, decode = step.function.args
        decode = partial(features.decode_example, **getattr(decode, "keywords", {}))
        step.function, is_seen = partial(step.function.func, pool, decode) if is_seen else _as_it_is, False
    elif name == MAPPED:
        is_seen = is_seen or _sees_images(step.function, step)
        step.function = _passing_by(step.function, step.input_columns, step.features)
    elif name == FILTERED:
        is_seen = is_seen or _sees_images(step.mask_function, step)
        step.mask_function = _passing_by(step.mask_function, step.input_columns, KEEP)
        step.function = partial(step.function.func, step.mask_function, **step.function.keywords)
    if hasattr(step, "ex_iterable"):
        step.ex_iterable = with_tolerant_steps(step.ex_iterable, is_seen)
    elif hasattr(step, "ex_iterables"):
        step.ex_iterables = [with_tolerant_steps(inner, is_seen) for inner in step.ex_iterables]
    return step


def _features(features: Any, is_seen: bool) -> Any:
    """Return features whose images are decoded only where they are seen, and then without an error."""
    changed = features.copy()
    for name, feature in features.items():
        if isinstance(feature, datasets.Image):
            changed[name] = TolerantImage(feature.mode, feature.decode and is_seen)
    return changed


def _sees_images(function: Any, step: Any) -> bool:
    """Whether the function of a step may see an image: not if its columns are known to hold none."""
    if _module(function) == datasets.IterableDataset.__module__ or function is _as_it_is:
        return False  # such as that of `rename_column`
    if _module(function) == __name__:
        return _sees_images(function.args[0], step)
    known = step.ex_iterable.features or {}
    if step.input_columns is None:
        return True
    return any(name not in known or isinstance(known[name], datasets.Image) for name in step.input_columns)


def _name(function: Any) -> str:
    return getattr(getattr(function, "func", function), "__name__", "")


def _module(function: Any) -> str:
    return getattr(getattr(function, "func", function), "__module__", None) or ""


def _as_it_is(row: dict[str, Any]) -> dict[str, Any]:
    return row


def _passing_by(function: Any, columns: Any, features: Any) -> Any:
    """Return a function that is not called for rows with broken images, if it is not one already."""
    if _module(function) == __name__:
        return function
    if _module(function) == datasets.IterableDataset.__module__:
        return partial(_called_at_best, function)
    return partial(_called_later if inspect.iscoroutinefunction(function) else _called, function, columns, features)


def _called(function: Callable[..., Any], columns: Any, features: Any, *given: Any, **more: Any) -> Any:
    return function(*given, **more) if (output := _instead(columns, features, given)) is None else output


async def _called_later(function: Callable[..., Any], columns: Any, features: Any, *given: Any, **more: Any) -> Any:
    return await function(*given, **more) if (output := _instead(columns, features, given)) is None else output


def _called_at_best(function: Callable[..., Any], row: Any, *given: Any) -> Any:
    try:
        return function(row, *given)
    except ValueError:  # for a column of another function, by which the row has passed
        if isinstance(row, dict) and any(map(_is_broken, row.values())):
            return {}
        raise


def _instead(columns: Any, features: Any, given: tuple[Any, ...]) -> Any:
    """Return what stands for a function's output if an image that it is given is broken, else None.

    Args:
        columns: The columns that the function takes; None for whole rows.
        features: Those that its rows have, if they are known; `KEEP` for a filter.
        given: Its arguments.

    Raises:
        UndecodableImage: For an image in a batch, of which no single row can pass by.
    """
    row = given[0] if columns is None else dict(zip(columns, given, strict=False))
    if not isinstance(row, dict):  # a table, in which no image is decoded
        return None
    for value in row.values():
        if isinstance(value, list) and (broken := next(filter(_is_broken, value), None)):
            raise unbroken(broken)
    broken = next(filter(_is_broken, row.values()), None)
    if broken is None or features == KEEP:
        return None if broken is None else True
    # none of the row's images has been through the function, so none is used
    images = {name for name, value in row.items() if _is_broken(value) or isinstance(value, Image.Image)}
    images |= {name for name, feature in (features or {}).items() if isinstance(feature, datasets.Image)}
    missing = set(features or ()) - set(row) if columns is None else set()
    return dict.fromkeys(missing) | dict.fromkeys(images, broken)


def _is_broken(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("bytes"), BrokenImage)


def _reason(value: Any, error: Exception) -> str:
    try:
        open_image(value)
    except UndecodableImage as undecodable:
        return str(undecodable)
    return reason(error)
