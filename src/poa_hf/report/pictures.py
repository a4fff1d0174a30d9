"""The report's sections of pictures: crops and masks of a batch, attention and patch components of three sizes."""

from __future__ import annotations

from typing import cast

from transformers import BitImageProcessorPil as ImageProcessor

from ..evaluation.subject import load_subject
from ..figures.images import attention_figure, crops_figure, pca_figure
from ..figures.patches import attention_maps, patch_features, patch_pca
from ..formatting import one_line
from ..runs.facts import RunFacts
from .images import evaluation_images, training_batch
from .section import Picture, Section, png
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
        f"A batch of {name}: of each image two global crops, with the masked patches hatched, and "
        f"{args.num_local_crops} local crops at the same scale."
    )
    if not facts.arguments:
        section.text += " The run does not say how its crops are made: these are the usual ones."
    figure = crops_figure(batch, num_images, args.image_mean, args.image_std)
    section.pictures.append(Picture("crops", "Crops and masks.", png(figure, _DPI), wide=True))
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
        figure = attention_figure(pixel_values, maps, *normalised)
        caption = "Where the class token looks: attention of the last block, mean over its heads."
        section.pictures.append(Picture("attention", caption, png(figure, _DPI), wide=True))
    else:
        family = facts.backbone.family or "This family"
        section.text += f" {family} has no class token whose attention could be shown, so only patch components are."
    features = {size: patch_features(model, pixel_values, size) for size in titles}
    full = [*titles][-1]
    colours = {}  # components turned towards those of the full size, so that like colours are like features
    for size, title in titles.items():
        colours[title] = patch_pca(features[size], reference=None if size == full else features[full])
    caption = "The first three principal components of the patches as red, green and blue: like colours, like features."
    figure = pca_figure(pixel_values, colours, *normalised)
    section.pictures.append(Picture("patch-pca", caption, png(figure, _DPI), wide=True))
    return section


def _no_images(facts: RunFacts, error: Exception) -> tuple[str, str]:
    return f"There are no images to show ({one_line(error)}); with images of your own:", facts.command(
        "report", "--dataset_name", "FOLDER"
    )
