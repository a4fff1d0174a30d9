"""Built-in images: procedural textures of ten kinds, drawn on the fly, to try pre-training without a download.

The kind is the label. Everything else about an image is random: rotation, phase, period, both colours, which of them is
the lighter one, light, warp and noise. So raw pixels say little about the kind, while the local structure, which
survives a crop, a flip and a change of colour, identifies it: that is what self-distillation learns.

Lengths are in pixels and do not grow with the image: structures of 3 to 24 pixels can be seen in a few patches of 8 or
16. Fine and coarse stripes differ only by their period, by a factor of 2, so that most crops keep the difference.

Pixels are computed with operations that IEEE 754 rounds exactly (no sine, no matrix product) and with Pillow's integer
resize, so that an image should have the same bytes on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from operator import index as as_int
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

Array = np.ndarray
# The pattern of one kind: (generator, x, y) -> (size, size) float32 in [0, 1], the share of the second colour. x and y
# are pixel coordinates, rotated and bent around the image's middle, then shifted by up to 100 pixels.
Pattern = Callable[[np.random.Generator, Array, Array], Array]


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    # `Generator.uniform` multiplies and adds in compiled code, which some processors round once and others twice.
    return low + (high - low) * rng.random()


def _off_centre(t: Array, period: float) -> Array:
    """Return the distance in pixels from the nearest centre of a repeating cell: period / 2 at the cell's edge."""
    t = t * np.float32(1 / period)
    t -= np.floor(t)
    t -= np.float32(0.5)
    np.abs(t, out=t)
    t *= np.float32(period)
    return t


def _inside(distance: Array, radius: float) -> Array:
    """Return 1 where the distance is below the radius and 0 beyond it, with an edge one pixel wide (anti-aliasing)."""
    return np.clip(np.float32(radius + 0.5) - distance, np.float32(0), np.float32(1))


def _stripes(rng: np.random.Generator, x: Array, low: float, high: float) -> Array:
    period = _between(rng, low, high)
    return _inside(_off_centre(x, period), period / 4)


def _fine_stripes(rng: np.random.Generator, x: Array, y: Array) -> Array:
    return _stripes(rng, x, 3.0, 4.2)


def _coarse_stripes(rng: np.random.Generator, x: Array, y: Array) -> Array:
    return _stripes(rng, x, 8.5, 11.0)


def _checks(rng: np.random.Generator, x: Array, y: Array) -> Array:
    period = _between(rng, 8.0, 12.0)  # two squares
    quarter = np.float32(period / 4)
    a = _off_centre(x, period) - quarter
    b = _off_centre(y, period) - quarter
    return np.clip(np.float32(0.5) + np.where((a < 0) == (b < 0), 1, -1) * np.minimum(np.abs(a), np.abs(b)), 0, 1)


def _dots(rng: np.random.Generator, x: Array, y: Array) -> Array:
    period = _between(rng, 6.5, 9.5)
    x, y = _off_centre(x, period), _off_centre(y, period)
    return _inside(np.sqrt(x * x + y * y), period * _between(rng, 0.25, 0.32))


def _grid(rng: np.random.Generator, x: Array, y: Array) -> Array:
    period = _between(rng, 7.0, 11.0)
    return _inside(np.minimum(_off_centre(x, period), _off_centre(y, period)), _between(rng, 0.5, 0.9))


def _rings(rng: np.random.Generator, x: Array, y: Array) -> Array:
    # Each cell has its own rings, so that a small crop shows curves wherever it lies.
    cell = _between(rng, 18.0, 24.0)
    x, y = _off_centre(x, cell), _off_centre(y, cell)
    return _stripes(rng, np.sqrt(x * x + y * y), 4.8, 6.4)


def _zigzag(rng: np.random.Generator, x: Array, y: Array) -> Array:
    return _stripes(rng, x + _off_centre(y, _between(rng, 11.0, 15.0)) * np.float32(1.2), 6.5, 9.0)


def _bricks(rng: np.random.Generator, x: Array, y: Array) -> Array:
    height = _between(rng, 5.0, 7.0)
    row = np.floor(y * np.float32(1 / height) - np.float32(0.5))
    shift = (row - np.float32(2) * np.floor(row * np.float32(0.5))) * np.float32(height)
    joint = np.minimum(_off_centre(x + shift, 2 * height), _off_centre(y, height))
    return _inside(joint, _between(rng, 0.5, 0.8))


def _smooth_noise(rng: np.random.Generator, size: int, cell: float) -> Array:
    """Draw a random value in [0, 255] for each cell of `cell` pixels, and interpolate: (size, size) float32."""
    count = int(size / cell) + 3
    values = Image.fromarray(rng.integers(0, 256, (count, count), dtype=np.uint8))
    left, top = rng.random(2) + 0.5
    box = (left, top, left + size / cell, top + size / cell)
    return np.asarray(values.resize((size, size), Image.Resampling.BICUBIC, box=box), dtype=np.float32)


def _blobs(rng: np.random.Generator, x: Array, y: Array) -> Array:
    noise = _smooth_noise(rng, len(x), _between(rng, 4.5, 6.0))
    return np.clip((noise - np.float32(127.5)) * np.float32(1 / 40) + np.float32(0.5), 0, 1)


