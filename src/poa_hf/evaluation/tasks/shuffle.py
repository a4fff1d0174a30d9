"""Accuracy on test images whose patches are shuffled, as a curve over the number of patches.

The image, as the model gets it, is divided into a grid of patches, and these change their places. The finer the grid,
the less is left of the shape of what is shown, and the more a model that still recognises it relies on texture.

Source: Naseer et al. 2021, "Intriguing Properties of Vision Transformers", section 3.3. There
one permutation serves a whole batch; here each image has its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..alterations.alteration import ModelInput, PixelAlteration, PixelBatch, random_of
from .altered import GRID, AlteredAccuracy, check_grid, check_neighbours
from .knn import KnnOptions
from .task import LabelledFeatures, Score, Task, check_numbers

USUAL_GRIDS = (2, 4, 8, 14)


@dataclass(frozen=True)
class ShuffleOptions(KnnOptions):
    """The options of the task `shuffle`.

    Args:
        shuffle_grids: Numbers of patches per side, which must divide both sides of the images; None means what
            `usual_grids` says.
    """

    shuffle_grids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Shuffle(PixelAlteration):
    """Puts the patches of each image in a random order.

    Args:
        grid: The number of patches per side, which divides both sides of the images.
        seed: The seed of the order.
    """

    grid: int
    seed: int = 0

    def __str__(self) -> str:
        return f"shuffled, {self.grid} x {self.grid}"

    def alter(self, batch: PixelBatch) -> Tensor:
        images, grid = batch.pixel_values, self.grid
        _check_divides(grid, (images.shape[2], images.shape[3]))
        orders = (random_of(image, self.seed, f"shuffle {grid}").permutation(grid**2) for image in batch.hashes)
        order = torch.stack([torch.from_numpy(order) for order in orders]).to(images.device)  # (B, N)
        # (B, C, H, W) -> (B, C, rows, h, columns, w) -> (B, rows, columns, C, h, w) -> (B, N, C, h, w)
        patches = images.unflatten(3, (grid, -1)).unflatten(2, (grid, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        patches = patches[torch.arange(len(order), device=order.device)[:, None], order]
        # and back
        return patches.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def _check_divides(grid: int, image_size: tuple[int, int]) -> None:
    check_grid(grid, image_size, "--shuffle_grids")
    if any(side % grid for side in image_size):
        raise ValueError(
            f"A grid of {grid} x {grid} patches does not divide images of {image_size[0]} x {image_size[1]} pixels: "
            "give --shuffle_grids numbers that divide both sides."
        )


def usual_grids(images: ModelInput) -> list[int]:
    """Return those of `USUAL_GRIDS` that divide both sides of images, or else all numbers up to the last that do.

    Raises:
        ValueError: If there is none.
    """
    dividing = [grid for grid in range(2, USUAL_GRIDS[-1] + 1) if not any(side % grid for side in images.sides)]
    if not dividing:
        raise ValueError(
            f"No grid of 2 to {USUAL_GRIDS[-1]} patches per side divides images of {images.height} x {images.width} "
            "pixels: use an image processor that makes images of other sides."
        )
    return [grid for grid in dividing if grid in USUAL_GRIDS] or dividing


def _alterations(options: ShuffleOptions, images: ModelInput) -> list[Shuffle]:
    grids = usual_grids(images) if options.shuffle_grids is None else options.shuffle_grids
    for grid in grids:
        _check_divides(grid, images.sides)
    return [Shuffle(grid, options.seed) for grid in sorted(set(grids))]


def _check(options: ShuffleOptions, train_images: int | None) -> None:
    if options.shuffle_grids is not None:
        check_numbers("shuffle_grids", options.shuffle_grids, GRID)
    check_neighbours(options, train_images)


def _run(
    train: LabelledFeatures, test: LabelledFeatures, num_classes: int, options: ShuffleOptions, device: torch.device
) -> list[Score]:
    accuracy = AlteredAccuracy(train, test, num_classes, options, device)
    altered = [alteration for alteration in test.altered if isinstance(alteration, Shuffle)]
    points = [(a.grid, test.altered[a]) for a in altered]
    settings = {"grids": [a.grid for a in altered], "seed": options.seed}
    return [accuracy.curve_score("shuffle_accuracy", "shuffled", "patches per side", points, 1, settings)]


SHUFFLE = Task("shuffle", _run, check=_check, alterations=_alterations)
