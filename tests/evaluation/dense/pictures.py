"""Small pictures with a value for each pixel: plain rectangles on a background, each class in a colour of its own."""

import datasets
import numpy as np
from PIL import Image

COLOURS = np.array([[40, 60, 200], [220, 60, 40], [60, 200, 60], [230, 220, 80]], dtype=np.uint8)
IGNORED = 255


def picture(number: int, width: int = 48, height: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 (height, width, 3) and its mask uint8 (height, width), with some ignored pixels."""
    random = np.random.default_rng(number)
    mask = np.full((height, width), number % 2, dtype=np.uint8)
    for label in (2, 3):
        top, left = random.integers(0, height - 12), random.integers(0, width - 12)
        mask[top : top + 12, left : left + 12] = label
    image = COLOURS[mask].astype(int) + random.integers(-15, 16, (height, width, 3))
    mask[:2, :5] = IGNORED
    return np.clip(image, 0, 255).astype(np.uint8), mask


def depth_of(mask: np.ndarray) -> np.ndarray:
    """Distances in metres, float32, 0 where nothing was measured."""
    return np.where(mask == IGNORED, 0, 1.5 * mask + 2).astype(np.float32)


def rows(count: int, seed: int = 0, **size: int) -> list[dict]:
    """Rows of arrays: image, mask and depth."""
    made = [picture(1000 * seed + number, **size) for number in range(count)]
    return [{"image": image, "mask": mask, "depth": depth_of(mask)} for image, mask in made]


def table(count: int, seed: int = 0, depth: bool = False, **size: int) -> datasets.Dataset:
    """The same rows as a dataset of PNG images, with masks of a palette, and depth in millimetres if it is wanted."""
    made = rows(count, seed, **size)
    masks = []
    for row in made:
        mask = Image.fromarray(row["mask"], "P")
        mask.putpalette([value for number in range(256) for value in (255 - number, number // 2, 7)])
        masks.append(mask)
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    images = [Image.fromarray(row["image"]) for row in made]
    columns = {"image": images, "mask": masks}
    if depth:
        features["depth"] = datasets.Image()
        columns["depth"] = [Image.fromarray((1000 * row["depth"]).astype(np.uint16)) for row in made]
    return datasets.Dataset.from_dict(columns, features=features)
