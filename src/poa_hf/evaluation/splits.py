"""The two splits of an evaluation: train images, which vote or train a probe, and test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.sources import TEXTURES, MissingSplit, check_texture_split, open_dataset
from ..data.textures import TextureDataset
from .labelled import LabelledImages, UnlabelledImage

TEST_SPLITS = ("test", "validation", "val", "valid")
# Seeds and numbers of the built-in images; training uses seed 0.
_TEXTURES = {"train": (1_000_001, 5000), "test": (1_000_002, 2000)}


@dataclass
class EvaluationData:
    """A labelled dataset.

    Args:
        test: The test split.
        train: The train split; None if no task needs it.
        name: What records call the dataset.
        config_name: The configuration of the dataset, if it has several.
    """

    test: LabelledImages
    train: LabelledImages | None = None
    name: str = "dataset"
    config_name: str | None = None


def open_splits(
    name: str,
    config_name: str | None = None,
    train_split: str | None = "train",
    test_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_train_images: int | None = None,
    max_test_images: int | None = None,
    seed: int = 0,
) -> EvaluationData:
    """Open the splits of a labelled dataset. It is streamed unless it is a folder of image files.

    Args:
        name: A dataset, as `open_dataset` takes it. "textures" are built-in images that differ from those of training.
        config_name: The configuration of the dataset, if it has several.
        train_split: The name of the train split; None leaves it out.
        test_split: The name of the test split, by default the first labelled one of `TEST_SPLITS`.
        image_column: The column with the images, found by its type or name by default.
        label_column: The column with the labels, found by its type or name by default.
        max_train_images: The number of train images to use, all by default.
        max_test_images: The number of test images to use, all by default.
        seed: Decides which images are used.

    Raises:
        ValueError: For a dataset, split or column that does not exist or is not clear, and for labels that are not
            classes.

    Example:
        >>> data = open_splits("textures", max_train_images=20, max_test_images=10)
        >>> len(data.train), len(data.test)
        (20, 10)
    """
    for option, limit in (("max_train_images", max_train_images), ("max_test_images", max_test_images)):
        if limit is not None and limit < 1:
            raise ValueError(f"{option} is {limit}: give at least 1, or leave it out for all images.")

    def open_split(split: str, limit: int | None) -> LabelledImages:
        if name == TEXTURES:
            check_texture_split(split)
            texture_seed, count = _TEXTURES["train" if split == train_split else "test"]
            textures = TextureDataset(seed=texture_seed, length=limit or count)
            return LabelledImages(textures, image_column, label_column, name=split)
        dataset = open_dataset(name, config_name, split)
        return LabelledImages(dataset, image_column, label_column, limit, seed, split)

    train = open_split(train_split, max_train_images) if train_split is not None else None
    if test_split is not None:
        test = open_split(test_split, max_test_images)
    else:
        test = _first_labelled(lambda split: open_split(split, max_test_images), name)
    shown = Path(name).name if Path(name).exists() else name
    return EvaluationData(test, train, shown, config_name)


def _first_labelled(open_split: Callable[[str], LabelledImages], name: str) -> LabelledImages:
    unlabelled: UnlabelledImage | None = None
    for split in TEST_SPLITS:
        try:
            return open_split(split)
        except MissingSplit:
            continue
        except UnlabelledImage as error:
            unlabelled = error
    raise unlabelled or ValueError(
        f"{name} has neither a test nor a validation split: pass --test_split with another one."
    )


def encode_labels(
    data: EvaluationData, train: Sequence[int | str], test: Sequence[int | str]
) -> tuple[Tensor, Tensor, int]:
    """Encode the labels of both splits as whole numbers from 0.

    Args:
        data: The splits, whose class names say whether equal numbers mean the same class.
        train: M labels; none where there is no train split.
        test: N labels.

    Returns:
        Train labels (M,) int64, test labels (N,) int64, and the number of classes in both together.

    Raises:
        ValueError: If some labels are numbers and others names, or if no test image is of a class of the train split.
    """
    if data.train is not None and data.train.class_names and data.test.class_names:
        if data.train.class_names != data.test.class_names:
            # the same number means another class in the other split
            train = [data.train.class_names[int(label)] for label in train]
            test = [data.test.class_names[int(label)] for label in test]
    if len({type(label) for label in (*train, *test)}) > 1:
        raise ValueError("Some labels are numbers and others strings: give splits whose label columns are alike.")
    if data.train is not None and train and not {*train} & {*test}:
        raise ValueError(
            f"No image of {data.test.name} is of a class of {data.train.name}: give splits of one dataset, or more "
            "images (--max_train_images)."
        )
    classes = sorted({*train, *test})
    numbers = {label: number for number, label in enumerate(classes)}
    train_labels, test_labels = (
        torch.tensor([numbers[label] for label in part], dtype=torch.int64) for part in (train, test)
    )
    return train_labels, test_labels, len(classes)
