"""Correspondence: whether a patch is found again in another view of the image, by its features alone.

The other view is a random part of the image, turned, zoomed in and, in half of the cases, mirrored, so where each point
of the image lies in it is known exactly, and no labels are needed. For every patch whose centre can be seen there, the
most similar patch of the view (cosine) is taken, and the distance between the centre of that patch and the right place
is measured in pixels of the view. Reported is the share of patches that are found within some numbers of pixels, the
mean over images (PCK).

A patch can be no more exact than its grid: even the nearest centre is up to 0.7 sides of a patch away. The accuracy of
taking that one, the best there can be, is kept beside each number.

Sources: DeTone et al. 2018, "SuperPoint" (pairs made by known transformations); Tang et al. 2023, "DIFT", for PCK with
nearest neighbours of frozen features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from ...data.decoding import Pixels
from ...ranges import POSITIVE
from ..dense.maps import each_channel
from .dense_task import DenseOptions, DenseTask, Example, Fitted
from .task import Score, check_numbers

SIDES = (0.6, 0.9)  # of the part of the image that the view shows, as shares of the image's sides
LARGEST_TURN = 20  # degrees
_AT_ONCE = 2**24  # similarities that are in memory at a time


@dataclass(frozen=True)
class CorrespondenceOptions(DenseOptions):
    """The options of correspondence.

    Args:
        correspondence_pixels: Distances within which a patch counts as found, in pixels of the images that the model
            gets.
    """

    correspondence_pixels: tuple[float, ...] = (4, 8, 16, 32)

    @property
    def distances(self) -> list[float]:
        """The distances, each once."""
        return list(dict.fromkeys(self.correspondence_pixels))


class CorrespondenceTask(DenseTask[CorrespondenceOptions]):
    """The task `correspondence`."""

    name, needs_train = "correspondence", False

    def check(self, options: CorrespondenceOptions, train_images: int | None) -> None:
        super().check(options, train_images)
        check_numbers("correspondence_pixels", options.correspondence_pixels, POSITIVE)

    def view(
        self, image: Pixels, generator: torch.Generator, options: CorrespondenceOptions
    ) -> tuple[Pixels, np.ndarray]:
        width, height = image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])
        matrix = random_affine(width, height, generator)
        data = tuple(matrix.flatten().tolist())

        def turn(part: Image.Image) -> Image.Image:
            return part.transform((width, height), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)

        return each_channel(image, turn), matrix

    def measure(
        self, fitted: Fitted, features: Tensor, view: Tensor | None, example: Example, options: CorrespondenceOptions
    ) -> Tensor:
        assert view is not None
        height, width = example.pixel_values.shape[1:]
        size = torch.tensor([width, height], dtype=torch.float64)
        centres = patch_centres(features.shape[0], features.shape[1], height, width)  # (h * w, 2)
        places = places_in_view(centres, example.geometry[self.name])
        visible = ((places >= 0) & (places < size)).all(dim=1)
        if not visible.any():
            return torch.full((2, len(options.distances)), torch.nan, dtype=torch.float64)
        places = places[visible]
        in_view = patch_centres(view.shape[0], view.shape[1], height, width)
        found = in_view[_most_similar(features.flatten(0, 1)[visible.to(features.device)], view.flatten(0, 1)).cpu()]
        nearest = torch.cdist(places, in_view).min(dim=1).values
        distance = (found - places).norm(dim=1)
        pixels = torch.tensor(options.distances, dtype=torch.float64)
        return torch.stack([(each[:, None] <= pixels).double().mean(dim=0) for each in (distance, nearest)])

    def scores(self, outcomes: Tensor, fitted: Fitted, split: str, options: CorrespondenceOptions) -> list[Score]:
        reached, best = outcomes.nanmean(dim=0).tolist()
        pixels = options.distances
        curve = {"x_name": "pixels", "x": pixels, "series": {"found": reached, "best possible": best}}
        if outcomes.isnan().all():
            raise ValueError(f"No patch of the {split} split can be seen in a view: give larger images.")
        return [
            Score(
                "correspondence_accuracy",
                reached[number],
                {"seed": options.seed, "within": within, "sides": list(SIDES), "turn": LARGEST_TURN},
                {"best_possible": best[number]} | ({"curve": curve} if number == 0 else {}),
                outcomes=outcomes[:, 0, number],
            )
            for number, within in enumerate(pixels)
        ]


CORRESPONDENCE = CorrespondenceTask()


def random_affine(width: int, height: int, generator: torch.Generator) -> np.ndarray:
    """Return a random map from places in a view to places in the image, both of this size: float64 (2, 3).

    Places are in pixels; the centre of the first pixel is at (0.5, 0.5). All corners of the view lie in the image, or
    its part is smaller than `SIDES` says.
    """
    share, turn, across, down, mirrored = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    angle = math.radians(LARGEST_TURN * (2 * turn - 1))
    scale = SIDES[0] + (SIDES[1] - SIDES[0]) * share
    cos, sin = math.cos(angle), math.sin(angle)
    # half of the box around the turned part must fit into the image
    reach = [(abs(cos) * width + abs(sin) * height) / 2, (abs(sin) * width + abs(cos) * height) / 2]
    scale = min(scale, width / 2 / reach[0], height / 2 / reach[1])
    centre = [
        scale * half + (side - 2 * scale * half) * place
        for half, side, place in zip(reach, (width, height), (across, down), strict=True)
    ]
    linear = scale * np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if mirrored < 0.5 else 1.0, 1.0])
    offset = np.array(centre) - linear @ np.array([width / 2, height / 2])
    return np.concatenate([linear, offset[:, None]], axis=1)


def places_in_view(places: Tensor, matrix: np.ndarray) -> Tensor:
    """Return where places of the image, float64 (N, 2), lie in the view whose map to the image is given."""
    linear, offset = torch.from_numpy(matrix[:, :2]), torch.from_numpy(matrix[:, 2])
    return torch.linalg.solve(linear, (places - offset).T).T


def patch_centres(rows: int, columns: int, height: int, width: int) -> Tensor:
    """Return the centres of patches in an image of this size, (x, y), row by row: float64 (rows * columns, 2)."""
    y = (torch.arange(rows, dtype=torch.float64) + 0.5) * height / rows
    x = (torch.arange(columns, dtype=torch.float64) + 0.5) * width / columns
    return torch.stack([x.repeat(rows), y.repeat_interleave(columns)], dim=1)


def _most_similar(queries: Tensor, candidates: Tensor) -> Tensor:
    """Return for each query the candidate of the largest cosine similarity, the first of several: (N,) int64."""
    candidates = normalize(candidates, dim=1)
    parts = normalize(queries, dim=1).split(max(1, _AT_ONCE // len(candidates)))
    return torch.cat([(part @ candidates.T).argmax(dim=1) for part in parts])
