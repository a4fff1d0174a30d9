"""Small pictures of images of a dataset, for pages."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Collection
from typing import Any

import numpy as np
from PIL import Image

from ..data.decoding import Pixels, UndecodableImage, open_image
from ..data.sources import open_dataset
from ..formatting import one_line
from .embeddings import Embeddings
from .rows import START, ImageRows, Position

logger = logging.getLogger(__name__)

SIDE = 160  # of the square that a picture fits into, in pixels


def thumbnail(image: Pixels) -> str:
    """Return an image as the URI of a small JPEG; of more than three channels, the first three are shown."""
    if isinstance(image, np.ndarray):
        shown = image[..., :3] if image.shape[-1] > 2 else image[..., 0]
        image = Image.fromarray(np.ascontiguousarray(shown))
    picture = image.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnails(embeddings: Embeddings, ids: Collection[int], dataset: Any = None) -> dict[int, str]:
    """Return small pictures of rows by their number; those that cannot be read any more are left out, with a warning.

    Args:
        embeddings: Say where the images are.
        ids: The numbers of the rows.
        dataset: The dataset, or its name, where it is not what it was.
    """
    wanted = sorted(ids)
    found: dict[int, str] = {}
    try:
        rows = _rows(embeddings, dataset)
        values = _of_stream(rows, embeddings, wanted) if rows.is_stream else _by_number(rows, wanted)
        for index, value in values.items():
            try:
                found[index] = thumbnail(open_image(value, rows.max_image_pixels, **rows.decoding))
            except UndecodableImage:
                continue
    except (ValueError, OSError) as error:
        logger.warning(
            "The images cannot be opened (%s), so the page shows names alone: name the dataset by --dataset_name.",
            one_line(error),
        )
        return {}
    if missing := len(wanted) - len(found):
        logger.warning("%d of %d images are no longer in the dataset.", missing, len(wanted))
    return found


def _rows(embeddings: Embeddings, dataset: Any) -> ImageRows:
    described = embeddings.manifest.dataset
    name = described["name"] if dataset is None else dataset
    if name is None:
        raise ValueError("the dataset was in memory")
    opened = open_dataset(name, **described["options"]) if isinstance(name, str) else name
    return ImageRows(opened, described["image_column"], decoding=embeddings.manifest.decoding)


def _by_number(rows: ImageRows, wanted: list[int]) -> dict[int, Any]:
    length = rows.known_length or 0
    return {index: rows.row(index).image for index in wanted if index < length}


def _of_stream(rows: ImageRows, embeddings: Embeddings, wanted: list[int]) -> dict[int, Any]:
    """Read wanted rows of a stream, each from the beginning of its part."""
    size = embeddings.manifest.rows_per_shard
    found: dict[int, Any] = {}
    starts: dict[int, Position] = {0: START}
    for record in embeddings.records:
        if record.after is not None:
            starts[record.number + 1] = (record.after[0], record.after[1], record.after[2])
    for part in sorted({index // size for index in wanted}):
        of_part = {index for index in wanted if index // size == part}
        for row, _ in rows.stream(starts.get(part, START)):
            if row.index in of_part:
                found[row.index] = row.image
            if row.index >= max(of_part):
                break
    return found
