"""The image processor with which pre-trained features are meant to be read."""

from collections.abc import Sequence

from transformers import BitImageProcessorPil

from .crops import CropArguments


def evaluation_processor(
    image_size: int, image_mean: Sequence[float] | None = None, image_std: Sequence[float] | None = None
) -> BitImageProcessorPil:
    """Resize the short side to 8/7 of `image_size` (256 for 224, the usual evaluation), crop the centre, normalise; as
    training does by default, if no mean and standard deviation are given.

    The Pillow class is named outright as it needs no torchvision; saved, it is the `BitImageProcessor` of stock DINOv2.
    """
    usual = CropArguments()
    return BitImageProcessorPil(
        size={"shortest_edge": round(image_size * 8 / 7)},
        crop_size={"height": image_size, "width": image_size},
        resample=3,
        image_mean=list(image_mean or usual.image_mean),
        image_std=list(image_std or usual.image_std),
    )
