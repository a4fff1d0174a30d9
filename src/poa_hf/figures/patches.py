"""What a model sees in an image, as tensors (`images` draws them): attention, components and matches of patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers import PreTrainedModel

from ..evaluation.alterations.saliency import NoClassAttention, class_attention
from ..evaluation.finite import check_finite
from ..evaluation.opened import opened
from ..evaluation.opened import patches_of_output as patches_of_output
from ..sub_network import SubNetwork

COMPONENTS = 3  # red, green, blue
INSTEAD = "use patch_pca on its patch_features instead"


def attention_maps(model: PreTrainedModel, pixel_values: Tensor, sub_network: SubNetwork | str | None = None) -> Tensor:
    """Return how much the class token attends to each patch in the last block.

    These are the weights after the softmax. Over all patches they sum to 1 minus the weights of the class token and of
    registers, if the model has any. Images may be larger or smaller than in training: positions are interpolated.

    Args:
        model: An elastic ViT, or any ViT of transformers with a class token.
        pixel_values: Normalised images (B, 3, H, W). Pixels beyond the last whole patch are cut off.
        sub_network: The size of an elastic model, the full one by default.

    Returns:
        (B, heads, h, w) float32 on the CPU.

    Raises:
        ValueError: For a model without attention from a class token to all patches (Swin, ResNet), a size outside the
            model's space, or a size of a model that has only one.

    Example:
        >>> from poa_hf import PoaViTConfig, PoaViTModel
        >>> config = PoaViTConfig(hidden_size=64, min_hidden_size=32, num_hidden_layers=2, min_num_hidden_layers=1,
        ...                       num_attention_heads=4, image_size=28, patch_size=14)
        >>> model = PoaViTModel(config)
        >>> attention_maps(model, torch.rand(1, 3, 56, 28), "32x1").shape  # two heads of 16 channels
        torch.Size([1, 2, 4, 2])
    """
    with opened(model, sub_network) as run, torch.inference_mode():
        try:
            maps = class_attention(run, pixel_values).float().cpu()
        except NoClassAttention as error:
            raise ValueError(f"{error}: {INSTEAD}.") from None
    return maps.clone()  # outside inference mode, an ordinary tensor


def patch_features(model: PreTrainedModel, pixel_values: Tensor, sub_network: SubNetwork | str | None = None) -> Tensor:
    """The features of the last layer where they lie in the image.

    A ViT has one normalised token per patch, a Swin one per 32 pixels, normalised too, and a ResNet its last feature
    map. Stock Swin takes no images whose last map is smaller than its window.

    Args:
        model: An elastic model, or any of transformers whose `last_hidden_state` is a feature map or patch tokens.
        pixel_values: Normalised images (B, 3, H, W).
        sub_network: The size of an elastic model, the full one by default.

    Returns:
        (B, h, w, D) float32 on the CPU.

    Raises:
        ValueError: For a model without such features, a size outside the model's space, or a size of a model that has
            only one.
    """
    with opened(model, sub_network) as run, torch.inference_mode():
        features = patches_of_output(run, run(pixel_values), pixel_values).float().cpu()
    return features.clone(memory_format=torch.contiguous_format)


def patch_foreground(features: Tensor, threshold: float = 0.0) -> Tensor:
    """The patches that probably show the object, as in DINOv2's figure (arXiv 2304.07193, section 7.5).

    They are those beyond `threshold` on the first principal component of all patches, at the end that lies nearer to
    the middle of the images. Meant for images of the same kind, on a plain background.

    Args:
        features: (B, h, w, D), taken together.
        threshold: In standard deviations of the component, whose mean is 0.

    Returns:
        bool (B, h, w).
    """
    everywhere = torch.ones(features.shape[:3], dtype=torch.bool)
    first = _component_scores(features, everywhere, 1)[..., 0]  # (B, h, w)
    rows, columns = (torch.linspace(-1, 1, side).abs() for side in first.shape[1:])
    off_centre = torch.maximum(rows[:, None], columns)
    return (-first if (first * off_centre).sum() > 0 else first) > threshold


def patch_pca(
    features: Tensor,
    foreground: Tensor | None = None,
    reference: Tensor | None = None,
    percentiles: tuple[float, float] = (1.0, 99.0),
) -> Tensor:
    """The first three principal components of the patches as red, green and blue.

    The components are those of all patches of all images together, so a colour means the same in each image. The sign
    of each is such that the rarer, more extreme patches are the brighter ones, so the picture is the same every time.

    Args:
        features: (B, h, w, D) of `patch_features`.
        foreground: bool (B, h, w), for example of `patch_foreground`: only these patches count, the others are black.
        reference: Features (B, h', w', D') of the same images by another model or size, to whose picture the colours
            are matched: the three components, each with variance 1, are rotated or mirrored to lie as near as possible
            to the reference's (orthogonal Procrustes). What the picture shows remains this model's.
        percentiles: The percentiles of each component that become 0 and 1.

    Returns:
        (B, h, w, 3) float32 in 0..1.

    Raises:
        ValueError: For features of another shape, fewer than 4 patches that count, or a reference with another number
            of images.

    Example:
        >>> colours = patch_pca(torch.randn(2, 4, 4, 16))
        >>> colours.shape, colours.min().item(), colours.max().item()
        (torch.Size([2, 4, 4, 3]), 0.0, 1.0)
    """
    shown = torch.ones(features.shape[:3], dtype=torch.bool) if foreground is None else foreground.cpu()
    scores = _component_scores(features, shown)  # (B, h, w, 3)
    if reference is not None:
        scores = _turned_towards(reference, scores, shown)
    low, high = torch.quantile(scores[shown], torch.tensor(percentiles, dtype=scores.dtype) / 100, dim=0)
    flat = high <= low  # a component without variance: there are fewer than three
    colours = torch.where(flat, 0.5, (scores - low) / torch.where(flat, 1, high - low)).clamp(0, 1)
    return torch.where(shown[..., None], colours, 0).float()


@dataclass(frozen=True)
class PatchMatches:
    """Pairs of patches of two images that belong together, the most similar pair first.

    Args:
        patches_a: int64 (n, 2), rows and columns in the grid of the first image.
        patches_b: int64 (n, 2), those in the grid of the second image.
        similarity: float32 (n,), the cosine of the features of each pair.
        grid_a: Rows and columns of the first image's grid.
        grid_b: Rows and columns of the second image's grid.
    """

    patches_a: Tensor
    patches_b: Tensor
    similarity: Tensor
    grid_a: tuple[int, int]
    grid_b: tuple[int, int]


def patch_correspondence(
    features_a: Tensor,
    features_b: Tensor,
    top: int | None = None,
    foreground_a: Tensor | None = None,
    foreground_b: Tensor | None = None,
) -> PatchMatches:
    """Match the patches of two images: the pairs in which each patch is the other one's most similar patch by cosine.

    Args:
        features_a: (h, w, D) of the first image, from `patch_features`.
        features_b: (h', w', D) of the second image.
        top: The number of most similar pairs to keep, all by default.
        foreground_a: bool (h, w), the patches of the first image that may be matched, all by default.
        foreground_b: bool (h', w'), those of the second image.

    Raises:
        ValueError: For features that are not of one image each and equally wide, or no patch to match.
    """
    if features_a.ndim != 3 or features_b.ndim != 3 or features_a.shape[2] != features_b.shape[2]:
        raise ValueError(
            f"Features {tuple(features_a.shape)} and {tuple(features_b.shape)} cannot be matched: give (h, w, D) of "
            "one image each, by the same model and size."
        )
    vectors, places = [], []
    for features, foreground in ((features_a, foreground_a), (features_b, foreground_b)):
        shown = torch.ones(features.shape[:2], dtype=torch.bool) if foreground is None else foreground.cpu()
        if not shown.any():
            raise ValueError("There are no patches to match: give more foreground, or none for all patches.")
        vectors.append(normalize(features.detach().cpu().float()[shown], dim=-1))
        places.append(shown.nonzero())
    similarity = vectors[0] @ vectors[1].T  # (patches of a, patches of b)
    in_b, in_a = similarity.argmax(dim=1), similarity.argmax(dim=0)
    mutual = (in_a[in_b] == torch.arange(len(in_b))).nonzero().squeeze(1)
    sorted_similarity, order = similarity[mutual, in_b[mutual]].sort(descending=True, stable=True)
    kept = mutual[order[:top]]
    (rows_a, columns_a, _), (rows_b, columns_b, _) = features_a.shape, features_b.shape
    return PatchMatches(
        places[0][kept],
        places[1][in_b[kept]],
        sorted_similarity[:top],
        (rows_a, columns_a),
        (rows_b, columns_b),
    )


def _component_scores(features: Tensor, shown: Tensor, count: int = COMPONENTS) -> Tensor:
    """Project all patches on the first principal components of those that are `shown`.

    Args:
        features: (B, h, w, D).
        shown: bool (B, h, w).

    Returns:
        (B, h, w, count) float64, in units of the standard deviation of the shown patches; 0 for components beyond their
        rank.
    """
    if features.ndim != 4 or shown.shape != features.shape[:3]:
        shapes = f"Features have shape {tuple(features.shape)}, the foreground {tuple(shown.shape)}"
        raise ValueError(f"{shapes}: give (B, h, w, D) of patch_features and (B, h, w).")
    check_finite(features)
    features = features.detach().cpu().double()
    points = features[shown]  # (N, D)
    if len(points) <= COMPONENTS:
        raise ValueError(f"There are {len(points)} patches to look at: give larger images, or more foreground.")
    mean = points.mean(dim=0)
    points = points - mean
    if len(points) > points.shape[1]:
        variances, axes = torch.linalg.eigh(points.T @ points)
    else:  # the same axes from the smaller of the two products
        variances, axes = torch.linalg.eigh(points @ points.T)
        axes = points.T @ axes
    # float32 features leave this much noise in a component that does not exist
    kept = (variances > 1e-10 * variances[-1]).flip(0)[:count]
    axes = normalize(axes.flip(1)[:, :count], dim=0)[:, kept]
    scores = (features - mean) @ axes  # (B, h, w, kept)
    seen = scores[shown]
    scores = scores / seen.square().mean(dim=0).sqrt() * torch.where(seen.pow(3).sum(dim=0) < 0, -1, 1)
    return torch.nn.functional.pad(scores, (0, count - scores.shape[-1]))


def _turned_towards(reference: Tensor, scores: Tensor, shown: Tensor) -> Tensor:
    """Rotate or mirror scores (B, h, w, 3) to lie as near as possible to those of the reference."""
    if len(reference) != len(scores):
        raise ValueError(f"{len(scores)} images and a reference with {len(reference)}: give features of the same ones.")
    sizes = reference.shape[1:3], scores.shape[1:3]
    theirs_shown = shown if sizes[0] == sizes[1] else interpolate(shown[:, None].float(), sizes[0])[:, 0] > 0.5
    theirs = _component_scores(reference, theirs_shown)
    if sizes[0] != sizes[1]:
        theirs = interpolate(theirs.permute(0, 3, 1, 2), sizes[1], mode="bilinear").permute(0, 2, 3, 1)
    left, _, right = torch.linalg.svd(scores[shown].T @ theirs[shown])
    return scores @ (left @ right)
