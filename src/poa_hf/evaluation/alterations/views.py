"""Augmented views of train images: what a linear probe learns from in the standard protocols.

Each view is a random part of the image, of 8 to 100 % of its area, resized to what the model takes and mirrored with a
probability of a half: torchvision's `RandomResizedCrop` and `RandomHorizontalFlip`, as DINOv2 and POA use them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from ...data.crops import cut_box, draw_boxes
from ...data.decoding import Pixels
from ..labelled import LabelledRow
from .alteration import ImageAlteration, random_of

SCALE = (0.08, 1.0)  # share of the image's area
FLIP_PROBABILITY = 0.5


@dataclass(frozen=True)
class TrainingView(ImageAlteration):
    """A random part of an image, resized and perhaps mirrored.

    Args:
        number: Which view of the image it is, from 0.
        height: The height of the view in pixels.
        width: Its width.
        seed: The seed of the evaluation.
    """

    number: int
    height: int
    width: int
    seed: int = 0
    fits: ClassVar[bool] = True

    def alter(self, image: Pixels, row: LabelledRow, image_hash: bytes) -> Pixels:
        random = random_of(image_hash, self.seed, f"training view {self.number}")
        width, height = (image.shape[1], image.shape[0]) if isinstance(image, np.ndarray) else image.size
        [box] = draw_boxes(random, width, height, np.array(SCALE[:1]), np.array(SCALE[1:]))
        view = cut_box(image, box, (self.height, self.width))  # (H, W, C)
        if random.random() < FLIP_PROBABILITY:
            view = np.ascontiguousarray(view[:, ::-1])
        if isinstance(image, np.ndarray):
            return view
        return Image.fromarray(view if view.shape[2] > 1 else view[..., 0])
