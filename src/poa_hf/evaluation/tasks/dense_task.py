"""The parts of a task that looks at patches: an example, the options of all such tasks, and what a task does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...data.decoding import Pixels
from ...ranges import COUNT, check_number
from ..data.coinciding import ImageId
from .task import Options, Score

Fitted = dict[str, Any]
HELD_OUT = 0.1  # of the train images, to pick a learning rate


@dataclass(frozen=True)
class DenseOptions(Options):
    """The options that tasks of patches have in common.

    Args:
        dense_image_size: The short side in pixels of the images that the model gets; by default that of the images its
            processor makes.
    """

    dense_image_size: int | None = None

    def check(self) -> None:
        """Raise ValueError for a size that is not valid."""
        if self.dense_image_size is not None:
            check_number("dense_image_size", self.dense_image_size, COUNT)


@dataclass
class Example:
    """An image as a worker returns it.

    Args:
        name: The name of its row.
        image_id: What the image is known by.
        pixel_values: The whole image as the model takes it, (C, H, W).
        values: By kind, the value of each pixel: whole numbers of classes or float32 distances, (height, width) of the
            image itself.
        views: By task, another view of the image, (C, H, W).
        geometry: By task, where that view lies in the image.
    """

    name: str
    image_id: ImageId
    pixel_values: Tensor
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    views: dict[str, Tensor] = field(default_factory=dict)
    geometry: dict[str, Any] = field(default_factory=dict)

    def generator(self, seed: int) -> torch.Generator:
        """Return a generator that depends on the image and the seed alone: not on batches, workers or processes."""
        drawn = np.random.SeedSequence([seed, int.from_bytes(self.image_id.hash, "big")]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(drawn[0] >> 1))


def drawn_pixels(counted: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw pixels of an image with replacement, none if none count.

    Args:
        counted: Which pixels count, bool (height, width).
        count: How many to draw.
        generator: The image's random numbers.

    Returns:
        Their rows and columns, and for each the image's share that `held_out_rows` takes, all (count,).
    """
    rows, columns = counted.nonzero(as_tuple=True)
    drawn = torch.randint(max(1, len(rows)), (count if len(rows) else 0,), generator=generator)
    share = torch.rand(1, generator=generator)
    return rows[drawn], columns[drawn], share.expand(len(drawn))


def held_out_rows(shares: Tensor, seed: int) -> Tensor:
    """Return which rows of samples are held out to pick a learning rate: those of a tenth of the images, (N,) bool.

    Args:
        shares: A random number in [0, 1) for each row, the same for all rows of an image.
        seed: Decides which rows are held out where all are of one image.
    """
    images = shares.unique()
    if len(images) == 1:
        return torch.rand(len(shares), generator=torch.Generator().manual_seed(seed)) < HELD_OUT
    return shares <= images.kthvalue(max(1, round(HELD_OUT * len(images)))).values


OptionsT = TypeVar("OptionsT", bound=DenseOptions, contravariant=True)


class DenseTask(ABC, Generic[OptionsT]):
    """One way to measure how good the features of patches are. They are never all in memory.

    In a pass over the train split, `collect` keeps a sample of each image; `fit` makes a predictor of the samples. In a
    pass over the test split, `measure` gives some numbers for each image; `scores` are made of the numbers of all.

    Attributes:
        name: What `--tasks` and recorded evaluations call it.
        kind: The values of pixels that it needs, one of `pixel_values.KINDS`; None if it needs none.
        needs_train: Whether it needs a train split.
    """

    name: str
    kind: str | None = None
    needs_train: bool = True

    def check(self, options: OptionsT, train_images: int | None) -> None:
        """Raise ValueError for options that are not valid, or not with this number of train images, if it is known."""
        options.check()

    def remark(self, options: OptionsT, train_images: int) -> str | None:
        """Return a sentence about what is left out with this number of train images, or None."""
        return None

    def view(self, image: Pixels, generator: torch.Generator, options: OptionsT) -> tuple[Pixels, Any] | None:
        """Return another view of an image that is ready for the model but for its scale, and where it lies in it."""
        return None

    def collect(self, features: Tensor, example: Example, quota: int, options: OptionsT) -> dict[str, Tensor]:
        """Return a sample of a train image: tensors of rows, of the same names for each image.

        Args:
            features: (h, w, D) on the device.
            example: The image.
            quota: The number of patches or pixels of an image that are kept at most.
            options: The options.

        Raises:
            ValueError: For values that are not valid. The row's name is put before the message.
        """
        return {}

    def fit(self, samples: Mapping[str, Tensor], split: str, options: OptionsT, device: torch.device) -> Fitted:
        """Return a predictor, as tensors on the CPU and plain values, of the samples of all train images.

        Raises:
            ValueError: For samples that nothing can be learned from.
        """
        return {}

    @abstractmethod
    def measure(
        self, fitted: Fitted, features: Tensor, view: Tensor | None, example: Example, options: OptionsT
    ) -> Tensor:
        """Return the numbers of a test image, of the same shape for each.

        Args:
            fitted: The predictor, with its tensors on the device.
            features: (h, w, D) on the device.
            view: The features of the other view, if `view` makes one.
            example: The image.
            options: The options.

        Raises:
            ValueError: For values that are not valid. The row's name is put before the message.
        """

    @abstractmethod
    def scores(self, outcomes: Tensor, fitted: Fitted, split: str, options: OptionsT) -> list[Score]:
        """Return the scores from the numbers of all test images, (N, ...) float64.

        Raises:
            ValueError: If there is nothing that counts.
        """
