"""Frozen features: one vector per image from any vision model of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..data.decoding import Pixels
from ..data.processor import prepared_images
from ..formatting import one_line


def pooled_features(outputs: Any) -> Tensor:
    """Return one feature vector per image, (B, D).

    It is `pooler_output`, flattened, or the first token of `last_hidden_state` where a model has no pooler. Dinov2's
    pooler output is the normalised class token, Swin's the mean over the feature map, ResNet's of shape (B, D, 1, 1).

    Args:
        outputs: The output of a base model of transformers.

    Raises:
        ValueError: If the output has neither pooled features (B, D, ...) nor a sequence of tokens (B, N, D).
    """
    pooled = getattr(outputs, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    hidden = getattr(outputs, "last_hidden_state", None)
    if hidden is None or hidden.ndim != 3:
        raise ValueError("The model's output has no image features: pass the base model, without a task's head.")
    return hidden[:, 0]


def class_features(model: PreTrainedModel, pixel_values: Iterable[Tensor]) -> Tensor:
    """Return the features of all images in their order: (N, D) float32 on the CPU.

    The model runs in evaluation mode, on its device and in its precision, and is returned to its previous mode.

    Args:
        model: Any vision model of transformers, whole or extracted.
        pixel_values: Normalised batches (B, C, H, W) of any sizes. They are read once, so a generator is enough.

    Raises:
        ValueError: If there is no batch, or the model's output has no image features.

    Example:
        >>> from transformers import Dinov2Config, Dinov2Model
        >>> config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
        >>> class_features(Dinov2Model(config), [torch.rand(4, 3, 28, 28), torch.rand(1, 3, 28, 28)]).shape
        torch.Size([5, 32])
    """
    with evaluation_mode(model), torch.inference_mode():
        features = [
            pooled_features(model(pixel_values=batch.to(model.device, model.dtype))).float().cpu()
            for batch in pixel_values
        ]
    if not features:
        raise ValueError("There are no images to take features of: pass at least one batch of pixel values.")
    # Outside inference mode, so that the result may take part in a computation with gradients (a linear probe).
    return torch.cat(features)


def prepared_batch(processor: BaseImageProcessor, images: Sequence[Pixels]) -> Tensor:
    """Return decoded images as a model takes them: (B, C, H, W).

    Raises:
        ValueError: If the processor leaves the images in different sizes.
    """
    try:
        return prepared_images(processor, images)
    except ValueError as error:
        raise ValueError(
            f"The image processor cannot make a batch of the images ({one_line(error)}): use one that crops or pads "
            "them to one size."
        ) from error


def in_precision_of(model: nn.Module, pixel_values: Tensor) -> Tensor:
    """Return images in the precision of a model's parameters; not all models convert them by themselves."""
    reference = next((each for each in model.parameters() if each.is_floating_point()), pixel_values)
    return pixel_values.to(reference.dtype)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation mode within the block; afterwards each module is in its previous mode again."""
    # each module's own flag: a frozen part may be in evaluation mode while the rest trains
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
