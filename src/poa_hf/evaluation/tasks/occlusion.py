"""Accuracy on test images of which a share of the patches is hidden, as a curve over the share.

The image, as the model gets it, is divided into a grid of patches. Some of them are dropped: all their pixels become 0
after normalisation, which is the mean colour that the image processor was made with. They are chosen at random, or in
the order of their saliency (`saliency.patch_saliency`), the most or the least salient ones first. A larger share drops
the same patches and more. The saliency is that of the full size for all sizes of a run, so all are tested on the same
images.

Source: Naseer et al. 2021, "Intriguing Properties of Vision Transformers", section 3.1 (random, salient and non-salient
PatchDrop on a grid of 14 x 14). Differences: their dropped pixels are black, one random choice serves a whole batch,
and their shares of salient patches are shares of the attention, here of the patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...ranges import Range, check_number
from ..alterations.alteration import ModelInput, PixelAlteration, PixelBatch, random_of
from .altered import GRID, AlteredAccuracy, check_grid, check_neighbours
from .knn import KnnOptions
from .task import LabelledFeatures, Score, Task, check_numbers

DROPPED = ("random", "salient", "non-salient")
USUAL_GRID, SMALLEST_GRID = 14, 4
RATIO = Range(0, 1, above=True, below=True)


@dataclass(frozen=True)
class OcclusionOptions(KnnOptions):
    """The options of the task `occlusion`.

    Args:
        occlusion_ratios: Shares of the patches that are dropped, each above 0 and below 1.
        occlusion_grid: The number of patches per side; None means what `usual_grid` says.
    """

    occlusion_ratios: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    occlusion_grid: int | None = None


@dataclass(frozen=True)
class Occlusion(PixelAlteration):
    """Drops a share of the patches, at least one and not all.

    Args:
        dropped: One of `DROPPED`.
        ratio: The share.
        grid: The number of patches per side. Patches differ by a pixel where it does not divide the side.
        seed: The seed of the random choice.
    """

    dropped: str
    ratio: float
    grid: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{100 * self.ratio:g} % dropped, {self.dropped}"

    def alter(self, batch: PixelBatch) -> Tensor:
        height, width = batch.pixel_values.shape[2:]
        check_grid(self.grid, (height, width), "--occlusion_grid")
        number = min(max(1, round(self.ratio * self.grid**2)), self.grid**2 - 1)
        hidden = torch.zeros(len(batch.hashes), self.grid**2, dtype=torch.bool, device=batch.pixel_values.device)
        hidden.scatter_(1, self._order(batch)[:, :number].to(hidden.device), True)
        rows, columns = (torch.arange(side, device=hidden.device) * self.grid // side for side in (height, width))
        pixels = hidden.unflatten(1, (self.grid, self.grid))[:, rows][:, :, columns]  # (B, H, W)
        return batch.pixel_values.masked_fill(pixels[:, None], 0)

    def _order(self, batch: PixelBatch) -> Tensor:
        """Return the patches of each image in the order in which they are dropped: int64 (B, grid * grid)."""
        if self.dropped == "random":
            draws = (random_of(image, self.seed, "occlusion").permutation(self.grid**2) for image in batch.hashes)
            return torch.stack([torch.from_numpy(order) for order in draws])
        # a mean over the pixels of a patch where the model's patches are smaller, between neighbours where larger
        size = (self.grid, self.grid)
        saliency = interpolate(batch.saliency[:, None].float(), size, mode="bilinear", antialias=True)
        return saliency.flatten(1).argsort(dim=1, descending=self.dropped == "salient", stable=True)


def chosen_by_model(settings: Mapping[str, Any]) -> bool:
    """Return whether a model chose itself which patches were dropped, so that the images of other models differ.

    Args:
        settings: Those of a record, of any metric.
    """
    return settings.get("dropped", "random") != "random"


def usual_grid(images: ModelInput) -> int:
    """Return the number of patches per side: a ViT's own, else the largest one up to 14 that divides both sides."""
    side, patch = images.height, images.patch_size
    if patch is not None and side == images.width and side > patch and side % patch == 0:
        return side // patch
    candidates = range(USUAL_GRID, SMALLEST_GRID - 1, -1)
    return next((grid for grid in candidates if not any(side % grid for side in images.sides)), USUAL_GRID)


def _alterations(options: OcclusionOptions, images: ModelInput) -> list[Occlusion]:
    grid = usual_grid(images) if options.occlusion_grid is None else options.occlusion_grid
    check_grid(grid, images.sides, "--occlusion_grid")
    ratios = sorted(set(options.occlusion_ratios))
    return [Occlusion(dropped, ratio, grid, options.seed) for dropped in DROPPED for ratio in ratios]


def _check(options: OcclusionOptions, train_images: int | None) -> None:
    check_numbers("occlusion_ratios", options.occlusion_ratios, RATIO)
    if options.occlusion_grid is not None:
        check_number("occlusion_grid", options.occlusion_grid, GRID)
    check_neighbours(options, train_images)


def _run(
    train: LabelledFeatures, test: LabelledFeatures, num_classes: int, options: OcclusionOptions, device: torch.device
) -> list[Score]:
    accuracy = AlteredAccuracy(train, test, num_classes, options, device)
    scores = []
    for dropped in DROPPED:
        altered = [a for a in test.altered if isinstance(a, Occlusion) and a.dropped == dropped]
        points = [(a.ratio, test.altered[a]) for a in altered]
        settings = {
            "dropped": dropped,
            "ratios": [a.ratio for a in altered],
            "grid": altered[0].grid,
            "seed": options.seed,
        }
        scores.append(
            accuracy.curve_score("occlusion_accuracy", dropped, "share of patches dropped", points, 0, settings)
        )
    return scores


OCCLUSION = Task("occlusion", _run, check=_check, alterations=_alterations)
