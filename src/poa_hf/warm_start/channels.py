"""A pre-trained model on images of other channels: its first convolution is adapted, and grey images keep its function.

A grey image is one whose channels are all the same. Let the source see its value v in channel c as (v - m_c) / s_c, and
the new model in each of N channels as (v - m'_n) / s'_n. The first convolution then gives the same for every v, if

    W'_n = 1/N sum_c W_c s'_n / s_c,        b' = b + sum_c sum_xy W_c (mean_n m'_n - m_c) / s_c .

One channel gets the sum over the source's channels, as timm has it, and N channels a share of 1/N each. The bias is
exact where patches do not overlap the edge of the image (ViT, Swin). A ResNet's first convolution has no bias and zeros
around the image, so that its grey images change where the source's channels have different means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel, with which images are normalised."""

    mean: Sequence[float]
    std: Sequence[float]

    def repeated(self, num_channels: int) -> Statistics:
        """Return as many channels that all have the averages of these."""
        mean, std = (sum(values) / len(values) for values in self)
        return Statistics([mean] * num_channels, [std] * num_channels)


def adapt_channels(model: PreTrainedModel, before: Statistics, after: Statistics) -> tuple[int, int] | None:
    """Give a model's first convolution the channels of other images, in place.

    Args:
        model: Any vision model whose first convolution takes the image.
        before: The statistics of the images that it takes now.
        after: Those of the images that it is to take.

    Returns:
        The numbers of channels before and after; None if they are the same, and the model is left as it is.
    """
    convolution = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    channels = convolution.in_channels, len(after.mean)
    if channels[0] == channels[1]:
        return None
    with torch.no_grad():
        weight, bias = adapted_convolution(convolution.weight, convolution.bias, before, after)
    convolution.weight, convolution.in_channels = nn.Parameter(weight), channels[1]
    if bias is not None:
        convolution.bias = nn.Parameter(bias)
    return channels


def adapted_convolution(
    weight: Tensor, bias: Tensor | None, before: Statistics, after: Statistics
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of a convolution on other channels, by the equation above.

    Args:
        weight: (D, C, h, w).
        bias: (D,), or None if the convolution has none.
        before: Statistics of the C channels.
        after: Statistics of the N channels.

    Returns:
        (D, N, h, w), and (D,) or None.
    """
    (mean, std), (new_mean, new_std) = (
        (torch.tensor(values, dtype=torch.float64, device=weight.device) for values in statistics)
        for statistics in (before, after)
    )
    scaled = weight.double() / std[:, None, None]  # (D, C, h, w)
    new = scaled.sum(dim=1, keepdim=True) * (new_std / len(new_std))[:, None, None]  # (D, N, h, w)
    if bias is not None:
        bias = (bias.double() + scaled.sum(dim=(2, 3)) @ (new_mean.mean() - mean)).to(bias.dtype)
    return new.to(weight.dtype), bias
