"""Images whole and without augmentation, for features that are computed once per image.

Follows `rows` and `decoding`; `training.teacher_cache` gives them to a foreign teacher.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import Dataset

from .crop_arguments import CropArguments
from .decoding import UndecodableImage, open_image
from .rows import IndexedImages


class WholeImages(Dataset[tuple[str, Tensor | None]]):
    """Images by index, resized to a square as a whole, each with its id in batches (`PretrainingLoader`).

    The pixels are uint8 (C, side, side), or None if the image cannot be decoded, as it is then in no batch either.

    Args:
        images: The undecoded images.
        args: How they are decoded.
        side: Their side in pixels.
    """

    def __init__(self, images: IndexedImages, args: CropArguments, side: int):
        self.images, self.args, self.side = images, args, side

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[str, Tensor | None]:
        row, args = self.images.row(index), self.args
        try:
            image = open_image(row.image, args.max_image_pixels, args.num_channels, args.image_range)
        except UndecodableImage:
            return row.name, None
        array = np.array(image)
        # an image of mode L has no axis for its channel
        pixels = torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)[None]
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        return row.name, interpolate(pixels, (self.side, self.side), mode="bicubic", antialias=True)[0].contiguous()
