"""Frozen features: one vector per image, from any stock vision model."""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers import PreTrainedModel


def pooled_features(outputs) -> Tensor:
    """The vector that stands for the image: `pooler_output` (B, D), or where a model has none, the first token.

    Dinov2's pooler output is the normalised class token, Swin's the mean over the feature map; ResNet's, of shape
    (B, D, 1, 1), is flattened.

    Raises:
        ValueError: where the output has neither (B, D, ...) pooled features nor a (B, N, D) sequence of tokens.
    """
    pooled = getattr(outputs, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    hidden = getattr(outputs, "last_hidden_state", None)
    if hidden is None or hidden.ndim != 3:
        raise ValueError("The model's output has no image features: pass the base model, without a task's head.")
    return hidden[:, 0]


def class_features(model: PreTrainedModel, pixel_values: Iterable[Tensor]) -> Tensor:
    """The features of all images, in their order: (N, D) float32 on the CPU.

    The model runs in evaluation mode on its own device and in its own precision, and gets its mode back.

    Args:
        model: any transformers vision model, whole or extracted.
        pixel_values: normalised batches (B, 3, height, width), of any sizes; read once, so a generator will do.

    Raises:
        ValueError: where there is no batch, or the model's output has no image features.
    """
    # Each module's own flag: a frozen part may be in evaluation mode while the rest trains.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            features = [
                pooled_features(model(pixel_values=batch.to(model.device, model.dtype))).float().cpu()
                for batch in pixel_values
            ]
    finally:
        for module, training in modes:
            module.training = training
    if not features:
        raise ValueError("There are no images to take features of: pass at least one batch of pixel values.")
    # Outside inference mode, so that the result may take part in a computation with gradients (a linear probe).
    return torch.cat(features)
