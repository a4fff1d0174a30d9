"""Figures of images: attention maps and components beside them, and the crops of a batch.

Each function returns a new `matplotlib.figure.Figure` with a transparent background, which can be read on light and on
dark pages; `figure.savefig("picture.png", dpi=150)` writes it. They raise ValueError if matplotlib, which comes with
`poa_hf[plots]`, is not installed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.augmentation import augment
from ..data.crop_arguments import usual_statistics
from .blank import blank_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#808080"  # contrast 4 on white, 5 on black
CELL, GAP, HEAD = 1.6, 0.06, 0.25  # inches: the height of an image, the gap between images, room for the titles
FONT_SIZE = 9
ATTENTION_COLORS = "inferno"
ATTENTION_RANGE = 2, 98  # percentiles of a map's patches, as single patches may take most of the attention


def attention_figure(
    pixel_values: Tensor,
    maps: Mapping[str, Tensor],
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> Figure:
    """Draw images on the left, and beside each its attention maps, one column per entry of `maps`.

    A map is the mean over heads, from black at its own 2nd percentile to the brightest colour at its 98th: it shows
    where the attention goes, not how uneven it is.

    Args:
        pixel_values: Normalised images (B, C, H, W), RGB if C is 3.
        maps: (B, heads, h, w) of `attention_maps`, by name, for example of the size. To show a single head, give
            `maps[:, [head]]`.
        image_mean: The mean with which the images were normalised, by default the usual one of such images.
        image_std: The standard deviation with which they were normalised, by default the usual one of such images.

    Raises:
        ValueError: For no maps, or maps of other images.
    """
    return _beside_images(_as_pixels(pixel_values, image_mean, image_std), _attention(maps, pixel_values))


def attention_panels(
    pixel_values: Tensor,
    maps: Mapping[str, Tensor],
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> dict[str, list[np.ndarray]]:
    """Return the panels of `attention_figure`, which takes the same arguments: (h, w, 3) in 0..1 per image, by title.

    The first are the images; the others have one pixel for each patch.
    """
    return _panels(_as_pixels(pixel_values, image_mean, image_std), _attention(maps, pixel_values))


def pca_figure(
    pixel_values: Tensor,
    colours: Mapping[str, Tensor],
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> Figure:
    """Draw images on the left, and beside each the components of its patches, one column per entry of `colours`.

    Args:
        pixel_values: Normalised images (B, C, H, W), RGB if C is 3.
        colours: (B, h, w, 3) in 0..1 of `patch_pca`, by name, for example of the size.
        image_mean: The mean with which the images were normalised, by default the usual one of such images.
        image_std: The standard deviation with which they were normalised, by default the usual one of such images.

    Raises:
        ValueError: For no colours, or colours of other images.
    """
    return _beside_images(_as_pixels(pixel_values, image_mean, image_std), _components(colours, pixel_values))


def pca_panels(
    pixel_values: Tensor,
    colours: Mapping[str, Tensor],
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> dict[str, list[np.ndarray]]:
    """Return the panels of `pca_figure`, which takes the same arguments: (h, w, 3) in 0..1 per image, by title.

    The first are the images; the others have one pixel for each patch.
    """
    return _panels(_as_pixels(pixel_values, image_mean, image_std), _components(colours, pixel_values))


def crops_figure(
    batch: Mapping[str, Any],
    num_images: int = 4,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    titles: bool = True,
) -> Figure:
    """Draw what a model sees of the first images of a batch, a row each: the two global crops with their masked patches
    hatched, and the local crops at the same scale.

    Args:
        batch: A batch of `PretrainingLoader`, whose uint8 crops are augmented as in training; or `global_crops`
            (2B, C, g, g), view by view, `local_crops` (V * B, C, l, l) and `masks` (2B, patches), as
            `PoaForPreTraining` takes them. `local_crops` and `masks` may be missing.
        num_images: The number of images that are drawn.
        image_mean: The mean with which the crops were normalised, by default the usual one of such images.
        image_std: The standard deviation with which they were normalised, by default the usual one of such images.
        titles: Whether to write above the crops what they are.

    Raises:
        ValueError: For crops or masks that do not belong together.
    """
    views = {kind: _crops(batch, kind, image_mean, image_std) for kind in ("global", "local")}
    total = len(views["global"]) // 2
    if not total or len(views["global"]) % 2 or len(views["local"]) % total:
        raise ValueError(
            f"{len(views['global'])} global and {len(views['local'])} local crops do not form a batch: give two "
            "global views of each image, and as many local views of each."
        )
    # (2, B, g, g, 3) and (V, B, l, l, 3)
    global_views, local_views = (images.reshape(-1, total, *images.shape[1:]) for images in views.values())
    side, local_side = global_views.shape[2], local_views.shape[2]
    masks = _mask_grids(batch.get("masks"), total, side)

    gap = max(1, side // 16)
    stacked = max(1, round(side / (local_side + gap)))  # local crops above one another
    height = max(side, min(stacked, len(local_views)) * (local_side + gap) - gap) + gap
    local_left = 2 * (side + gap)
    width = local_left - gap + math.ceil(len(local_views) / stacked) * (local_side + gap)
    rows = min(num_images, total)
    canvas = np.zeros((rows * height - gap, width, 4), dtype=np.float32)  # transparent
    masked = []
    for row in range(rows):
        top = row * height
        for view in range(2):
            left = view * (side + gap)
            _place(canvas, global_views[view, row], top, left)
            patch = side // masks.shape[2]
            masked += [(left + x * patch, top + y * patch, patch) for y, x in np.argwhere(masks[view, row])]
        for number, crop in enumerate(local_views[:, row]):
            column, line = divmod(number, stacked)
            _place(canvas, crop, top + line * (local_side + gap), local_left + column * (local_side + gap))

    scale = CELL / side
    figure, [[axes]] = _new_figure(1, 1, width * scale, len(canvas) * scale, HEAD if titles else 0)
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    extent = (0, width, len(canvas), 0)
    axes.imshow(canvas, extent=extent, interpolation="antialiased")
    squares = [Rectangle((x, y), patch, patch) for x, y, patch in masked]
    hatched = PatchCollection(
        squares, facecolor=(0.5, 0.5, 0.5, 0.75), edgecolor=(1, 1, 1, 0.6), linewidth=0, hatch="/////"
    )
    axes.add_collection(hatched)
    axes.set(xlim=extent[:2], ylim=extent[2:])
    names = {"global 1": 0, "global 2": side + gap} | ({"local": local_left} if len(local_views) else {})
    for name, left in names.items() if titles else ():
        axes.text(left, -0.04 / scale, name, color=INK, fontsize=FONT_SIZE, va="bottom")
    return figure


def _crops(
    batch: Mapping[str, Any], kind: str, mean: Sequence[float] | None, std: Sequence[float] | None
) -> np.ndarray:
    crops = batch.get(f"{kind}_crops")
    if crops is None:
        return np.zeros((0, 1, 1, 3), dtype=np.float32)
    augmentation = batch.get(f"{kind}_augmentation")
    if crops.dtype == torch.uint8 and augmentation is not None and len(crops):
        parameters = {name: torch.as_tensor(values) for name, values in augmentation.items()}
        neutral = [0.0] * crops.shape[1], [1.0] * crops.shape[1]  # nothing is normalised
        crops = augment(crops, parameters, *neutral).mul(255).round().to(torch.uint8)
    return _as_pixels(crops, mean, std)


def _mask_grids(masks: Tensor | np.ndarray | None, num_images: int, side: int) -> np.ndarray:
    """Return the masks of square views as bool (2, B, rows, columns); without masks, one unmasked patch per view."""
    if masks is None:
        return np.zeros((2, num_images, 1, 1), dtype=bool)
    masks = torch.as_tensor(masks).cpu().bool().numpy()
    patches = math.isqrt(masks.shape[-1])
    if masks.shape != (2 * num_images, patches**2) or side % patches:
        raise ValueError(
            f"masks have shape {masks.shape}, which does not cover {2 * num_images} crops of {side} x {side} pixels."
        )
    return masks.reshape(2, num_images, patches, patches)


def _place(canvas: np.ndarray, pixels: np.ndarray, top: int, left: int) -> None:
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1], :3] = pixels
    canvas[top : top + pixels.shape[0], left : left + pixels.shape[1], 3] = 1


def _as_pixels(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> np.ndarray:
    """Convert images (B, C, H, W), normalised or uint8, to float32 (B, H, W, 3) in 0..1.

    One channel is shown grey, two by their mean; of more than three, the first three are shown as red, green and blue.
    """
    if images.ndim != 4:
        raise ValueError(f"Images have shape {tuple(images.shape)}: give (B, channels, H, W).")
    channels = images.shape[1]
    pixels = images.detach().cpu().permute(0, 2, 3, 1).float()  # (B, H, W, C)
    if images.dtype == torch.uint8:
        pixels = pixels.div(255)
    else:
        usual = usual_statistics(channels)
        shift, scale = (torch.tensor(list(given or known)) for given, known in zip((mean, std), usual, strict=True))
        if not len(shift) == len(scale) == channels:
            raise ValueError(f"Images have {channels} channels: give as many numbers as image_mean and image_std.")
        pixels = (pixels * scale + shift).clamp(0, 1)
    return (pixels[..., :3] if channels > 2 else pixels.mean(-1, keepdim=True).expand(-1, -1, -1, 3)).numpy()


def _checked(values: Mapping[str, Tensor], pixel_values: Tensor, shape: str) -> Mapping[str, Tensor]:
    if not values:
        raise ValueError(f"There is nothing to draw: give {shape} by name.")
    for name, value in values.items():
        if value.ndim != 4 or len(value) != len(pixel_values):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} for {len(pixel_values)} images: give {shape} of the same ones."
            )
    return values


def _attention(maps: Mapping[str, Tensor], pixel_values: Tensor) -> dict[str, list[dict[str, Any]]]:
    """Return the arguments of `imshow` that draw the mean over the heads of each map."""
    columns: dict[str, list[dict[str, Any]]] = {}
    for name, heads in _checked(maps, pixel_values, "maps (B, heads, h, w)").items():
        means = heads.detach().float().cpu().mean(dim=1).numpy()  # (B, h, w)
        limits = np.percentile(means, ATTENTION_RANGE, axis=(1, 2)).T  # (B, 2)
        columns[name] = [
            dict(X=mean, cmap=ATTENTION_COLORS, vmin=low, vmax=high)
            for mean, (low, high) in zip(means, limits, strict=True)
        ]
    return columns


def _components(colours: Mapping[str, Tensor], pixel_values: Tensor) -> dict[str, list[dict[str, Any]]]:
    """Return the arguments of `imshow` that draw the components of patches."""
    return {
        name: [dict(X=image) for image in values.detach().float().cpu().numpy()]
        for name, values in _checked(colours, pixel_values, "colours (B, h, w, 3)").items()
    }


def _panels(images: np.ndarray, columns: Mapping[str, list[dict[str, Any]]]) -> dict[str, list[np.ndarray]]:
    """Return images and the pixels that `imshow` would draw with these arguments, by title."""
    import matplotlib

    def pixels(X: np.ndarray, cmap: str | None = None, vmin: float = 0, vmax: float = 1) -> np.ndarray:
        return X if cmap is None else matplotlib.colormaps[cmap]((X - vmin) / ((vmax - vmin) or 1))[..., :3]

    return {"image": list(images)} | {
        name: [pixels(**arguments) for arguments in column] for name, column in columns.items()
    }


def _beside_images(images: np.ndarray, columns: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Draw a row per image: the image, and the patches of each column.

    Args:
        images: (B, H, W, 3) in 0..1.
        columns: By title, the arguments of `imshow` for each image.
    """
    height, width = images.shape[1:3]
    figure, grid = _new_figure(len(images), 1 + len(columns), CELL * width / height, CELL)
    for row, panels in enumerate(grid):
        panels[0].imshow(images[row], interpolation="antialiased")
        for axes, drawn in zip(panels[1:], columns.values(), strict=True):
            axes.imshow(**drawn[row], interpolation="nearest", extent=(0, width, height, 0))
        if row == 0:
            for axes, name in zip(panels, ("image", *columns), strict=True):
                _title(axes, name)
    return figure


def _new_figure(
    rows: int, columns: int, width: float, height: float, head: float = HEAD
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with room for titles, `head` inches high, above a grid of panels, each of `width` x `height`
    inches without axes."""
    full_width, full_height = columns * (width + GAP) - GAP, rows * (height + GAP) - GAP + head
    figure = blank_figure(full_width, full_height)
    panels = [
        [
            figure.add_axes(
                (
                    column * (width + GAP) / full_width,
                    (rows - 1 - row) * (height + GAP) / full_height,
                    width / full_width,
                    height / full_height,
                )
            )
            for column in range(columns)
        ]
        for row in range(rows)
    ]
    for axes in itertools.chain(*panels):
        axes.set_axis_off()
    return figure, panels


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, color=INK, fontsize=FONT_SIZE, pad=4)
