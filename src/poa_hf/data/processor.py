"""The image processor for which pre-trained features are meant."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import BitImageProcessorPil

from .crop_arguments import CropArguments


def evaluation_processor(
    image_size: int, image_mean: Sequence[float] | None = None, image_std: Sequence[float] | None = None
) -> BitImageProcessorPil:
    """Make the image processor of evaluations: resize, crop the centre, normalise.

    The short side is resized to 8/7 of `image_size` (256 for 224), as is usual.

    The Pillow class is used because it needs no torchvision; it is saved as the `BitImageProcessor` of stock DINOv2.

    Args:
        image_size: Side of the centre crop in pixels.
        image_mean: Mean of red, green and blue in 0..1; that of training by default (`CropArguments`).
        image_std: Standard deviation of red, green and blue in 0..1; likewise.
    """
    defaults = CropArguments()
    return BitImageProcessorPil(
        size={"shortest_edge": round(image_size * 8 / 7)},
        crop_size={"height": image_size, "width": image_size},
        resample=3,
        image_mean=list(image_mean or defaults.image_mean),
        image_std=list(image_std or defaults.image_std),
    )
