"""Features of patches of many sizes in one pass over a split, handed on image by image and never kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..opened import opened, patches_of_output
from ..subject import Subject
from ..tasks.dense_task import Example

Patches = dict[str, Tensor]  # by view ("" for the whole image, else the task's name), (h, w, D)


def patch_features_of(
    subject: Subject, size: str | None, examples: Sequence[Example], device: torch.device, bf16: bool, batch_size: int
) -> Iterator[Patches]:
    """Yield the features of each image's patches, and of those of its other views.

    Images of one shape are computed together. Which ones these are depends on the batch only.

    Args:
        subject: The model.
        size: The size of an elastic model; None for a model of one size.
        examples: The images of a batch.
        device: Where the model computes, and where the features are then.
        bf16: Compute in bfloat16 (autocast).
        batch_size: Images of one forward pass.

    Raises:
        ValueError: For a model without features of patches, or features that are not finite.
    """
    views = [{"": example.pixel_values, **example.views} for example in examples]
    of_shape: dict[tuple[int, ...], list[tuple[int, str]]] = {}
    for number, each in enumerate(views):
        for name, pixel_values in each.items():
            of_shape.setdefault(tuple(pixel_values.shape), []).append((number, name))
    found: list[Patches] = [{} for _ in examples]
    with opened(subject.model, size) as run:
        for members in of_shape.values():
            for start in range(0, len(members), batch_size):
                part = members[start : start + batch_size]
                pixel_values = torch.stack([views[number][name] for number, name in part]).to(device)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    patches = patches_of_output(run, run(pixel_values), pixel_values).float()  # (B, h, w, D)
                if not patches.isfinite().all():
                    raise ValueError(
                        f"Some features of {size or subject.name} are not finite: its weights, or the prepared images, "
                        "are broken."
                    )
                for (number, name), features in zip(part, patches, strict=True):
                    found[number][name] = features
    yield from found
