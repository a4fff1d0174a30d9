"""What tasks on altered test images have in common: the k-NN accuracy that is left, as a curve and its mean.

The memory are the features of the train images as they are, so nothing but the test images changes. One number of
neighbours is used, that of the k-NN task nearest to 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ...ranges import Range
from ..alterations.alteration import AlteredFeatures
from .knn import KnnOptions, knn_ks, knn_predictions
from .task import LabelledFeatures, Score

USUAL_K = 20  # the number of neighbours that papers report
GRID = Range(2, 1024, whole=True)  # patches per side


def neighbours(options: KnnOptions, train_images: int) -> int:
    """Return the number of neighbours that vote: of those of the k-NN task the nearest to 20, of two the smaller.

    Raises:
        ValueError: As `knn_ks` does.
    """
    return min(knn_ks(options, train_images), key=lambda k: (abs(k - USUAL_K), k))


def check_neighbours(options: KnnOptions, train_images: int | None) -> None:
    """Raise ValueError if there are too few train images for the neighbours that vote."""
    if train_images is not None:
        neighbours(options, train_images)


def check_grid(grid: int, image_size: tuple[int, int], option: str) -> None:
    """Raise ValueError if images are smaller than a grid of patches."""
    if grid > min(image_size):
        raise ValueError(
            f"Images of {image_size[0]} x {image_size[1]} pixels are smaller than a grid of {grid} x {grid} patches: "
            f"give {option} a smaller number."
        )


class AlteredAccuracy:
    """k-NN classification of one split's features and of those of its altered images, against the same memory.

    Args:
        train: The train split.
        test: The test split.
        num_classes: The number of classes in both splits together.
        options: The options of k-NN.
        device: Where the search runs.
    """

    def __init__(
        self,
        train: LabelledFeatures,
        test: LabelledFeatures,
        num_classes: int,
        options: KnnOptions,
        device: torch.device,
    ) -> None:
        self.train, self.test, self.num_classes, self.device = train, test, num_classes, device
        self.k, self.temperature = neighbours(options, len(train.labels)), options.temperature

    @property
    def settings(self) -> dict[str, float]:
        """What an accuracy depends on, for `Score.settings`."""
        return {"k": self.k, "temperature": self.temperature}

    def outcomes(self, images: LabelledFeatures | AlteredFeatures) -> Tensor:
        """Return 1 for each test image that is classified rightly and 0 for others, float64 (N,).

        It is NaN for images that an alteration leaves out.

        Args:
            images: The features of the test images, or those of the altered ones.
        """
        memory = self.train.features, self.train.labels
        found = knn_predictions(
            *memory, images.features, [self.k], self.temperature, self.num_classes, chunk_size=4096, device=self.device
        )
        right = (found[self.k].cpu() == self.test.labels.cpu()).double()
        return right if isinstance(images, LabelledFeatures) else right.where(images.kept, torch.nan)

    def curve_score(
        self,
        metric: str,
        series: str,
        x_name: str,
        points: Sequence[tuple[float, AlteredFeatures]],
        clean_x: float,
        settings: dict[str, object],
    ) -> Score:
        """Return the mean accuracy over the points of a curve as one number, with the curve in its details.

        An image that one of the alterations leaves out counts for none.

        Args:
            metric: The name of the metric.
            series: The name of the curve.
            x_name: What the points differ in.
            points: For each point its x, and the features of the images that are altered so.
            clean_x: The x of the images as they are, which are in the curve and not in its mean.
            settings: What the number depends on beside the settings of k-NN.
        """
        of_points = torch.stack([self.outcomes(altered) for _, altered in points])  # (points, N)
        outcomes = of_points.mean(dim=0)  # NaN where it is in any point
        counted = ~outcomes.isnan()
        values = [part[counted].mean().item() for part in (self.clean, *of_points)]
        curve = {"x_name": x_name, "x": [clean_x, *(x for x, _ in points)], "series": {series: values}}
        details = {"clean_accuracy": values[0], "curve": curve}
        return Score(metric, outcomes[counted].mean().item(), settings | self.settings, details, outcomes)

    @cached_property
    def clean(self) -> Tensor:
        """The outcomes of the images as they are."""
        return self.outcomes(self.test)