def _speckle(rng: np.random.Generator, x: Array, y: Array) -> Array:
    noise = _smooth_noise(rng, len(x), _between(rng, 1.6, 2.2))
    return np.clip((noise - np.float32(127.5)) * np.float32(1 / 120) + np.float32(0.5), 0, 1)


_PATTERNS_BY_NAME: dict[str, Pattern] = {
    "fine stripes": _fine_stripes,
    "coarse stripes": _coarse_stripes,
    "checks": _checks,
    "dots": _dots,
    "grid": _grid,
    "rings": _rings,
    "zigzag": _zigzag,
    "bricks": _bricks,
    "blobs": _blobs,
    "speckle": _speckle,
}
TEXTURE_NAMES: tuple[str, ...] = tuple(_PATTERNS_BY_NAME)
_PATTERNS = tuple(_PATTERNS_BY_NAME.values())
# By split, the seed and the number of the labelled images of an evaluation; training uses seed 0.
EVALUATION_TEXTURES = {"train": (1_000_001, 5000), "test": (1_000_002, 2000)}


class TextureDataset(Dataset[dict[str, Any]]):
    """A map-style dataset of textures: `dataset[i]` is `{"image": RGB Pillow image, "label": index in TEXTURE_NAMES}`.

    An item is a pure function of (seed, index, size), so that processes agree on it and nothing is stored. Use disjoint
    ranges of indices, or two seeds, for training and test. All labels are equally likely.

    Args:
        size: Side of the square images in pixels, at least 8.
        seed: Seed of the images, a non-negative integer.
        length: Number of images; indices lie in [0, length).

    Raises:
        ValueError: For a size, seed or length outside its range.

    Example:
        >>> dataset = TextureDataset(size=64, seed=1, length=1000)
        >>> item = dataset[7]
        >>> item["image"].size, dataset.label_names[item["label"]]
        ((64, 64), 'bricks')
    """

    label_names = TEXTURE_NAMES

    def __init__(self, size: int = 40, seed: int = 0, length: int = 2**31) -> None:
        if size < 8:
            raise ValueError(f"Textures of {size} pixels show no structure: give a size of at least 8.")
        if seed < 0 or length < 0:
            raise ValueError(f"seed {seed} and length {length} must not be negative: give 0 or more.")
        self.size, self.seed, self.length = size, seed, length
        axis = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        self._x, self._y = (np.ascontiguousarray(a) for a in np.meshgrid(axis, axis))
        # Squares divided by the image's side bend a line by at most a few pixels, whatever the image's size.
        self._xx, self._yy = self._x**2 / np.float32(size), self._y**2 / np.float32(size)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = as_int(index)
        if not 0 <= index < self.length:
            raise IndexError(f"Texture {index} does not exist: use an index from 0 to {self.length - 1}.")
        rng = np.random.default_rng([self.seed, index])
        label = int(rng.integers(len(_PATTERNS)))
        pattern = _PATTERNS[label](rng, *self._coordinates(rng))
        return {"image": Image.fromarray(self._paint(rng, pattern)), "label": label}

    def _coordinates(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Return the pixel grid, rotated by any angle, moved by any phase and slightly bent: twice (size, size)."""
        a, b, phase_x, phase_y, bend_x, bend_y = rng.random(6) * 2 - 1
        norm = sqrt(a * a + b * b) or 1.0  # the direction of a random point: an angle without a cosine
        cosine, sine = np.float32(a / norm), np.float32(b / norm)
        x = self._x + self._yy * np.float32(0.3 * bend_x)
        y = self._y + self._xx * np.float32(0.3 * bend_y)
        return cosine * x - sine * y + np.float32(100 * phase_x), sine * x + cosine * y + np.float32(100 * phase_y)

    def _paint(self, rng: np.random.Generator, pattern: Array) -> Array:
        """Add two colours, light and noise to a pattern (size, size) in [0, 1]: uint8 (size, size, 3)."""
        # The colours differ in luminance, by either sign: otherwise a greyscale copy would show nothing.
        contrast = _between(rng, 0.3, 0.6) * (1 if rng.random() < 0.5 else -1)
        luminance = _between(rng, 0.3, 0.7) + np.array([-0.5, 0.5]) * contrast
        chroma = rng.random((2, 3)) * 0.7 - 0.35
        red, green, blue = chroma.T
        luminance -= 0.299 * red + 0.587 * green + 0.114 * blue
        first, second = ((luminance[:, None] + chroma) * 255).astype(np.float32)
        light_x, light_y = ((rng.random(2) * 1.4 - 0.7) / self.size).astype(np.float32)
        light = light_x * self._x + light_y * self._y + np.float32(1)
        noise = rng.random(pattern.shape, dtype=np.float32)
        noise -= np.float32(0.5)
        noise *= np.float32(_between(rng, 10, 40))
        image = (pattern * light)[..., None] * (second - first) + light[..., None] * first
        image += noise[..., None]
        return np.clip(image, 0, 255, out=image).astype(np.uint8)
