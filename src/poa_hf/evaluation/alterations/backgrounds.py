"""Foregrounds and backgrounds: images with one of them removed, and foregrounds on the backgrounds of other images.

Source: Xiao et al. 2020, "Noise or Signal: The Role of Image Backgrounds in Object Recognition". The kinds of images
are theirs, made from any images with masks: black in place of the background or of the foreground, and the background
of another image. To have the background of an image without its foreground, they cover the bounding box of the
foreground with copies of the largest strip beside it (their `only_bg_t`), and so does `background_of`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ...data.decoding import Pixels, UndecodableImage, open_image
from ..data.coinciding import identify
from ..data.masked import NO_MASKS, MaskedImages, MaskedRow, foreground_of
from ..labelled import LabelledImages

Mask = NDArray[np.bool_]  # (height, width), True for the foreground

POOL = 256  # backgrounds that are kept, of all classes together
AT_LEAST = 2  # of each class: one more than the image that borrows
SIDE = 256  # the shorter side of a background that is kept, in pixels


def only_foreground(image: Pixels, mask: Mask) -> Pixels:
    """Return an image with black in place of its background."""
    return _like(image, np.where(mask[..., None], _array(image), 0))


def without_foreground(image: Pixels, mask: Mask) -> Pixels:
    """Return an image with black in place of its foreground."""
    return _like(image, np.where(mask[..., None], 0, _array(image)))


def background_of(image: Pixels, mask: Mask) -> Pixels | None:
    """Return an image whose foreground is covered by what lies beside it; None if it reaches all four edges.

    Of the strips above, below, left and right of the foreground's bounding box, the largest is repeated over the box.
    """
    if not mask.any():
        return image
    box = [(int(found[0]), int(found[-1]) + 1) for found in map(np.flatnonzero, (mask.any(axis=1), mask.any(axis=0)))]
    strips = [
        ((stop - start) * mask.shape[1 - axis], axis, start, stop)
        for axis, (low, high) in enumerate(box)
        for start, stop in ((0, low), (high, mask.shape[axis]))
    ]
    area, axis, start, stop = max(strips, key=lambda strip: strip[0])
    if area == 0:
        return None
    source = [np.arange(low, high) for low, high in box]
    source[axis] = start + np.arange(len(source[axis])) % (stop - start)
    pixels = _array(image).copy()
    (top, bottom), (left, right) = box
    pixels[top:bottom, left:right] = pixels[np.ix_(*source)]
    return _like(image, pixels)


def on_background(image: Pixels, mask: Mask, background: Pixels) -> Pixels:
    """Return an image with another background, which is scaled to cover the image and cut around its middle."""
    height, width = mask.shape
    behind = _changed(background, lambda part: ImageOps.fit(part, (width, height), Image.Resampling.BICUBIC))
    return _like(image, np.where(mask[..., None], _array(image), _array(behind)))


@dataclass(frozen=True)
class Background:
    """The background of an image, without its foreground.

    Args:
        image: Its pixels.
        image_hash: A hash of the image's content.
    """

    image: Pixels
    image_hash: bytes


@dataclass(frozen=True)
class Backgrounds:
    """Backgrounds of some images of a split, for other images to borrow.

    Args:
        by_label: By the label of the image.
    """

    by_label: Mapping[int | str, list[Background]]

    def draw(
        self, label: int | str, image_hash: bytes, same_class: bool, generator: np.random.Generator
    ) -> Pixels | None:
        """Return the background of another image; None if there is none.

        Args:
            label: The class of the image that borrows it.
            image_hash: A hash of that image's content.
            same_class: Whether the background is that of an image of the same class, or of one of another class.
            generator: Chooses the class, all of which are equally likely, and the image.
        """
        others = [each for each, kept in self.by_label.items() if kept and each != label]
        if not same_class and not others:
            return None
        if not same_class:
            label = others[generator.integers(len(others))]
        kept = [each for each in self.by_label.get(label, []) if each.image_hash != image_hash]
        return kept[generator.integers(len(kept))].image if kept else None


def collect_backgrounds(images: LabelledImages, decoding: Mapping[str, Any]) -> Backgrounds:
    """Read a split, and keep the backgrounds of some images of each class.

    Which these are depends on the rows' names only.

    Args:
        images: The split, with masks.
        decoding: The arguments of `open_image`.

    Raises:
        ValueError: For a split without masks, a mask that is missing or not valid, and if all images are of one class.
    """
    if not isinstance(images, MaskedImages):
        raise ValueError(NO_MASKS)
    drawn: dict[int | str, dict[int, MaskedRow]] = {}  # by class, those with the smallest numbers
    for _, rows in images.batches(64):
        for row in rows:
            if isinstance(row.image, UndecodableImage) or not isinstance(row, MaskedRow):
                continue
            of_class = drawn.setdefault(row.label, {})
            name = row.name.encode(errors="surrogateescape")
            of_class[int.from_bytes(hashlib.blake2b(name, digest_size=8).digest())] = row
            while len(of_class) > _of_each(drawn):
                del of_class[max(of_class)]
    if len(drawn) < 2:
        raise ValueError(
            f"All images of the {images.name} split are of one class, so no background of another class can be had: "
            "give more images, or leave the task backgrounds out."
        )
    found: dict[int | str, list[Background]] = {}
    for label in sorted(drawn, key=lambda label: (str(type(label)), label)):
        kept = sorted(drawn[label].items())[: _of_each(drawn)]
        backgrounds = (_background(row, images, decoding) for _, row in kept)
        found[label] = [background for background in backgrounds if background is not None]
    return Backgrounds(found)


def _of_each(classes: Mapping[Any, Any]) -> int:
    return max(AT_LEAST, POOL // len(classes))


def _background(row: MaskedRow, images: LabelledImages, decoding: Mapping[str, Any]) -> Background | None:
    try:
        image = open_image(row.image, images.max_image_pixels, **decoding)
    except UndecodableImage:
        return None
    background = background_of(image, foreground_of(row, image))
    if background is None:
        return None
    scale = SIDE / min(_array(background).shape[:2])
    if scale < 1:
        background = _changed(background, lambda part: ImageOps.scale(part, scale, Image.Resampling.BICUBIC))
    return Background(background, identify(row.image, row.name, image).hash)


def _changed(image: Pixels, change: Callable[[Image.Image], Image.Image]) -> Pixels:
    """Change the size of a decoded image, of an array channel by channel."""
    if isinstance(image, Image.Image):
        return change(image)
    channels = [np.asarray(change(Image.fromarray(np.ascontiguousarray(part)))) for part in image.transpose(2, 0, 1)]
    return np.stack(channels, axis=-1)


def _array(image: Pixels) -> NDArray[np.uint8]:
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def _like(image: Pixels, pixels: NDArray[Any]) -> Pixels:
    pixels = pixels.astype(np.uint8, copy=False)
    if isinstance(image, np.ndarray):
        return pixels
    return Image.fromarray(pixels if image.mode == "RGB" else pixels[..., 0])
