"""The image processor for which pre-trained features are meant, and how it is given images of any channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessorPil
from transformers.image_processing_utils import BaseImageProcessor

from .crop_arguments import usual_statistics
from .decoding import Pixels


def evaluation_processor(
    image_size: int,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    image_range: Sequence[float] | None = None,
) -> BitImageProcessorPil:
    """Make the image processor of evaluations: resize, crop the centre, normalise.

    The short side is resized to 8/7 of `image_size` (256 for 224), as is usual.

    The Pillow class is used because it needs no torchvision; it is saved as the `BitImageProcessor` of stock DINOv2.

    Args:
        image_size: Side of the centre crop in pixels.
        image_mean: Mean of each channel in 0..1; ImageNet's by default.
        image_std: Standard deviation of each channel in 0..1; likewise.
        image_range: The values that are black and white (`CropArguments`); saved with the processor for
            `prepared_images`, and not used by transformers.
    """
    usual = usual_statistics(3)
    mean, std = list(image_mean or usual[0]), list(image_std or usual[1])
    of_channels: dict[str, Any] = {} if len(mean) == 3 else {"do_convert_rgb": False}
    if image_range is not None:
        of_channels["image_range"] = list(image_range)
    return BitImageProcessorPil(
        size={"shortest_edge": round(image_size * 8 / 7)},
        crop_size={"height": image_size, "width": image_size},
        resample=3,
        image_mean=mean,
        image_std=std,
        **of_channels,
    )


def usual_processor(config: Any) -> BitImageProcessorPil:
    """Make the image processor of a model that was saved without one, from its `image_size` and `num_channels`."""
    return evaluation_processor(config.image_size, *usual_statistics(config.num_channels))


def decoding_of(processor: BaseImageProcessor) -> dict[str, Any]:
    """Return the arguments of `open_image` that make the images which a processor takes.

    The channels are as many as its means: three if it has no list of them.
    """
    mean = getattr(processor, "image_mean", None)
    num_channels = len(mean) if isinstance(mean, list | tuple) else 3
    return {"num_channels": num_channels, "value_range": getattr(processor, "image_range", None)}


def resized_images(processor: Any, images: Sequence[Pixels]) -> list[Pixels]:
    """Return images as `prepared_images` resizes and crops them, but with 8 bits per channel, as `open_image` does.

    `scaled_images` makes of them what a model takes.
    """
    prepared = prepared_images(processor, images, do_rescale=False, do_normalize=False)  # (B, C, H, W)
    arrays = prepared.to(torch.uint8).permute(0, 2, 3, 1).numpy()
    if isinstance(images[0], np.ndarray):
        return list(arrays)
    return [Image.fromarray(array if array.shape[2] > 1 else array[..., 0]) for array in arrays]


def scaled_images(processor: Any, images: Sequence[Pixels]) -> Tensor:
    """Return images (B, C, H, W) of the size that a model takes, with their values scaled as it takes them."""
    geometry = {name: False for name in ("do_resize", "do_center_crop", "do_pad") if hasattr(processor, name)}
    return prepared_images(processor, images, **geometry)


def prepared_images(processor: Any, images: Sequence[Pixels], **options: Any) -> Tensor:
    """Return the images (B, C, H, W) as a model takes them.

    Stock processors resize with Pillow, which takes the last of two or four channels for opacity, and has no images of
    five channels and more. So arrays are given to the processor one channel after the other, each with its own mean and
    standard deviation.

    Args:
        processor: An image processor of transformers.
        images: What `open_image` returns, decoded as `decoding_of` says.
        **options: Further arguments of the processor, such as `size`.

    Raises:
        ValueError: From the processor, for example if it leaves the images in different sizes.
    """
    arrays = [image for image in images if isinstance(image, np.ndarray)]
    if not arrays:
        values: Tensor = processor(list(images), return_tensors="pt", **options).pixel_values
        return values
    channels = []
    for index, (mean, std) in enumerate(zip(processor.image_mean, processor.image_std, strict=True)):
        options |= {"image_mean": [mean], "image_std": [std], "do_convert_rgb": False}
        grey = [np.ascontiguousarray(array[None, ..., index]) for array in arrays]
        channels.append(
            processor(grey, return_tensors="pt", input_data_format="channels_first", **options).pixel_values
        )
    return torch.cat(channels, dim=1)
