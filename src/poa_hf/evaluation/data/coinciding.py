"""Images that are in both splits: found by a hash of every image that is read for its features."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.decoding import Pixels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageId:
    """What an image is known by.

    Args:
        hash: A hash of its undecoded bytes, or of its pixels where the dataset holds no bytes.
        name: Its path, or the name of its row.
    """

    hash: bytes
    name: str


def identify(value: Any, row: str, decoded: Pixels) -> ImageId:
    """Return what an image is known by, in a few hundredths of the time that decoding and preparing it take.

    Args:
        value: The value in the dataset's row.
        row: The name of the row.
        decoded: The image, which is hashed where the value is neither bytes nor a local file.
    """
    path = value.get("path") if isinstance(value, Mapping) else value
    data = value.get("bytes") if isinstance(value, Mapping) else value
    path = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(data, bytes | bytearray | memoryview):
        data = _file_content(path)
    if data is None:
        data = _form(decoded).encode() + decoded.tobytes()
    return ImageId(hashlib.blake2b(data, digest_size=16).digest(), path or row)


def _form(image: Pixels) -> str:
    return repr(image.shape if isinstance(image, np.ndarray) else (image.mode, image.size))


def _file_content(path: str | None) -> bytes | None:
    try:
        if path is not None and os.path.isfile(path):
            with open(path, "rb") as file:
                return file.read()
    except OSError:
        pass  # the decoded image is there
    return None


def coinciding(train: Sequence[ImageId], test: Sequence[ImageId]) -> list[tuple[ImageId, ImageId]]:
    """Return the test images that are train images too, each with one of these: [(test, train), ...]."""
    by_hash = {image.hash: image for image in train}
    return [(image, by_hash[image.hash]) for image in test if image.hash in by_hash]


def warn_of_coinciding(pairs: Sequence[tuple[ImageId, ImageId]], test_images: int) -> None:
    """Warn of test images that are train images too, with the first of them as an example."""
    if pairs:
        test, train = pairs[0]
        logger.warning(
            "%d of %d test images are also train images, so accuracy is too high (for example, test image %s is train "
            "image %s): remove them from one of the splits.",
            len(pairs),
            test_images,
            test.name,
            train.name,
        )
