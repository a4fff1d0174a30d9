"""The report's sections of pictures: crops and masks of a batch, attention and patch components of three sizes."""

from __future__ import annotations

import itertools
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..formatting import one_line
from ..models.elastic_config import image_shape
from ..runs.facts import RunFacts
from .section import Picture, Section, png
from .sizes import size_name, three_sizes

if TYPE_CHECKING:
    from torch import Tensor

FAMILIES = {"poa_vit": "ViT", "poa_swin": "Swin", "poa_resnet": "ResNet"}


def crops_section(facts: RunFacts, dataset_name: str | None, num_images: int) -> Section:
    """The crops and masks of one batch."""
    section = Section("crops", "What the model is shown")
    if facts.config is None:
        section.missing.append((facts.no_model, None))
        return section
    from ..data.loader import PretrainingLoader
    from ..figures.images import crops_figure

    args = _crop_arguments(facts)
    grid = args.global_crop_size // facts.backbone.patch_grid
    try:
        dataset, name = _open(facts, dataset_name)
        column = facts.arguments.get("image_column") if dataset_name is None else None
        loader = PretrainingLoader(
            dataset, args, num_images, (grid, grid), image_column=column, block_size=max(16, num_images)
        )
        batch = next(iter(loader))
    except (ValueError, OSError) as error:
        if dataset_name is not None:
            raise
        section.missing.append(_no_images(facts, error))
        return section
    section.text = (
        f"A batch of {name}: of each image two global crops, masked patches hatched, and {args.num_local_crops} local "
        "crops at the same scale."
    )
    if not facts.arguments:
        section.text += " The run does not say how its crops are made: these are the usual ones."
    figure = crops_figure(batch, num_images, args.image_mean, args.image_std)
    section.pictures.append(Picture("crops", "Crops and masks.", png(figure, 150), wide=True))
    return section


def _crop_arguments(facts: RunFacts):
    from ..data.crops import CropArguments

    known = {f.name for f in fields(CropArguments)}
    given = {name: value for name, value in facts.arguments.items() if name in known}
    if given:
        return CropArguments(**given)
    # the usual 96 of 224 pixels, in whole patches
    side, patch = image_shape(facts.backbone)[1], facts.backbone.patch_grid
    return CropArguments(global_crop_size=side, local_crop_size=max(patch, round(side * 96 / 224 / patch) * patch))


def _open(facts: RunFacts, dataset_name: str | None, texture_size: int | None = None) -> tuple[Any, str]:
    """The images, and what they are called."""
    from ..data.sources import TEXTURES, open_dataset
    from ..data.textures import TextureDataset

    name = dataset_name or facts.recipe.get("dataset_name") or TEXTURES
    if name == TEXTURES:
        return (TextureDataset() if texture_size is None else TextureDataset(size=texture_size)), "built-in textures"
    shown = Path(name).name if Path(name).exists() else name
    if dataset_name is not None:
        return open_dataset(name), shown
    options = {"config_name": facts.recipe.get("dataset_config_name")}
    options |= {"split": split} if (split := facts.recipe.get("dataset_split")) else {}
    return open_dataset(name, **options, streaming=facts.recipe.get("streaming", True)), shown


def pictures_section(facts: RunFacts, dataset_name: str | None, num_images: int) -> Section:
    """Attention maps and patch components of the same images for three sizes of the teacher."""
    section = Section("pictures", "What three sizes see")
    if facts.no_model:
        section.missing.append((facts.no_model, None))
        return section
    from ..evaluation.subject import load_subject
    from ..figures.images import attention_figure, pca_figure
    from ..figures.patches import attention_maps, patch_features, patch_pca

    try:
        subject = load_subject(facts.name)
        pixels, name = _images(facts, subject.processor, dataset_name, num_images)
    except (ValueError, OSError) as error:
        if dataset_name is not None:
            raise
        section.missing.append(_no_images(facts, error))
        return section
    model, processor = subject.model, subject.processor
    sizes = three_sizes(facts.space)
    titles = {size: size_name(facts.space, size) for size in sizes}
    titles = {size: f"{size} ({name})" if name else str(size) for size, name in titles.items()}
    step = "" if subject.step is None else f" at step {subject.step:,}"
    section.text = f"Images of {name} by the teacher{step}, in {pixels.shape[2]} x {pixels.shape[3]} pixels."
    normalised = (processor.image_mean, processor.image_std)
    if not facts.backbone.has_class_token:
        family = FAMILIES.get(facts.backbone.model_type, "This family")
        section.text += f" {family} has no class token whose attention could be shown: patch components alone."
    else:
        maps = {titles[size]: attention_maps(model, pixels, size) for size in sizes}
        figure = attention_figure(pixels, maps, *normalised)
        caption = "Where the class token looks: attention of the last block, mean over its heads."
        section.pictures.append(Picture("attention", caption, png(figure, 150), wide=True))
    features = {size: patch_features(model, pixels, size) for size in sizes}
    reference = features[sizes[-1]]
    colours = {
        titles[size]: patch_pca(own, reference=None if own is reference else reference)
        for size, own in features.items()
    }
    caption = "The first three principal components of the patches as red, green and blue: like colours, like features."
    figure = pca_figure(pixels, colours, *normalised)
    section.pictures.append(Picture("patch-pca", caption, png(figure, 150), wide=True))
    return section


def _images(facts: RunFacts, processor, dataset_name: str | None, count: int) -> tuple[Tensor, str]:
    """So many images as the processor makes them (count, 3, H, W), but large enough for some 14 x 14 features, and what
    they are called."""
    from ..data.decoding import UndecodableImage, open_image
    from ..data.rows import IndexedImages, StreamedImages

    config = facts.backbone
    pixels = config.crop_multiple
    side = processor.crop_size["height"]
    scale = min(4, max(1, -(-14 * pixels // side)))
    # textures do not grow with the image: the larger one holds more of them
    dataset, name = _open(facts, dataset_name, texture_size=40 * scale)
    column = facts.arguments.get("image_column") if dataset_name is None else None
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        images = IndexedImages(dataset, column)
        # from all over: neighbours may be of one class
        chosen = np.random.default_rng(0).integers(len(images), size=4 * count) if len(images) > count else None
        values = (images[int(index)] for index in (range(len(images)) if chosen is None else dict.fromkeys(chosen)))
    else:
        images = StreamedImages(dataset, column)
        shards = itertools.cycle([images.rows(images.open_shard(i)) for i in range(min(images.num_shards, count))])
        values = itertools.islice((next(rows, None) for rows in shards), 8 * count)
    decoded = []
    for value in values:
        try:
            decoded.append(open_image(value))
        except UndecodableImage:
            continue
        if len(decoded) == count:
            break
    if not decoded:
        raise ValueError(f"{name} gives no image that can be decoded: name other images.")
    edges = {"size": {"shortest_edge": round(processor.size["shortest_edge"] * scale)}}
    edges["crop_size"] = {"height": side * scale, "width": side * scale}
    return processor(decoded, return_tensors="pt", **edges).pixel_values, name


def _no_images(facts: RunFacts, error: Exception) -> tuple[str, str]:
    return f"There are no images to show ({one_line(error)}); with images of your own:", facts.command(
        "report", "--dataset_name", "FOLDER"
    )
