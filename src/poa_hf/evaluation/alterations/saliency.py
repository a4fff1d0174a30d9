"""Which patches of an image a model takes for important, for tasks that treat them differently.

Of a ViT it is what the class token attends to in the last block, the mean over its heads: the map of DINO's figures, by
which Naseer et al. 2021 choose salient patches too. A model without such attention, as Swin and ResNet, has one feature
vector per patch and their mean as the feature of the image, so there it is the cosine similarity of the two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from ...formatting import one_line
from ...models.elastic_config import has_class_token
from ..features import pooled_features
from ..opened import OpenedModel, attention_weights, opened, patches_of_output

AT_A_TIME = 16  # images, as their attention weights can need more memory than all else


class NoClassAttention(ValueError):
    """Raised for a model whose class token's attention to patches cannot be read, or that has no class token."""


def class_attention(run: OpenedModel, pixel_values: Tensor) -> Tensor:
    """Return how much the class token attends to each patch in the last block, after the softmax.

    Args:
        run: The model.
        pixel_values: Normalised images (B, C, H, W).

    Returns:
        (B, heads, h, w) on the device and in the precision of the model.

    Raises:
        NoClassAttention: For a model without attention from a class token to all patches. The message lacks its end,
            which says what to do instead.
    """
    module = run.module
    attentions = [layer for layer in module.modules() if hasattr(layer, "q_proj") and hasattr(layer, "config")]
    if not attentions:
        raise NoClassAttention(f"{run.name} has no attention that can be read")
    if not has_class_token(module.config):
        raise NoClassAttention(f"{run.name} attends within windows and has no class token")
    with attention_weights(attentions[-1]) as weights:
        run(pixel_values)
    if not weights:
        raise NoClassAttention(f"{run.name} gives no attention weights")
    grid = run.grid(pixel_values)
    others = weights[0].shape[-1] - grid[0] * grid[1]  # the class token and registers come first
    if others < 1:
        raise NoClassAttention(f"{run.name} has no class token before its patches")
    return weights[0][:, :, 0, others:].unflatten(2, grid)  # (B, heads, N, N) -> (B, heads, h, w)


def patch_saliency(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """Return a function from images to the saliency of their patches, by the full size of a model.

    Args:
        model: An elastic model, or any vision model of transformers with features of patches.

    Returns:
        A function from `pixel_values` (B, C, H, W) to float32 (B, h, w) on the device of the model; more is more
        salient. It raises ValueError for a model that has neither attention of a class token nor features of patches.

    Example:
        >>> from transformers import Dinov2Config, Dinov2Model
        >>> shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
        >>> patch_saliency(Dinov2Model(Dinov2Config(**shape)))(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 4, 4])
    """

    def saliency(pixel_values: Tensor) -> Tensor:
        try:
            with opened(model, None) as run:
                return torch.cat([_saliency(run, part) for part in pixel_values.split(AT_A_TIME)])
        except (AttributeError, TypeError) as error:  # not a model of the usual form
            raise ValueError(
                f"{type(model).__name__} does not tell which patches are salient ({one_line(error)}): use a model with "
                "features of patches, or other tasks."
            ) from error

    return saliency


def _saliency(run: OpenedModel, pixel_values: Tensor) -> Tensor:
    try:
        return class_attention(run, pixel_values).float().mean(dim=1)
    except NoClassAttention:
        return _similarity(run, pixel_values)


def _similarity(run: OpenedModel, pixel_values: Tensor) -> Tensor:
    """Return the cosine similarity of each patch's features to those of the image: (B, h, w)."""
    output = run(pixel_values)
    patches = patches_of_output(run, output, pixel_values).float()  # (B, h, w, D)
    return cosine_similarity(patches, pooled_features(output).float()[:, None, None], dim=-1)
