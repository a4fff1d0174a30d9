"""The data of an evaluation: train images, which vote or train a probe, and test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from .holdout import HoldOut
from .sources import Source
from .split_rows import SplitRows

RowsT = TypeVar("RowsT", bound=SplitRows[Any])


@dataclass
class EvaluationData(Generic[RowsT]):
    """A dataset of images with labels, or with values of their pixels.

    Args:
        test: The test split.
        train: The train split; None if no task needs it.
        name: What records call the dataset.
        config_name: The configuration of the dataset, if it has several.
        holdout: How the test split was made of the train split, if it was.
        test_source: Where the test split comes from, to tell whether a model was pre-trained on it.
        variants: Of the backgrounds challenge, the kinds of images with other backgrounds, with the same class names as
            the test split.

    Raises:
        ValueError: If both splits have rows of one dataset object in common.
    """

    test: RowsT
    train: RowsT | None = None
    name: str = "dataset"
    config_name: str | None = None
    holdout: HoldOut | None = None
    test_source: Source | None = None
    variants: Mapping[str, RowsT] = field(default_factory=dict)

    @classmethod
    def held_out(cls, images: RowsT, share: float, seed: int = 0, name: str = "dataset") -> EvaluationData[RowsT]:
        """Make both splits of one, for a dataset in memory or a stream: a share of each class is the test split.

        Raises:
            ValueError: As `HoldOut` does.

        Example:
            >>> from poa_hf.data.textures import TextureDataset
            >>> from poa_hf.evaluation.labelled import LabelledImages
            >>> data = EvaluationData.held_out(LabelledImages(TextureDataset(length=100)), 0.2)
            >>> len(data.train) + len(data.test)
            100
        """
        holdout = HoldOut(share, seed)
        train, test = holdout.split(images)
        return cls(test, train, name, holdout=holdout)

    def __post_init__(self) -> None:
        if self.train is not None and (self.train is self.test or self.train.shares_rows_with(self.test)):
            raise ValueError(same_images(self.train.name, self.test.name))


def same_images(train: str, test: str) -> str:
    """Return the sentence about splits that share images."""
    splits = f"The split {train} is" if train == test else f"Images of the splits {train} and {test} are"
    return (
        f"{splits} given both for training and for testing, so accuracy would mean nothing: pass --test_split with "
        "another split, or --holdout 0.2 to hold a fifth of the train split out."
    )
