"""A picture of test images as they are and altered, as the model sees them: to look at what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..data.evaluation_data import EvaluationData
from ..images.prepared import PreparedBatches
from ..labelled import LabelledImages
from ..subject import Subject
from ..tasks import TaskOptions, alterations_of, need_backgrounds
from .alteration import Alteration, ImageAlteration, PixelAlteration, PixelBatch
from .saliency import patch_saliency

NUMBER = 6  # images in a row
SIDE = 64  # that small images are enlarged to, in pixels
MARGIN, LABEL = 4, 190


def examples_picture(
    subject: Subject,
    data: EvaluationData[Any],
    tasks: Sequence[str],
    options: TaskOptions | None = None,
    number: int = NUMBER,
) -> Image.Image:
    """Return a picture with the first test images in its first row, and one row for each way in which they are altered.

    Args:
        subject: The model, which says how images are prepared and which of their patches are salient.
        data: The dataset.
        tasks: Tasks that alter images.
        options: Their options.
        number: The number of images in a row.

    Raises:
        ValueError: If the tasks alter no images, or these cannot be altered.
    """
    options = options or TaskOptions()
    variants = data.variants if need_backgrounds(tasks) else {}
    alterations = alterations_of(tasks, options, subject.input, bool(data.variants))
    if not alterations and not variants:
        raise ValueError(f"None of the tasks {', '.join(tasks)} alters images: leave the picture of examples out.")
    rows = [*_altered(subject, data.test, alterations, number)]
    rows += [(kind, next(_altered(subject, images, [], number))[1]) for kind, images in variants.items()]
    return _picture(rows, subject.processor)


def save_examples(
    path: Path,
    subject: Subject,
    work: Sequence[tuple[Sequence[str], EvaluationData[Any]]],
    options: TaskOptions | None = None,
) -> None:
    """Save the `examples_picture` of the tasks that look at labelled images.

    Args:
        path: The file.
        subject: The model.
        work: Tasks with their data.
        options: Their options.

    Raises:
        ValueError: If the tasks alter no images.
    """
    for tasks, data in work:
        if isinstance(data.test, LabelledImages):
            examples_picture(subject, data, tasks, options).save(path)
            return
    raise ValueError("The tasks alter no images: leave the picture of examples out.")


def _altered(
    subject: Subject, images: LabelledImages, alterations: Sequence[Alteration], number: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the prepared images (B, C, H, W) of each row, the images as they are first."""
    in_workers = [each for each in alterations if isinstance(each, ImageAlteration)]
    batches = iter(PreparedBatches(images, subject.processor, number, 0, 1, in_workers))
    batch = next(batches)
    while batch.error is None and batch.pixel_values is None:  # no image of these rows can be decoded
        batch = next(batches)
    if batch.error is not None or batch.pixel_values is None:
        raise ValueError(batch.error)
    yield "original", batch.pixel_values
    for alteration in in_workers:
        altered = next(batches)
        if altered.error is not None or altered.pixel_values is None:
            raise ValueError(altered.error)
        yield str(alteration), altered.pixel_values
    pixels = batch.pixel_values.to(subject.model.device)
    on_device = PixelBatch(pixels, [image.hash for image in batch.ids], patch_saliency(subject.model))
    with torch.no_grad():
        for each in alterations:
            if isinstance(each, PixelAlteration):
                yield str(each), each.alter(on_device).cpu()


def _picture(rows: Sequence[tuple[str, Tensor]], processor: Any) -> Image.Image:
    height, width = rows[0][1].shape[2:]
    scale = max(1, -(-SIDE // min(height, width)))
    cell = (width * scale, height * scale)
    columns = max(len(images) for _, images in rows)
    size = (LABEL + columns * (cell[0] + MARGIN), len(rows) * (cell[1] + MARGIN) + MARGIN)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for row, (name, images) in enumerate(rows):
        top = MARGIN + row * (cell[1] + MARGIN)
        draw.text((MARGIN, top + cell[1] // 2 - 6), name, fill="black")
        for column, image in enumerate(_shown(images, processor)):
            left = LABEL + column * (cell[0] + MARGIN)
            picture.paste(image.resize(cell, Image.Resampling.NEAREST), (left, top))
    return picture


def _shown(images: Tensor, processor: Any) -> list[Image.Image]:
    """Return prepared images (B, C, H, W) as pictures; of those of many channels, the first three."""
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if getattr(processor, "do_normalize", False) and mean is not None and std is not None:
        shape = (1, -1, 1, 1)
        images = images * torch.as_tensor(std).reshape(shape) + torch.as_tensor(mean).reshape(shape)
    pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()  # (B, H, W, C)
    colours = pixels[..., :3] if pixels.shape[3] >= 3 else pixels[..., :1].repeat(3, axis=3)
    return [Image.fromarray(each) for each in colours]
