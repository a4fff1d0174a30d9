"""What a model sees in an image, as tensors (`plots` draws them): attention, components and matches of patches."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize
from transformers import PreTrainedModel

from ..elastic import SubNetwork
from ..evaluation.features import evaluation_mode
from ..models.elastic_config import has_class_token, is_hierarchical
from ..models.elastic_model import ElasticModelMixin
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..slicing import SlicedModel

COMPONENTS = 3  # red, green, blue
INSTEAD = "use patch_pca on its patch_features instead"


def attention_maps(model: PreTrainedModel, pixel_values: Tensor, sub_network: SubNetwork | str | None = None) -> Tensor:
    """How much the class token attends to each patch in the last block: (B, heads, h, w) float32 on the CPU.

    These are the weights after the softmax; over all patches they sum to 1 less what the class token, and registers if
    there are any, take. Images larger or smaller than those of the training work: positions are interpolated.

    Args:
        model: an elastic ViT, or any ViT of transformers with a class token.
        pixel_values: normalised images (B, 3, H, W), with sides that the patch size divides; what is beyond is cut off.
        sub_network: of an elastic model, the size; None is the full one.

    Raises:
        ValueError: for a model without attention from a class token to all patches (Swin, ResNet), a size outside the
            model's space, or a size of a model that has only one.
    """
    with _opened(model, sub_network) as (run, module), torch.inference_mode():
        name = type(module).__name__
        attentions = [layer for layer in module.modules() if hasattr(layer, "q_proj") and hasattr(layer, "config")]
        if not attentions:
            raise ValueError(f"{name} has no attention that can be read: {INSTEAD}.")
        if not has_class_token(module.config):
            raise ValueError(f"{name} attends within windows and has no class token: {INSTEAD}.")
        with _eager(attentions[-1]) as seen:
            run(pixel_values)
        if not seen:
            raise ValueError(f"{name} gives no attention weights: {INSTEAD}.")
        grid = _grid(module, pixel_values)
        others = seen[0].shape[-1] - grid[0] * grid[1]
        if others < 1:
            raise ValueError(f"{name} has no class token before its patches: {INSTEAD}.")
        maps = seen[0][:, :, 0, others:].unflatten(2, grid).float().cpu()
    return maps.clone()  # outside inference mode, an ordinary tensor


def patch_features(model: PreTrainedModel, pixel_values: Tensor, sub_network: SubNetwork | str | None = None) -> Tensor:
    """The last layer's features where they lie in the image: (B, h, w, D) float32 on the CPU.

    ViT: the normalised patch tokens, one per patch; Swin: one per 32 pixels, normalised; ResNet: the last feature map.
    Arguments and errors are those of `attention_maps`, but for any model whose `last_hidden_state` is a map or patch
    tokens. Stock Swin takes no images whose last map is smaller than its window.
    """
    with _opened(model, sub_network) as (run, module), torch.inference_mode():
        hidden = getattr(run(pixel_values), "last_hidden_state", None)
        if hidden is None:
            raise ValueError(f"The output of {type(module).__name__} has no last_hidden_state: pass the base model.")
        if hidden.ndim == 4:
            features = hidden.permute(0, 2, 3, 1)
        else:
            grid = _grid(module, pixel_values)
            others = hidden.shape[1] - grid[0] * grid[1]
            if others < 0:
                name, tokens = type(module).__name__, hidden.shape[1]
                raise ValueError(f"{name} gives {tokens} tokens for {grid[0]} x {grid[1]} patches, which is no grid.")
            features = hidden[:, others:].unflatten(1, grid)
        features = features.float().cpu()
    return features.clone(memory_format=torch.contiguous_format)


def patch_foreground(features: Tensor, threshold: float = 0.0) -> Tensor:
    """The patches that probably show the object, as in DINOv2's figure (arXiv 2304.07193, section 7.5): bool (B, h, w).

    They are those beyond `threshold` on the first principal component of all patches, at the end that lies nearer to
    the middle of the images. Meant for images of the same kind, on plain ground.

    Args:
        features: (B, h, w, D), taken together.
        threshold: in standard deviations of the component, whose mean is 0.
    """
    everywhere = torch.ones(features.shape[:3], dtype=torch.bool)
    first = _component_scores(features, everywhere, 1)[..., 0]
    rows, columns = (torch.linspace(-1, 1, side).abs() for side in first.shape[1:])
    off_centre = torch.maximum(rows[:, None], columns)
    return (-first if (first * off_centre).sum() > 0 else first) > threshold


def patch_pca(
    features: Tensor,
    foreground: Tensor | None = None,
    reference: Tensor | None = None,
    percentiles: tuple[float, float] = (1.0, 99.0),
) -> Tensor:
    """The first three principal components of the patches as red, green and blue: (B, h, w, 3), in 0..1.

    The components are those of all patches of all images together, so a colour means the same in each image. Each is
    turned such that the rarer, more extreme patches are the brighter ones: the picture is the same each time.

    Args:
        features: (B, h, w, D) of `patch_features`.
        foreground: bool (B, h, w), e.g. of `patch_foreground`: only these patches are looked at, the others are black.
        reference: features (B, h', w', D') of the same images by another model or size, to whose picture the colours
            are matched: the three components, each with variance 1, are rotated or mirrored to lie as near as possible
            to the reference's (orthogonal Procrustes). What the picture holds stays this model's own.
        percentiles: of each component, what becomes 0 and 1.

    Raises:
        ValueError: for features of another shape, fewer than 4 patches to look at, or a reference with another number
            of images.
    """
    shown = torch.ones(features.shape[:3], dtype=torch.bool) if foreground is None else foreground.cpu()
    scores = _component_scores(features, shown)
    if reference is not None:
        scores = _turned_towards(reference, scores, shown)
    low, high = torch.quantile(scores[shown], torch.tensor(percentiles, dtype=scores.dtype) / 100, dim=0)
    flat = high <= low  # a component without variance: there are fewer than three
    colours = torch.where(flat, 0.5, (scores - low) / torch.where(flat, 1, high - low)).clamp(0, 1)
    return torch.where(shown[..., None], colours, 0).float()


@dataclass(frozen=True)
class PatchMatches:
    """Patches of two images that belong together, the most similar pair first.

    `patches_a` and `patches_b`, int64 (n, 2), are row and column in grids of `grid_a` and `grid_b` (rows, columns);
    `similarity`, float32 (n,), is the cosine of the two patches' features.
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
    """The mutual nearest neighbours by cosine: pairs of patches each of which is the other one's most similar patch.

    Args:
        features_a, features_b: (h, w, D) of one image each; the grids may differ.
        top: how many pairs to keep, the most similar ones; None keeps all.
        foreground_a, foreground_b: bool (h, w), the patches that may be matched.

    Raises:
        ValueError: for features that are not of one image each and equally wide, or no patch to match.
    """
    if features_a.ndim != 3 or features_b.ndim != 3 or features_a.shape[2] != features_b.shape[2]:
        raise ValueError(
            f"Features {tuple(features_a.shape)} and {tuple(features_b.shape)} can't be matched: give (h, w, D) of one "
            "image each, by the same model and size."
        )
    vectors, places = [], []
    for features, foreground in ((features_a, foreground_a), (features_b, foreground_b)):
        shown = torch.ones(features.shape[:2], dtype=torch.bool) if foreground is None else foreground.cpu()
        if not shown.any():
            raise ValueError("There are no patches to match: give more foreground, or none for all patches.")
        vectors.append(normalize(features.detach().cpu().float()[shown], dim=-1))
        places.append(shown.nonzero())
    similarity = vectors[0] @ vectors[1].T
    in_b, in_a = similarity.argmax(dim=1), similarity.argmax(dim=0)
    a = (in_a[in_b] == torch.arange(len(in_b))).nonzero().squeeze(1)
    found, order = similarity[a, in_b[a]].sort(descending=True, stable=True)
    a = a[order[:top]]
    grids = tuple(features_a.shape[:2]), tuple(features_b.shape[:2])
    return PatchMatches(places[0][a], places[1][in_b[a]], found[:top], *grids)


# -- models


@contextmanager
def _opened(model: PreTrainedModel, sub_network: SubNetwork | str | None) -> Iterator[tuple[Callable, PreTrainedModel]]:
    """What runs normalised images through the model or its sub-network, and the module that then computes. Afterwards
    the model is as it was."""
    if isinstance(model, PoaForPreTraining):
        raise ValueError("PoaForPreTraining holds two backbones: pass its teacher (or student).")
    if sub_network is not None and not isinstance(model, ElasticModelMixin):
        raise ValueError(f"{type(model).__name__} has one size: leave out sub_network, here {sub_network}.")
    # Swin's, which stock blocks shrink at the first small image for good
    windows = [(m, m.window_size, m.shift_size) for m in model.modules() if hasattr(m, "shift_size")]
    with evaluation_mode(model), torch.no_grad():
        called = model.sliced(sub_network) if isinstance(model, ElasticModelMixin) else model
        module = called.plain if isinstance(called, SlicedModel) else called

        def run(pixel_values: Tensor):
            _check_images(model, pixel_values)
            options = {"return_dict": True}
            if "interpolate_pos_encoding" in inspect.signature(module.forward).parameters:
                # stock ViT is told only where it must, as not all grids of positions can be interpolated
                options["interpolate_pos_encoding"] = _pair(module.config.image_size) != pixel_values.shape[2:]
            return called(pixel_values.to(model.device, model.dtype), **options)

        try:
            yield run, module
        finally:
            for layer, window_size, shift_size in windows:
                layer.window_size, layer.shift_size = window_size, shift_size


@contextmanager
def _eager(attention: torch.nn.Module) -> Iterator[list[Tensor]]:
    """This one layer, and no other, computes its weights (B, heads, tokens, tokens), which the list then holds."""
    seen = []

    def keep(module, inputs, output):
        if isinstance(output, tuple):
            seen.extend(weights for weights in output[1:2] if weights is not None)

    config = attention.config
    attention.config = copy.copy(config)  # shared by all layers
    attention.config._attn_implementation = "eager"
    hook = attention.register_forward_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()
        attention.config = config


def _check_images(model: PreTrainedModel, pixel_values: Tensor) -> None:
    if pixel_values.ndim != 4:
        raise ValueError(f"pixel_values has shape {tuple(pixel_values.shape)}: give images of one size, (B, 3, H, W).")
    config, size = model.config, " x ".join(map(str, pixel_values.shape[2:]))
    if config.model_type == "swin" and min(_grid(model, pixel_values)) < config.window_size:
        needed = config.window_size * _pair(config.patch_size)[0] * 2 ** (len(config.depths) - 1)
        what = f"Images of {size} pixels are too small for the windows of {type(model).__name__}"
        raise ValueError(f"{what}: give sides of at least {needed} pixels.")


def _grid(module: PreTrainedModel, pixel_values: Tensor) -> tuple[int, int]:
    """Rows and columns of the tokens after the last layer."""
    sides = zip(pixel_values.shape[2:], _pair(module.config.patch_size), strict=True)
    if not is_hierarchical(module.config):
        return tuple(pixels // patch for pixels, patch in sides)
    # hierarchical models pad where others cut off
    halvings = 2 ** (len(module.config.depths) - 1)
    return tuple(-(-pixels // (patch * halvings)) for pixels, patch in sides)


def _pair(value) -> tuple[int, int]:
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


# -- components


def _component_scores(features: Tensor, shown: Tensor, count: int = COMPONENTS) -> Tensor:
    """(B, h, w, count) float64: all patches on the first principal components of those that are `shown`, in units of
    their standard deviation there; 0 where there is no further component."""
    if features.ndim != 4 or shown.shape != features.shape[:3]:
        shapes = f"Features have shape {tuple(features.shape)}, the foreground {tuple(shown.shape)}"
        raise ValueError(f"{shapes}: give (B, h, w, D) of patch_features and (B, h, w).")
    features = features.detach().cpu().double()
    points = features[shown]
    if len(points) <= COMPONENTS:
        raise ValueError(f"There are {len(points)} patches to look at: give larger images, or more foreground.")
    mean = points.mean(dim=0)
    points = points - mean
    if len(points) > points.shape[1]:
        variances, axes = torch.linalg.eigh(points.T @ points)
    else:  # the same axes from the smaller of the two products
        variances, axes = torch.linalg.eigh(points @ points.T)
        axes = points.T @ axes
    # float32 features leave this much noise where there is nothing
    kept = (variances > 1e-10 * variances[-1]).flip(0)[:count]
    axes = normalize(axes.flip(1)[:, :count], dim=0)[:, kept]
    scores = (features - mean) @ axes
    seen = scores[shown]
    scores = scores / seen.square().mean(dim=0).sqrt() * torch.where(seen.pow(3).sum(dim=0) < 0, -1, 1)
    return torch.nn.functional.pad(scores, (0, count - scores.shape[-1]))


def _turned_towards(reference: Tensor, scores: Tensor, shown: Tensor) -> Tensor:
    if len(reference) != len(scores):
        raise ValueError(f"{len(scores)} images and a reference with {len(reference)}: give features of the same ones.")
    sizes = reference.shape[1:3], scores.shape[1:3]
    theirs_shown = shown if sizes[0] == sizes[1] else interpolate(shown[:, None].float(), sizes[0])[:, 0] > 0.5
    theirs = _component_scores(reference, theirs_shown)
    if sizes[0] != sizes[1]:
        theirs = interpolate(theirs.permute(0, 3, 1, 2), sizes[1], mode="bilinear").permute(0, 2, 3, 1)
    left, _, right = torch.linalg.svd(scores[shown].T @ theirs[shown])
    return scores @ (left @ right)
