"""Built-in images with several objects, to try detection and segmentation without a download.

The objects are boxes and ellipses with the built-in textures, on a ground of one colour. Their class is the texture's
kind, so that colours and outlines say nothing about it.
"""

from __future__ import annotations

import random
from typing import Any

import datasets
from PIL import Image, ImageDraw

from .textures import TEXTURE_NAMES, TextureDataset

MAX_OBJECTS = 4
SCENE_CLASSES = ("ground", *TEXTURE_NAMES)  # of the masks


def drawn_scenes(count: int, seed: int = 0, size: int = 96) -> datasets.Dataset:
    """Draw images with one to four objects each, in the layout of datasets for detection and segmentation.

    Args:
        count: The number of images.
        seed: The seed of the images: take another one for each split.
        size: The side of the square images in pixels, at least 32.

    Returns:
        A dataset with the columns `image`; `objects`, a dictionary with the lists `bbox` (left, top, width and height
        in pixels) and `category` (index in `TEXTURE_NAMES`); `mask`, an image of classes (0: ground, 1: the first
        texture); `instances`, an image of objects (0: ground, 1: the first of `objects`).

    Raises:
        ValueError: For no images or too small ones.

    Example:
        >>> scene = drawn_scenes(2, seed=7)[0]
        >>> scene["image"].size, len(scene["objects"]["bbox"]) == scene["instances"].getextrema()[1]
        ((96, 96), True)
    """
    if count < 1 or size < 32:
        raise ValueError(f"{count} images of {size} pixels cannot be drawn: give at least 1 image of 32 pixels.")
    textures = TextureDataset(size=size // 2, seed=seed, length=MAX_OBJECTS * count)
    rows = [_scene(textures, i, random.Random(f"{seed} {i}"), size) for i in range(count)]
    number = datasets.Value("int64")
    objects = {"bbox": datasets.List(datasets.List(number)), "category": datasets.List(number)}
    images = dict.fromkeys(("image", "mask", "instances"), datasets.Image())
    return datasets.Dataset.from_list(rows, features=datasets.Features({**images, "objects": objects}))


def _scene(textures: TextureDataset, index: int, rng: random.Random, size: int) -> dict[str, Any]:
    half = size // 2
    image = Image.new("RGB", (size, size), tuple(rng.choices(range(256), k=3)))
    mask, instances = Image.new("L", (size, size)), Image.new("L", (size, size))
    boxes, classes = [], []
    # each object in a quarter of its own, so that none hides another
    quarters = rng.sample([(0, 0), (half, 0), (0, half), (half, half)], rng.randint(1, MAX_OBJECTS))
    for number, (x, y) in enumerate(quarters):
        texture = textures[MAX_OBJECTS * index + number]
        width, height = rng.randint(half // 2, half), rng.randint(half // 2, half)
        left, top = x + rng.randint(0, half - width), y + rng.randint(0, half - height)
        outline = Image.new("1", (width, height))
        draw = ImageDraw.Draw(outline)
        rng.choice((draw.rectangle, draw.ellipse))((0, 0, width - 1, height - 1), fill=1)
        image.paste(texture["image"].crop((0, 0, width, height)), (left, top), outline)
        mask.paste(texture["label"] + 1, (left, top, left + width, top + height), outline)
        instances.paste(number + 1, (left, top, left + width, top + height), outline)
        boxes.append([left, top, width, height])
        classes.append(texture["label"])
    objects = {"bbox": boxes, "category": classes}
    return {"image": image, "mask": mask, "instances": instances, "objects": objects}
