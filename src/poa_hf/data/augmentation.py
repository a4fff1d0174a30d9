"""The colour work of crops, for a whole batch and on the training device, with the values that `multi_crop` drew.

Operations follow Pillow and torchvision in definition and order (flip, colour jitter, grey, blur, solarise, normalise),
but work in float32 without rounding to 8 bits in between. Each runs only on the crops that it applies to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLUR_KERNEL = 9  # pixels, as in DINO
SOLARIZE_THRESHOLD = 0.5


@torch.no_grad()
def augment(crops: Tensor, parameters: dict[str, Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Flip, colour, blur, solarise and normalise uint8 crops (N, 3, H, W): float32 of the same shape and device.

    `parameters` are those of `draw_augmentation`, one row per crop. Leave them on the CPU: which crops an operation
    applies to is then known without waiting for the device. `mean` and `std` are those of pixels in 0..1.
    """
    if len(crops) != len(parameters["flip"]):
        raise ValueError(f"{len(crops)} crops, but parameters for {len(parameters['flip'])}: give a row each.")
    with torch.autocast(crops.device.type, enabled=False):
        return _augment(crops, {name: values.cpu() for name, values in parameters.items()}, mean, std)


def _augment(crops: Tensor, parameters: dict[str, Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    # kornia takes more than a second to import, which only training should pay
    from kornia.color import rgb_to_grayscale
    from kornia.enhance import (
        adjust_brightness_accumulative,
        adjust_contrast_with_mean_subtraction,
        adjust_hue,
        adjust_saturation_with_gray_subtraction,
    )
    from kornia.filters import gaussian_blur2d

    device = crops.device
    images = crops.to(torch.float32).div_(255)

    def change(mask: Tensor, operation, *values: Tensor, device=device):
        """Replace the images that `mask` selects by `operation(images, *values of these images on the device)`."""
        index = mask.nonzero().squeeze(1)
        if len(index) == 0:
            return
        values = [value[index].to(device, non_blocking=True) for value in values]
        index = index.to(images.device, non_blocking=True)
        images.index_copy_(0, index, operation(images.index_select(0, index), *values))

    def blur(selected: Tensor, sigma: Tensor) -> Tensor:
        # reflection at the border needs a kernel less than twice the size of the image
        kernel = tuple(min(BLUR_KERNEL, 2 * side - 1) for side in selected.shape[-2:])
        return gaussian_blur2d(selected, kernel, sigma[:, None].expand(-1, 2))

    def solarize(selected: Tensor) -> Tensor:
        # not kornia's, which takes the threshold to the device and waits for that
        return torch.where(selected < SOLARIZE_THRESHOLD, selected, 1 - selected)

    jitter = {  # operation, and the value that changes nothing
        "brightness": (adjust_brightness_accumulative, 1),
        "contrast": (adjust_contrast_with_mean_subtraction, 1),
        "saturation": (adjust_saturation_with_gray_subtraction, 1),
        "hue": (lambda selected, turns: adjust_hue(selected, turns * (2 * torch.pi)), 0),
    }
    change(parameters["flip"], lambda selected: selected.flip(-1))
    for place in range(len(jitter)):
        for number, (name, (operation, neutral)) in enumerate(jitter.items()):
            due = parameters["jitter"] & (parameters["order"][:, place] == number)
            change(due & (parameters[name] != neutral), operation, parameters[name])
    change(parameters["grayscale"], lambda selected: rgb_to_grayscale(selected).expand(-1, 3, -1, -1))
    # kornia looks at these values, for which it would have to wait if they were on a GPU
    change(parameters["blur"], blur, parameters["sigma"], device="cpu")
    change(parameters["solarize"], solarize)

    mean, std = (
        torch.tensor(list(v), dtype=torch.float32).view(1, 3, 1, 1).to(device, non_blocking=True) for v in (mean, std)
    )
    return images.sub_(mean).div_(std)
