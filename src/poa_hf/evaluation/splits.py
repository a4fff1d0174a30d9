"""The two splits of an evaluation: images that teach (a memory, a probe's training set) and images that test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data.sources import TEXTURES, MissingSplit, open_dataset
from ..data.textures import TextureDataset
from .labelled import LabelledImages, UnlabelledImage

TEST_SPLITS = ("test", "validation", "val", "valid")
# Seeds and numbers of built-in images; training uses seed 0.
_TEXTURES = {"train": (1_000_001, 5000), "test": (1_000_002, 2000)}


@dataclass
class EvaluationData:
    """A labelled dataset; `train` is None where no task needs it."""

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
    """Open the splits of a labelled dataset, streamed where it is not a folder of image files.

    Args:
        name: as `open_dataset` takes it; "textures" are built-in images that no training has seen.
        train_split: None leaves it out.
        test_split: by default the first of test and validation that has labels.

    Raises:
        ValueError: for a dataset, split or column that is not there or not clear, and for labels that are no classes.
    """
    columns = (image_column, label_column)
    for option, limit in (("max_train_images", max_train_images), ("max_test_images", max_test_images)):
        if limit is not None and limit < 1:
            raise ValueError(f"{option} is {limit}: give at least 1, or leave it out for all images.")

    def open_split(split: str, limit: int | None) -> LabelledImages:
        if name == TEXTURES:
            texture_seed, count = _TEXTURES["train" if split == train_split else "test"]
            return LabelledImages(TextureDataset(seed=texture_seed, length=limit or count), *columns, name=split)
        return LabelledImages(open_dataset(name, config_name, split), *columns, limit, seed, split)

    train = open_split(train_split, max_train_images) if train_split is not None else None
    if test_split is not None:
        test = open_split(test_split, max_test_images)
    else:
        test = _first_labelled(lambda split: open_split(split, max_test_images), name)
    shown = Path(name).name if Path(name).exists() else name
    return EvaluationData(test, train, shown, config_name)


def _first_labelled(open_split: Callable[[str], LabelledImages], name: str) -> LabelledImages:
    reason: ValueError | None = None
    for split in TEST_SPLITS:
        try:
            return open_split(split)
        except UnlabelledImage as error:
            reason = error
        except MissingSplit:
            continue
    raise reason or ValueError(f"{name} has neither a test nor a validation split: pass --test_split with another one.")


def encode_labels(data: EvaluationData, train: list[int | str], test: list[int | str]) -> tuple[Tensor, Tensor, int]:
    """Labels as whole numbers from 0: train's (M,), test's (N,), and the number of classes in both together.

    Raises:
        ValueError: if one split has numbers and the other names, or not one test image is of a class of the train
            split.
    """
    names = [images.class_names for images in (data.train, data.test) if images is not None]
    if len(names) == 2 and all(names) and names[0] != names[1]:
        # the same number means another class in the other split
        train, test = [names[0][label] for label in train], [names[1][label] for label in test]
    if len({type(label) for label in (*train, *test)}) > 1:
        raise ValueError("Some labels are numbers and others strings: give splits whose label columns are alike.")
    classes = sorted({*train, *test})
    if train and not {*train} & {*test}:
        raise ValueError(
            f"No image of {data.test.name} is of a class of {data.train.name}: give splits of one dataset, or more "
            "images (--max_train_images)."
        )
    number = {label: i for i, label in enumerate(classes)}
    return tuple(torch.tensor([number[label] for label in part], dtype=torch.int64) for part in (train, test)) + (
        len(classes),
    )
