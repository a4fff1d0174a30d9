"""The report's sections of pictures: crops and masks of a batch, attention and patch components of three sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
from transformers import BitImageProcessorPil as ImageProcessor

from ..evaluation.subject import load_subject
from ..figures.images import attention_figure, attention_panels, crops_figure, pca_figure, pca_panels
from ..figures.patches import attention_maps, patch_features, patch_pca
from ..formatting import one_line
from ..runs.facts import RunFacts
from .images import evaluation_images, training_batch
from .section import Picture, Section, png, png_of
from .sizes import size_name, three_sizes

_DPI = 150


def crops_section(facts: RunFacts, dataset_name: str | None, num_images: int) -> Section:
    """Make the section that shows the crops and masks of one batch."""
    section = Section("crops", "What the model is shown")
    if facts.config is None:
        section.missing.append((facts.no_model, None))
        return section
    try:
        batch, args, name = training_batch(facts, dataset_name, num_images)
    except (ValueError, OSError) as error:
        if dataset_name is not None:
            raise
        section.missing.append(_no_images(facts, error))
        return section
    section.text = (
        f"A batch of {name}: of each image two global crops of {args.global_crop_size} pixels and "
        f"{args.num_local_crops} local crops of {args.local_crop_size}, drawn at the same scale."
    )
    if not facts.arguments:
        section.text += " The run does not say how its crops are made: these are the usual ones."
    options = (batch, num_images, args.image_mean, args.image_std)
    content, panel = (png(crops_figure(*options, titles=titles), _DPI) for titles in (True, False))
    caption = "A row per image. From left to right: two global crops with the masked patches hatched, then local crops."
    section.pictures.append(Picture("crops", caption, content, {"": [panel]}))
    return section


def pictures_section(facts: RunFacts, dataset_name: str | None, num_images: int) -> Section:
    """Make the section of attention maps and patch components of the same images for three sizes of the teacher."""
    section = Section("pictures", "What three sizes see")
    if facts.no_model:
        section.missing.append((facts.no_model, None))
        return section
    try:
        subject = load_subject(facts.name)
        processor = cast(ImageProcessor, subject.processor)  # what a run saves
        pixel_values, name = evaluation_images(facts, processor, dataset_name, num_images)  # (N, 3, H, W)
    except (ValueError, OSError) as error:
        if dataset_name is not None:
            raise
        section.missing.append(_no_images(facts, error))
        return section
    model = subject.model
    titles = {}
    for size in three_sizes(facts.space):
        named = size_name(facts.space, size)
        titles[size] = f"{size} ({named})" if named else str(size)
    step = "" if subject.step is None else f" at step {subject.step:,}"
    height, width = pixel_values.shape[2:]
    section.text = f"Images of {name} as the teacher{step} sees them, {height} x {width} pixels."
    normalised = (processor.image_mean, processor.image_std)
    if facts.backbone.has_class_token:
        maps = {title: attention_maps(model, pixel_values, size) for size, title in titles.items()}
        caption = "Where the class token looks: attention of the last block, mean over its heads. Brighter is more."
        content = png(attention_figure(pixel_values, maps, *normalised), _DPI)
        panels = attention_panels(pixel_values, maps, *normalised)
        section.pictures.append(Picture("attention", caption, content, _as_files(panels)))
    else:
        family = facts.backbone.family or "This family"
        section.text += f" {family} has no class token whose attention could be shown, so only patch components are."
    features = {size: patch_features(model, pixel_values, size) for size in titles}
    full = [*titles][-1]
    colours = {}  # components turned towards those of the full size, so that like colours are like features
    for size, title in titles.items():
        colours[title] = patch_pca(features[size], reference=None if size == full else features[full])
    caption = "The first three principal components of the patches as red, green and blue: like colours, like features."
    content = png(pca_figure(pixel_values, colours, *normalised), _DPI)
    panels = pca_panels(pixel_values, colours, *normalised)
    section.pictures.append(Picture("patch-pca", caption, content, _as_files(panels)))
    return section


def _as_files(panels: Mapping[str, list[np.ndarray]]) -> dict[str, list[bytes]]:
    return {title: [png_of(pixels) for pixels in column] for title, column in panels.items()}


def _no_images(facts: RunFacts, error: Exception) -> tuple[str, str]:
    return f"There are no images to show ({one_line(error)}); with images of your own:", facts.command(
        "report", "--dataset_name", "FOLDER"
    )
