"""Altered test images: what a task changes in them to see how much of the accuracy is left.

A task declares its alterations (`Task.alterations`). The evaluator computes the features of every altered test image in
the pass in which it computes those of the image itself, so that each image is read and decoded once.

An alteration is a frozen dataclass that only holds its settings. So it can be sent to workers and processes, two tasks
that declare equal alterations share the work, and a task finds its features by making the alteration again. There are
two kinds: `ImageAlteration` changes images of 8 bits per channel in the workers, as they are decoded or as the model
sees them; `PixelAlteration` changes prepared batches on the device of the model.

What is random in an alteration is drawn with `random_of`, from a seed and from the image's own content. So an image is
altered in the same way whatever the batch, the worker, the process, the order of the rows and the sample that is tested
on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from torch import Tensor

from ...data.decoding import Pixels
from ..images.layer_features import LayerFeatures
from ..labelled import LabelledImages, LabelledRow

MadeT = TypeVar("MadeT")


def random_of(image_hash: bytes, seed: int, purpose: str) -> np.random.Generator:
    """Return the random numbers of one image.

    Args:
        image_hash: A hash of the image's content (`ImageId.hash`).
        seed: The seed of the evaluation.
        purpose: What they are for. Alterations with the same purpose get the same numbers.

    Example:
        >>> first, again = (random_of(b"an image", 0, "noise").integers(100) for _ in range(2))
        >>> bool(first == again)
        True
    """
    digest = hashlib.blake2b(f"{seed} {purpose} ".encode() + image_hash, digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest))


@dataclass(frozen=True)
class AlteredSplit:
    """A split whose images are altered, for alterations that need others of its images.

    Args:
        images: The split.
        decoding: The arguments of `open_image`.
    """

    images: LabelledImages
    decoding: Mapping[str, Any]
    _made: dict[Any, Any] = field(default_factory=dict)

    def once(self, make: Callable[[LabelledImages, Mapping[str, Any]], MadeT]) -> MadeT:
        """Return what a function makes of the images, which are read once for all alterations that ask for it."""
        if make not in self._made:
            self._made[make] = make(self.images, self.decoding)
        made: MadeT = self._made[make]
        return made


@dataclass(frozen=True)
class ImageAlteration:
    """A change of images with 8 bits per channel. Subclasses hold its settings.

    Attributes:
        resized: Whether it changes images as the model sees them, resized and cropped, instead of those of the dataset.
        fits: Whether the altered images have the size that the model takes already, and are not resized any more.
    """

    resized: ClassVar[bool] = False
    fits: ClassVar[bool] = False

    def ready(self, split: AlteredSplit) -> Self:
        """Return an equal alteration that holds what it needs of the split's other images.

        It runs before the pass, in each process. Raises ValueError for a split that lacks what the alteration needs.
        """
        return self

    def alter(self, image: Pixels, row: LabelledRow, image_hash: bytes) -> Pixels | None:
        """Return the altered image; None for an image that this alteration leaves out.

        It may have another size, unless images are `resized`. It runs in the workers. The image must not be changed in
        place.

        Args:
            image: The image.
            row: The row that holds it.
            image_hash: A hash of its content, for `random_of`.

        Raises:
            ValueError: In one sentence with the row, for a row that lacks what the alteration needs.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class PixelAlteration:
    """A change of images as the model takes them. Subclasses hold its settings."""

    def alter(self, batch: PixelBatch) -> Tensor:
        """Return the altered images (B, C, H, W). Those of the batch must not be changed in place.

        Raises:
            ValueError: In one sentence, for images that cannot be altered, for example as they are too small.
        """
        raise NotImplementedError


Alteration = ImageAlteration | PixelAlteration


@dataclass(frozen=True)
class ModelInput:
    """What the images are that a model gets, which decides on usual settings of alterations.

    Args:
        height: Their height in pixels.
        width: Their width.
        patch_size: The side in pixels of the patches that a ViT divides them into; None for models without patches of
            one size, such as Swin and ResNet.
    """

    height: int
    width: int
    patch_size: int | None = None

    @property
    def sides(self) -> tuple[int, int]:
        return self.height, self.width


@dataclass(frozen=True)
class PixelBatch:
    """A batch of prepared images.

    Args:
        pixel_values: (B, C, H, W) on the device of the model.
        hashes: Hashes of the images' content, for `random_of`.
        guide: A function from `pixel_values` to the saliency (B, h, w) of their patches, where there is one.
    """

    pixel_values: Tensor
    hashes: Sequence[bytes]
    guide: Callable[[Tensor], Tensor] | None

    @cached_property
    def saliency(self) -> Tensor:
        """How salient each patch of the images is, (B, h, w), computed once for all alterations that ask for it."""
        if self.guide is None:
            raise ValueError("The model does not tell which patches of an image are salient: give a guide that does.")
        return self.guide(self.pixel_values)


def check_alterations(alterations: Sequence[Alteration], batch: PixelBatch) -> None:
    """Raise ValueError if images like those of a batch cannot be altered on the device, before any work.

    Args:
        alterations: Those of images as the model takes them are tried, others not.
        batch: Images of the size that the model gets.
    """
    for alteration in alterations:
        if isinstance(alteration, PixelAlteration):
            alteration.alter(batch)


@dataclass(frozen=True)
class AlteredFeatures:
    """The features of a split's altered images.

    Args:
        features: (N, D), in the order of the split's own features.
        kept: bool (N,), False for images that the alteration leaves out, whose features are those of the image itself.
        layers: The features of several layers, if a task needs them.
    """

    features: Tensor
    kept: Tensor
    layers: LayerFeatures | None = None
