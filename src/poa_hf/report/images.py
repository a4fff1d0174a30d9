"""The images that a report shows: those that the run trains on, or those of another dataset."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import BitImageProcessorPil as ImageProcessor

from ..data.crop_arguments import CropArguments, usual_statistics
from ..data.dataset_list import open_images_of
from ..data.decoding import UndecodableImage, open_image
from ..data.loader import PretrainingLoader
from ..data.mixture import DatasetMixture
from ..data.processor import decoding_of, prepared_images
from ..data.rows import IndexedImages, StreamedImages
from ..data.sources import TEXTURES, open_dataset
from ..data.textures import TextureDataset
from ..models.elastic_config import image_shape
from ..runs.facts import RunFacts

_FEATURE_MAP = 14  # patches along a side that a picture of features should have


def training_batch(
    facts: RunFacts, dataset_name: str | None, num_images: int
) -> tuple[dict[str, Any], CropArguments, str]:
    """Make a batch of crops as the run does.

    Returns:
        The batch, the options that made it, and the name of the images.

    Raises:
        ValueError: If the images cannot be opened.
        OSError: From the libraries that read them.
    """
    args = _crop_arguments(facts)
    grid = args.global_crop_size // facts.backbone.patch_grid
    dataset, name = _open(facts, dataset_name)
    loader = PretrainingLoader(
        dataset,
        args,
        num_images,
        (grid, grid),
        image_column=_image_column(facts, dataset_name),
        block_size=max(16, num_images),
    )
    return next(iter(loader)), args, name


def evaluation_images(
    facts: RunFacts, processor: ImageProcessor, dataset_name: str | None, count: int
) -> tuple[Tensor, str]:
    """Prepare images as an evaluation does, but large enough for a picture of their features.

    Args:
        processor: The image processor of the model.
        dataset_name: The images, as `open_dataset` takes them; by default those of the run.
        count: The number of images; fewer are returned if fewer can be decoded.

    Returns:
        The images (N, C, H, W) and their name.

    Raises:
        ValueError: If the images cannot be opened, or none can be decoded.
        OSError: From the libraries that read them.
    """
    side = processor.crop_size["height"]
    scale = min(4, max(1, -(-_FEATURE_MAP * facts.backbone.crop_multiple // side)))
    # textures do not grow with the image: a larger one holds more of them
    dataset, name = _open(facts, dataset_name, texture_size=40 * scale)
    decoded, args = [], _crop_arguments(facts)
    for value in _spread_images(dataset, _image_column(facts, dataset_name), count, args):
        try:
            decoded.append(open_image(value, args.max_image_pixels, **decoding_of(processor)))
        except UndecodableImage:
            continue
        if len(decoded) == count:
            break
    if not decoded:
        raise ValueError(f"{name} has no image that can be decoded: name other images.")
    size = {"shortest_edge": round(processor.size["shortest_edge"] * scale)}
    crop_size = {"height": side * scale, "width": side * scale}
    return prepared_images(processor, decoded, size=size, crop_size=crop_size), name


def _crop_arguments(facts: RunFacts) -> CropArguments:
    """Return the options of the run's crops; if it has not written them down, the usual ones at its image size."""
    names = {field.name for field in fields(CropArguments)}
    known = {name: value for name, value in facts.arguments.items() if name in names}
    if known:
        return CropArguments(**known)
    # the usual 96 of 224 pixels, in whole patches
    side, patch = image_shape(facts.backbone)[1], facts.backbone.patch_grid
    mean, std = usual_statistics(facts.backbone.num_channels)
    local = max(patch, round(side * 96 / 224 / patch) * patch)
    return CropArguments(global_crop_size=side, local_crop_size=local, image_mean=mean, image_std=std)


def _image_column(facts: RunFacts, dataset_name: str | None) -> str | None:
    return facts.arguments.get("image_column") if dataset_name is None else None


def _open(facts: RunFacts, dataset_name: str | None, texture_size: int | None = None) -> tuple[Any, str]:
    """Open the images, and return them with their name."""
    if dataset_name is None and facts.datasets:
        return open_images_of(facts.recipe), str(facts.dataset)
    name = dataset_name or facts.recipe.get("dataset_name") or TEXTURES
    if name == TEXTURES:
        return (TextureDataset() if texture_size is None else TextureDataset(size=texture_size)), "built-in textures"
    shown = Path(name).name if Path(name).exists() else name
    if dataset_name is not None:
        return open_dataset(name), shown
    return open_images_of(facts.recipe), shown


def _spread_images(dataset: Any, column: str | None, count: int, args: CropArguments) -> Iterator[Any]:
    """Iterate over undecoded images from all over a dataset, because neighbours may be of one class.

    There are more than `count`, because some may not be decodable.
    """
    if isinstance(dataset, DatasetMixture):
        parts = zip(dataset.datasets, dataset.image_columns, dataset.shares, strict=True)
        found = [_spread_images(part, own or column, max(1, round(count * share)), args) for part, own, share in parts]
        yield from itertools.chain.from_iterable(itertools.zip_longest(*found))
    elif hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        indexed = IndexedImages(dataset, column)
        if len(indexed) <= count:
            yield from (indexed[index] for index in range(len(indexed)))
            return
        chosen = np.random.default_rng(0).integers(len(indexed), size=4 * count)
        yield from (indexed[int(index)] for index in dict.fromkeys(chosen))
    else:
        streamed = StreamedImages(dataset, column, args)
        shards = [streamed.rows(streamed.open_shard(index)) for index in range(min(streamed.num_shards, count))]
        yield from itertools.islice((next(rows, None) for rows in itertools.cycle(shards)), 8 * count)
