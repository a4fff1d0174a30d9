"""Average precision of detected objects, as COCO defines it, for boxes or masks.

Source: Lin et al. 2014, "Microsoft COCO: Common Objects in Context", and `pycocotools.cocoeval`, whose numbers these
are for all areas and at most 100 objects of a class in an image. Crowds are not supported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

THRESHOLDS = np.linspace(0.5, 0.95, 10)
MAX_DETECTIONS = 100
_RECALLS = np.linspace(0, 1, 101)

Objects = Mapping[str, ArrayLike]


def average_precision(found: Sequence[Objects], true: Sequence[Objects]) -> dict[str, float]:
    """Return the mean average precision of detected objects over classes and over overlaps of 50 to 95 %.

    Objects are compared by their masks if both sides have them, and by their boxes otherwise.

    Args:
        found: For each image, `boxes` (N, 4) as left, top, right and bottom, or `masks` (N, H, W); `labels` (N,)
            and `scores` (N,).
        true: The same of the objects that are in the images, without scores.

    Returns:
        `map`, `map_50` and `map_75` (for an overlap of 50 and 75 % alone), and `map_<label>` for each class that
        occurs. All are between 0 and 1.

    Raises:
        ValueError: If the numbers of images or of an image's boxes, labels and scores differ, a score is not a number,
            a label is not a whole one, or no image has an object.

    Example:
        >>> true = [{"boxes": [[0, 0, 10, 10], [20, 20, 30, 30]], "labels": [0, 1]}]
        >>> found = [{"boxes": [[0, 0, 10, 8], [20, 20, 30, 30]], "labels": [0, 1], "scores": [0.9, 0.8]}]
        >>> {name: round(value, 2) for name, value in average_precision(found, true).items()}
        {'map': 0.85, 'map_50': 1.0, 'map_75': 1.0, 'map_0': 0.7, 'map_1': 1.0}
    """
    if len(found) != len(true):
        raise ValueError(f"There are found objects of {len(found)} images, and true ones of {len(true)}: give as many.")
    kind = "masks" if all("masks" in objects for objects in [*found, *true]) else "boxes"
    guesses = [_arrays(objects, kind, i, scored=True) for i, objects in enumerate(found)]
    truths = [_arrays(objects, kind, i, scored=False) for i, objects in enumerate(true)]
    labels = sorted({int(label) for objects in truths for label in objects["labels"]})
    if not labels:
        raise ValueError("No image has an object: average precision needs at least one.")
    tables = np.stack([_of_class(guesses, truths, label, kind) for label in labels])  # (classes, thresholds)
    mean, by_threshold = tables.mean(), tables.mean(0)
    result = {"map": mean, "map_50": by_threshold[0], "map_75": by_threshold[5]}
    result |= {f"map_{label}": table.mean() for label, table in zip(labels, tables, strict=True)}
    return {name: float(value) for name, value in result.items()}


def _arrays(objects: Objects, kind: str, image: int, scored: bool) -> dict[str, np.ndarray]:
    """Return the fields that count as arrays of one length."""
    names = [kind, "labels", "scores"] if scored else [kind, "labels"]
    if missing := [name for name in names if name not in objects]:
        raise ValueError(f"Image {image} lacks {missing[0]}: give each image's {', '.join(names)}.")
    arrays = {name: np.asarray(objects[name]) for name in names}
    counts = {name: len(array) for name, array in arrays.items()}
    if len({*counts.values()}) > 1:
        raise ValueError(f"Image {image} has {counts}: give as many of each.")
    labels = arrays["labels"]
    if len(labels) and (labels.dtype.kind not in "biuf" or (labels != np.floor(labels)).any()):
        raise ValueError(f"Image {image} has labels that are not whole numbers: give the numbers of the classes.")
    if scored and np.isnan(arrays["scores"].astype(float)).any():
        raise ValueError(f"Image {image} has a score that is not a number: look at the model's outputs.")
    return arrays


def _of_class(guesses: list[dict], truths: list[dict], label: int, kind: str) -> np.ndarray:
    """Return the average precision of one class at each threshold: (thresholds,)."""
    scores, hits, count = [], [], 0
    for guess, truth in zip(guesses, truths, strict=True):
        order = np.flatnonzero(guess["labels"] == label)
        order = order[np.argsort(-guess["scores"][order], kind="stable")][:MAX_DETECTIONS]
        objects = truth[kind][truth["labels"] == label]
        overlaps = _mask_overlaps if kind == "masks" else _box_overlaps
        hits.append(_matches(overlaps(guess[kind][order], objects)))
        scores.append(guess["scores"][order].astype(float))
        count += len(objects)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return np.array([_area(row[order], count) for row in np.concatenate(hits, axis=1)])


def _matches(overlaps: np.ndarray) -> np.ndarray:
    """Return which found objects (N, M overlaps with true ones) are right, the best first: (thresholds, N) bool.

    Each takes the free object that it overlaps most, the last of equal ones.
    """
    hits = np.zeros((len(THRESHOLDS), len(overlaps)), dtype=bool)
    for row, threshold in zip(hits, THRESHOLDS, strict=True):
        free = overlaps.copy()  # -1 once taken
        for i in range(len(free)):
            if free.shape[1] and free[i].max() >= min(threshold, 1 - 1e-10):
                taken = free.shape[1] - 1 - free[i, ::-1].argmax()
                free[:, taken] = -1
                row[i] = True
    return hits


def _area(hits: np.ndarray, count: int) -> float:
    """Return the mean over 101 recalls of the best precision at that recall or above; hits (N,), the surest first."""
    right = hits.cumsum()
    recall, precision = right / count, right / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(recall, _RECALLS, side="left")
    return float(np.append(best, 0.0)[reached].mean())


def _box_overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return intersection over union of boxes (N, 4) and (M, 4): (N, M)."""
    a, b = a.reshape(-1, 1, 4).astype(float), b.reshape(1, -1, 4).astype(float)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides.clip(0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a, b)]
    return _ratio(shared, areas[0] + areas[1] - shared)


def _mask_overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return intersection over union of masks (N, H, W) and (M, H, W): (N, M)."""
    if not (len(a) and len(b)):
        return np.zeros((len(a), len(b)))
    a, b = a.reshape(len(a), -1).astype(float), b.reshape(len(b), -1).astype(float)
    shared = a @ b.T
    return _ratio(shared, a.sum(1)[:, None] + b.sum(1)[None] - shared)


def _ratio(shared: np.ndarray, union: np.ndarray) -> np.ndarray:
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
