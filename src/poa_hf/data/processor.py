"""The image processor with which pre-trained features are meant to be read."""

from transformers import BitImageProcessorPil


def evaluation_processor(image_size: int, image_mean: list[float], image_std: list[float]) -> BitImageProcessorPil:
    """Resize the short side to 8/7 of `image_size` (256 for 224, the usual evaluation), crop the centre, normalise.

    The Pillow class is named outright as it needs no torchvision; saved, it is the `BitImageProcessor` of stock DINOv2.
    """
    return BitImageProcessorPil(
        size={"shortest_edge": round(image_size * 8 / 7)},
        crop_size={"height": image_size, "width": image_size},
        resample=3,
        image_mean=list(image_mean),
        image_std=list(image_std),
    )
