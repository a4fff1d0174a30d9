"""Common corruptions of images at five strengths: noise, blur, JPEG, brightness and contrast.

Source: Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
and the parameters of their code. They published two sets: CIFAR-10-C's, for images of 32 pixels, and ImageNet-C's, for
those of 224. Both are used as they are at these sizes. In between, a parameter grows from the one to the other by the
same factor for each doubling of the image's shorter side; images below 32 pixels are treated as those of 32; above 224,
lengths (of blurs) grow in proportion to the shorter side, while all else stays as it is.

Images are corrupted as the model sees them, resized and cropped to its input, as ImageNet-C's were: otherwise the noise
of a large photograph would be averaged away. So the sizes above are those of the model's input.

Of their fifteen corruptions, these are the ones that need neither pictures of frost nor further libraries. Gaussian
blur is one of their additional ones. Results are rounded to 8 bits, where the authors cut off.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from ...data.decoding import Pixels
from ..labelled import LabelledRow
from .alteration import ImageAlteration, random_of

Floats = NDArray[np.float32]  # an image (height, width, channels) from 0 to 1

STRENGTHS = (1, 2, 3, 4, 5)
SMALL, LARGE = 32, 224  # the sides for which parameters were published


@dataclass(frozen=True)
class Parameter:
    """One parameter of a corruption.

    Args:
        small: Its values at the five strengths, for images of 32 pixels.
        large: The same for images of 224 pixels.
        is_length: Whether it is a number of pixels, which grows with images beyond 224.
    """

    small: tuple[float, ...]
    large: tuple[float, ...]
    is_length: bool = False

    def at(self, strength: int, side: int) -> float:
        """Return its value at a strength, for an image with this shorter side."""
        small, large = self.small[strength - 1], self.large[strength - 1]
        share = log(min(max(side, SMALL), LARGE) / SMALL) / log(LARGE / SMALL)
        value = small ** (1 - share) * large**share
        return value * side / LARGE if self.is_length and side > LARGE else value


def _gaussian_noise(image: Floats, rng: np.random.Generator, deviation: float) -> Floats:
    return image + np.float32(deviation) * rng.standard_normal(image.shape, dtype=np.float32)


def _shot_noise(image: Floats, rng: np.random.Generator, photons: float) -> Floats:
    return (rng.poisson(image * photons) / photons).astype(np.float32)


def _gaussian_blur(image: Floats, rng: np.random.Generator, deviation: float) -> Floats:
    return gaussian_filter(image, (deviation, deviation, 0), mode="nearest")


def _motion_blur(image: Floats, rng: np.random.Generator, radius: float, deviation: float) -> Floats:
    """Smear the image along a line, in a random direction within 45 degrees of the horizontal."""
    angle = np.deg2rad(rng.uniform(-45, 45))
    taps = np.arange(2 * round(radius) + 1)
    offsets = np.rint(np.outer(taps, [np.sin(angle), np.cos(angle)])).astype(int)
    weights = np.exp(-0.5 * (taps / deviation) ** 2)
    height, width = image.shape[:2]
    reach = len(taps)
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    result = np.zeros_like(image)
    for (down, right), weight in zip(offsets.tolist(), weights / weights.sum(), strict=True):
        moved = padded[reach + down : reach + down + height, reach + right : reach + right + width]
        result += np.float32(weight) * moved
    return result


def _jpeg(image: Floats, rng: np.random.Generator, quality: float) -> Floats:
    pixels = _rounded(image)
    if pixels.shape[2] == 3:
        return _as_floats(_through_jpeg(pixels, quality))
    # JPEG has no images of other channels: each is stored as a grey one
    channels = [_through_jpeg(pixels[..., channel], quality) for channel in range(pixels.shape[2])]
    return _as_floats(np.stack(channels, axis=-1))


def _through_jpeg(pixels: NDArray[np.uint8], quality: float) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=round(quality))
    return np.asarray(Image.open(file))


def _brightness(image: Floats, rng: np.random.Generator, added: float) -> Floats:
    """Add to the value (the largest channel) of each pixel, and keep its hue and its saturation."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + np.float32(added), 1)
    # black has no hue, and becomes grey
    return np.where(value > 0, image * (brighter / np.where(value > 0, value, 1)), brighter)


def _contrast(image: Floats, rng: np.random.Generator, factor: float) -> Floats:
    mean = image.mean(axis=(0, 1), keepdims=True, dtype=np.float64).astype(np.float32)
    return (image - mean) * np.float32(factor) + mean


_KINDS: dict[str, tuple[Callable[..., Floats], tuple[Parameter, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (Parameter((0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38)),)),
    "shot_noise": (_shot_noise, (Parameter((500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),)),
    "gaussian_blur": (_gaussian_blur, (Parameter((0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6), True),)),
    "motion_blur": (
        _motion_blur,
        (
            Parameter((6, 6, 6, 8, 9), (10, 15, 15, 15, 20), True),
            Parameter((1, 1.5, 2, 2, 2.5), (3, 5, 8, 12, 15), True),
        ),
    ),
    "jpeg": (_jpeg, (Parameter((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),)),
    "brightness": (_brightness, (Parameter((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),)),
    "contrast": (_contrast, (Parameter((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),)),
}
CORRUPTIONS = tuple(_KINDS)


def corrupted(image: Pixels, name: str, strength: int, rng: np.random.Generator) -> Pixels:
    """Return a corrupted copy of an image.

    Args:
        image: As `open_image` returns it: a Pillow image of mode RGB or L, or an array uint8 (height, width, channels).
        name: One of `CORRUPTIONS`.
        strength: From 1, the weakest, to 5.
        rng: The source of what is random in it: noise, and the direction of motion.

    Example:
        >>> grey = Image.new("RGB", (32, 32), (100, 100, 100))
        >>> corrupted(grey, "brightness", 5, np.random.default_rng(0)).getpixel((0, 0))  # 0.3 of 255 are added
        (177, 177, 177)
    """
    function, parameters = _KINDS[name]
    pixels = np.asarray(image)
    floats = _as_floats(pixels if pixels.ndim == 3 else pixels[..., None])
    side = min(floats.shape[:2])
    result = _rounded(function(floats, rng, *(parameter.at(strength, side) for parameter in parameters)))
    if isinstance(image, np.ndarray):
        return result
    return Image.fromarray(result if image.mode == "RGB" else result[..., 0])


@dataclass(frozen=True)
class Corruption(ImageAlteration):
    """Corrupts images as the model sees them.

    Args:
        name: One of `CORRUPTIONS`.
        strength: From 1 to 5. All strengths of one corruption share the random numbers of an image.
        seed: The seed of these.
    """

    name: str
    strength: int
    seed: int = 0
    resized: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.name.replace('_', ' ')}, strength {self.strength}"

    def alter(self, image: Pixels, row: LabelledRow, image_hash: bytes) -> Pixels:
        return corrupted(image, self.name, self.strength, random_of(image_hash, self.seed, self.name))


def _as_floats(pixels: NDArray[np.uint8]) -> Floats:
    return pixels.astype(np.float32) / np.float32(255)


def _rounded(image: Floats) -> NDArray[np.uint8]:
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
