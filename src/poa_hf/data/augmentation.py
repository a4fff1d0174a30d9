"""Augmentation of a batch of crops on the training device, with the parameters that `crops.multi_crop` drew.

Operations follow Pillow and torchvision in definition and order (flip, colour jitter, grey, blur, solarise, normalise),
but compute in float32 without rounding to 8 bits in between. Each runs only on the crops that it applies to.

Saturation, hue, grey and solarisation are defined for red, green and blue: crops of any other number of channels keep
the flip, brightness, contrast (towards the mean of all their values) and blur, which treat all channels alike.

Follows `loader`, which hands out the batches; `training.trainer` gives the result to the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

BLUR_KERNEL = 9  # pixels, as in DINO
SOLARIZE_THRESHOLD = 0.5
Operation = Callable[..., Tensor]  # of images (n, C, H, W) and values (n,)


@torch.no_grad()
def augment(
    crops: Tensor,
    parameters: dict[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    colour_all: Callable[[Tensor, dict[str, Tensor]], Tensor] | None = None,
) -> Tensor:
    """Flip, colour, blur, solarise and normalise crops.

    Args:
        crops: uint8 (N, C, H, W); RGB if C is 3.
        parameters: What `crops.draw_augmentation` drew, one row per crop. Leave them on the CPU: which crops an
            operation applies to is then known without waiting for the device.
        mean: Mean of each channel, of pixels in 0..1.
        std: Standard deviation of each channel, of pixels in 0..1.
        colour_all: A compiled `coloured`, which flips and colours all crops in few kernels; None runs each operation on
            the crops that it applies to, in a thousand.

    Returns:
        float32 (N, C, H, W), on the device of the crops.

    Raises:
        ValueError: If there is not one row of parameters per crop, or not one mean and deviation per channel.

    Example:
        >>> import numpy as np
        >>> from poa_hf.data.crops import CropArguments, draw_augmentation
        >>> args = CropArguments(num_local_crops=2)
        >>> drawn = draw_augmentation(np.random.default_rng(0), args)  # for 2 global and 2 local crops
        >>> parameters = {name: torch.from_numpy(values) for name, values in drawn.items()}
        >>> crops = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
        >>> augment(crops, parameters, args.image_mean, args.image_std).shape
        torch.Size([4, 3, 32, 32])
    """
    if len(crops) != len(parameters["flip"]):
        raise ValueError(f"{len(crops)} crops, but parameters for {len(parameters['flip'])}: give one row per crop.")
    if not crops.shape[1] == len(mean) == len(std):
        raise ValueError(
            f"The crops have {crops.shape[1]} channels, the mean {len(mean)} and the standard deviation {len(std)}: "
            "give one number per channel."
        )
    with torch.autocast(crops.device.type, enabled=False):
        return _augment(crops, {name: values.cpu() for name, values in parameters.items()}, mean, std, colour_all)


def coloured(crops: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    """Flip, jitter and grey crops, with each operation computed for all of them and kept where it applies.

    That is several times the arithmetic, but a compiler makes three dozen kernels of it.

    Args:
        crops: uint8 (N, C, H, W); RGB if C is 3.
        parameters: As for `augment`, on the device of the crops.

    Returns:
        float32 (N, C, H, W), in 0..1.
    """
    from kornia.color import rgb_to_grayscale

    def chosen(mask: Tensor, changed: Tensor, images: Tensor) -> Tensor:
        return torch.where(mask[:, None, None, None], changed, images)

    is_rgb = crops.shape[1] == 3
    operations = _jitter(is_rgb)
    images = crops.to(torch.float32).div(255)
    images = chosen(parameters["flip"], images.flip(-1), images)
    for place in range(parameters["order"].shape[1]):
        result = images
        for number, (name, (operation, neutral)) in enumerate(operations.items()):
            due = parameters["jitter"] & (parameters["order"][:, place] == number) & (parameters[name] != neutral)
            result = chosen(due, operation(images, parameters[name]), result)
        images = result
    if not is_rgb:
        return images
    return chosen(parameters["grayscale"], rgb_to_grayscale(images).expand(-1, 3, -1, -1), images)


def _jitter(is_rgb: bool) -> dict[str, tuple[Operation, int]]:
    """Return the operations of colour jitter by name, each with the value that changes nothing.

    They are in the order of the numbers by which `parameters["order"]` calls them.
    """
    # kornia takes more than a second to import, which only training should pay
    from kornia.enhance import (
        adjust_brightness_accumulative,
        adjust_contrast_with_mean_subtraction,
        adjust_hue,
        adjust_saturation_with_gray_subtraction,
    )

    of_any = {
        "brightness": (adjust_brightness_accumulative, 1),
        "contrast": (adjust_contrast_with_mean_subtraction, 1),
    }
    of_rgb = {
        "saturation": (adjust_saturation_with_gray_subtraction, 1),
        "hue": (lambda images, turns: adjust_hue(images, turns * (2 * torch.pi)), 0),
    }
    return {**of_any, **of_rgb} if is_rgb else of_any


def _augment(
    crops: Tensor,
    parameters: dict[str, Tensor],
    mean: Sequence[float],
    std: Sequence[float],
    colour_all: Callable[[Tensor, dict[str, Tensor]], Tensor] | None,
) -> Tensor:
    # kornia takes more than a second to import, which only training should pay
    from kornia.color import rgb_to_grayscale
    from kornia.filters import gaussian_blur2d

    device, is_rgb = crops.device, crops.shape[1] == 3
    operations = _jitter(is_rgb)
    if colour_all is not None:
        names = ("flip", "jitter", "order", *operations, "grayscale")
        images = colour_all(crops, {name: parameters[name].to(device, non_blocking=True) for name in names})
    else:
        images = crops.to(torch.float32).div_(255)

    def change(mask: Tensor, operation: Operation, *values: Tensor, device: torch.device = device) -> None:
        """Replace the images that `mask` (N,) selects by `operation(images, *values of these images on the device)`."""
        index = mask.nonzero().squeeze(1)
        if len(index) == 0:
            return
        selected = [value[index].to(device, non_blocking=True) for value in values]
        index = index.to(images.device, non_blocking=True)
        images.index_copy_(0, index, operation(images.index_select(0, index), *selected))

    def blur(selected: Tensor, sigma: Tensor) -> Tensor:
        # reflection at the border needs a kernel less than twice the size of the image
        height, width = (min(BLUR_KERNEL, 2 * side - 1) for side in selected.shape[-2:])
        return gaussian_blur2d(selected, (height, width), sigma[:, None].expand(-1, 2))

    def solarize(selected: Tensor) -> Tensor:
        # not kornia's, which copies the threshold to the device and waits for that
        return torch.where(selected < SOLARIZE_THRESHOLD, selected, 1 - selected)

    if colour_all is None:
        change(parameters["flip"], lambda selected: selected.flip(-1))
        for place in range(parameters["order"].shape[1]):
            for number, (name, (operation, neutral)) in enumerate(operations.items()):
                due = parameters["jitter"] & (parameters["order"][:, place] == number)
                change(due & (parameters[name] != neutral), operation, parameters[name])
        if is_rgb:
            change(parameters["grayscale"], lambda selected: rgb_to_grayscale(selected).expand(-1, 3, -1, -1))
    # kornia reads these values, for which it would have to wait if they were on a GPU
    change(parameters["blur"], blur, parameters["sigma"], device=torch.device("cpu"))
    if is_rgb:
        change(parameters["solarize"], solarize)

    centre, scale = (
        torch.tensor(list(values), dtype=torch.float32).view(1, -1, 1, 1).to(device, non_blocking=True)
        for values in (mean, std)
    )
    return images.sub_(centre).div_(scale)
