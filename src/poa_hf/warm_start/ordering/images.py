"""The images by which units are ordered, as normalised batches, from whatever holds images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.augmentation import augment
from ...data.crop_arguments import CropArguments, usual_statistics
from ...data.loader import PretrainingLoader
from ...models.elastic_config import ElasticConfigMixin, image_shape

# Whole images: the largest centre crop, resized, without augmentation.
_WHOLE: dict[str, Any] = {
    "num_local_crops": 0,
    "global_crop_scale": [1.0, 1.0],
    "color_jitter_probability": 0.0,
    "grayscale_probability": 0.0,
    "blur_probability": [0.0, 0.0, 0.0],
    "solarize_probability": 0.0,
    "flip_probability": 0.0,
    "mask_probability": 0.0,
}


def crops_of(config: ElasticConfigMixin, **fields: Any) -> CropArguments:
    """Return crops of a model's image size, with the usual normalisation of its channels.

    Args:
        config: Configuration of the backbone.
        **fields: Fields that replace these.
    """
    multiple = config.crop_multiple
    size = max(config.min_crop_size, image_shape(config)[1] // multiple * multiple)
    mean, std = usual_statistics(config.num_channels)
    return CropArguments(**{"global_crop_size": size, "image_mean": mean, "image_std": std, **fields})


def whole_images(crops: CropArguments) -> CropArguments:
    """Return how images are cut for ordering: whole, in the size of global crops, and not augmented."""
    names = [field.name for field in dataclasses.fields(CropArguments)]
    return CropArguments(**{name: getattr(crops, name) for name in names} | _WHOLE)


def pixel_batches(
    images: Any,
    config: ElasticConfigMixin,
    num_images: int,
    crops: CropArguments | None = None,
    batch_size: int = 32,
    image_column: str | None = None,
    num_workers: int = 0,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Yield batches (B, C, H, W) of at most `num_images` images, each of them once.

    Args:
        images: As `order_units` takes them.
        config: Configuration of the backbone.
        num_images: Images at most.
        crops: The size of global crops, the normalisation and how images are decoded; by default `crops_of` the model.
        batch_size: Images of a batch at most.
        image_column: Name of the column with the images; found by its type or name if not given.
        num_workers: Processes that decode images.
        seed: Seed of the sample of a dataset.

    Raises:
        ValueError: For what holds no images.
    """
    if isinstance(images, str | Path):
        raise ValueError(f"images is the name {str(images)!r}: open it by open_dataset.")
    if isinstance(images, Tensor):
        if len(images):
            yield from _checked(images, config)[:num_images].split(batch_size)
        return
    if _is_iterator(images):
        first = next(iterator := iter(images), None)
        if isinstance(_tensor_of(first), Tensor):
            yield from _tensor_batches(first, iterator, config, num_images)
            return
        images = [] if first is None else [first, *islice(iterator, num_images - 1)]
    arguments = whole_images(crops or crops_of(config))
    size = min(batch_size, num_images, len(images)) if hasattr(images, "__len__") and len(images) else batch_size
    grid = (arguments.global_crop_size // config.patch_grid,) * 2
    loader = PretrainingLoader(
        images, arguments, size, grid, num_workers=num_workers, seed=seed, image_column=image_column
    )
    seen: set[str] = set()
    for batch in loader:
        fresh = [row for row, name in enumerate(batch["image_ids"]) if name not in seen]
        # an image that could not be decoded is replaced by another, and a dataset without end begins anew
        fresh = list({batch["image_ids"][row]: row for row in reversed(fresh)}.values())[::-1][: num_images - len(seen)]
        if not fresh:
            return
        seen.update(batch["image_ids"][row] for row in fresh)
        parameters = {name: values[fresh] for name, values in batch["global_augmentation"].items()}
        yield augment(batch["global_crops"][fresh], parameters, arguments.image_mean, arguments.image_std)
        if len(seen) >= num_images:
            return


def _is_iterator(images: Any) -> bool:
    """Whether images can only be iterated, unlike a dataset that is indexed or a stream of `datasets`."""
    import datasets

    if isinstance(images, datasets.IterableDataset) or isinstance(images, dict):
        return False
    return isinstance(images, Iterable) and not (hasattr(images, "__getitem__") and hasattr(images, "__len__"))


def _tensor_of(item: Any) -> Any:
    """The pixels in an item of a DataLoader: the item, its `pixel_values`, or the first of a tuple."""
    if isinstance(item, Mapping):
        return item.get("pixel_values")
    return item[0] if isinstance(item, tuple | list) and item else item


def _tensor_batches(first: Any, rest: Iterator[Any], config: ElasticConfigMixin, num_images: int) -> Iterator[Tensor]:
    left, item = num_images, first
    while item is not None and left > 0:
        pixels = _tensor_of(item)
        if isinstance(pixels, Tensor) and pixels.dim() == 3:  # one image
            pixels = pixels[None]
        pixels = _checked(pixels, config)[:left]
        yield pixels
        left -= len(pixels)
        item = next(rest, None)


def _checked(pixels: Any, config: ElasticConfigMixin) -> Tensor:
    if (
        not isinstance(pixels, Tensor)
        or pixels.dim() != 4
        or pixels.shape[1] != config.num_channels
        or not pixels.is_floating_point()
    ):
        shape = f"{tuple(pixels.shape)}, {pixels.dtype}" if isinstance(pixels, Tensor) else type(pixels).__name__
        raise ValueError(
            f"images has a batch of {shape}: give normalised pixels (B, {config.num_channels}, H, W) as floats, or "
            "Pillow images."
        )
    return pixels.to(torch.float32)
