"""Open the two splits of an evaluation: train images, which vote or train a probe, and test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.crop_arguments import MAX_IMAGE_PIXELS
from ..data.sources import TEXTURES, MissingSplit, check_texture_split, open_dataset
from ..data.textures import EVALUATION_TEXTURES, TextureDataset
from .data.challenge import is_challenge, open_challenge
from .data.evaluation_data import EvaluationData as EvaluationData
from .data.evaluation_data import same_images
from .data.holdout import HoldOut
from .data.masked import MaskedImages
from .data.sources import Source, source_part, split_lengths, splits_overlap
from .data.split_rows import SplitRows
from .dense.images import DenseImages
from .labelled import LabelledImages, UnlabelledImage

TEST_SPLITS = ("test", "validation", "val", "valid")


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
    holdout: float | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    pixel_columns: Mapping[str, str | None] | None = None,
    with_masks: bool = False,
    mask_column: str | None = None,
    **part: Any,
) -> EvaluationData[Any]:
    """Open the splits of a dataset with labels, or with values of pixels. It is streamed unless it is a folder of image
    files.

    Args:
        name: A dataset, as `open_dataset` takes it. "textures" are built-in images that differ from those of training.
        config_name: The configuration of the dataset, if it has several.
        train_split: The name of the train split; None leaves it out.
        test_split: The name of the test split, by default the first labelled one of `TEST_SPLITS`.
        image_column: The column with the images, found by its type or name by default.
        label_column: The column with the labels, found by its type or name by default.
        max_train_images: The number of train images to use, all by default.
        max_test_images: The number of test images to use, all by default.
        seed: Decides which images are used, and which are held out.
        holdout: The share of the train split to test on, such as 0.2, for a dataset without a test split. It is chosen
            at random, the same share of every class, and not part of the train split then (see `HoldOut`).
        max_image_pixels: The largest width times height of an image that is decoded; larger ones are left out.
        pixel_columns: For tasks that look at patches: the column of each kind of values of pixels that they need
            ("mask", "depth"), None for one that is found by its name. The splits then have no labels.
        with_masks: Whether test images need masks of their foreground beside their labels.
        mask_column: The column with these masks, found by its name by default.
        **part: What of the dataset is read: `revision`, `data_dir` and `data_files` of `open_dataset`.

    Raises:
        ValueError: For a dataset, split or column that does not exist or is not clear, for labels that are not
            classes, for splits that have rows in common, and for a share that is not between 0 and 1.

    Example:
        >>> data = open_splits("textures", max_train_images=20, max_test_images=10)
        >>> len(data.train), len(data.test)
        (20, 10)
        >>> data = open_splits("textures", holdout=0.2)
        >>> len(data.train) + len(data.test)
        5000
    """
    for option, limit in (("max_train_images", max_train_images), ("max_test_images", max_test_images)):
        if limit is not None and limit < 1:
            raise ValueError(f"{option} is {limit}: give at least 1, or leave it out for all images.")
    if max_image_pixels < 1:
        raise ValueError(f"max_image_pixels is {max_image_pixels}: give a number of at least 1.")
    if pixel_columns is None and is_challenge(name):
        limits = max_train_images, max_test_images
        return open_challenge(name, train_split, *limits, seed, holdout, max_image_pixels)
    columns = image_column, label_column, pixel_columns, with_masks, mask_column
    opener = _Opener(name, config_name, *columns, seed, max_image_pixels, part)
    shown = Path(name).name if Path(name).exists() else name
    if holdout is not None:
        held_out = HoldOut(holdout, seed)
        if train_split is None or test_split is not None:
            raise ValueError(
                "--holdout makes a test split of the train split: leave out --test_split, and give a train split."
            )
        train, test = held_out.split(opener.open(train_split, None), max_train_images, max_test_images)
        source = Source(name, config_name, train_split, **source_part(part))
        return EvaluationData(test, train, shown, _shown_config(config_name, part), held_out, source)
    if train_split is not None and test_split is not None and splits_overlap(train_split, test_split):
        raise ValueError(same_images(train_split, test_split))
    without_masks = replace(opener, with_masks=False)
    opened = without_masks.open(train_split, max_train_images) if train_split is not None else None
    test = opener.open_test(test_split, train_split, max_test_images)
    if opened is not None and splits_overlap(opened.name, test.name, split_lengths(opened.dataset)):
        raise ValueError(same_images(opened.name, test.name))
    source = Source(name, config_name, test.name, **source_part(part))
    return EvaluationData(test, opened, shown, _shown_config(config_name, part), None, source)


def _shown_config(config_name: str | None, part: Mapping[str, Any]) -> str | None:
    """Return what records call the configuration: of parts of one dataset, the numbers cannot be compared."""
    source = source_part(part)
    texts = [config_name, part.get("revision"), source["data_dir"], *source["data_files"]]
    return " ".join(str(text) for text in texts if text) or None


@dataclass(frozen=True)
class _Opener:
    """Opens splits of one dataset."""

    name: str
    config_name: str | None
    image_column: str | None
    label_column: str | None
    pixel_columns: Mapping[str, str | None] | None
    with_masks: bool
    mask_column: str | None
    seed: int
    max_image_pixels: int
    part: dict[str, Any]

    def open(self, split: str, limit: int | None) -> SplitRows[Any]:
        if self.name == TEXTURES and not any(self.part.values()):
            check_texture_split(split)
            seed, count = EVALUATION_TEXTURES[split]
            textures = TextureDataset(seed=seed, length=limit or count)
            return self._rows(textures, split, None)
        return self._rows(open_dataset(self.name, self.config_name, split, **self.part), split, limit)

    def _rows(self, dataset: Any, split: str, limit: int | None) -> SplitRows[Any]:
        options = limit, self.seed, split, self.max_image_pixels
        if self.pixel_columns is None and self.with_masks:
            return MaskedImages(dataset, self.image_column, self.label_column, self.mask_column, *options)
        if self.pixel_columns is None:
            return LabelledImages(dataset, self.image_column, self.label_column, *options)
        return DenseImages(dataset, list(self.pixel_columns), self.pixel_columns, self.image_column, *options)

    def open_test(self, split: str | None, train_split: str | None, limit: int | None) -> SplitRows[Any]:
        """Open the split that is named, or the first labelled one of `TEST_SPLITS` that is not the train split."""
        if split is not None:
            return self.open(split, limit)
        unlabelled: UnlabelledImage | None = None
        for candidate in TEST_SPLITS:
            if train_split is not None and splits_overlap(candidate, train_split):
                continue
            try:
                return self.open(candidate, limit)
            except MissingSplit:
                continue
            except UnlabelledImage as error:
                unlabelled = error
        if unlabelled is not None:
            raise unlabelled
        raise MissingSplit(
            f"{self.name} has neither a test nor a validation split beside {train_split or 'others'}: pass --holdout "
            "0.2 to hold a fifth of the train split out, or --test_split with another split."
        )


def encode_labels(
    data: EvaluationData[LabelledImages], train: Sequence[int | str], test: Sequence[int | str]
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
            f"None of the classes of {data.test.name} ({len({*test})}) is in {data.train.name} ({len({*train})} "
            "classes): if rows are sorted by class, pass --holdout 0.2 instead of slices; else give splits of one "
            "dataset, or more --max_train_images."
        )
    classes = sorted({*train, *test})
    numbers = {label: number for number, label in enumerate(classes)}
    train_labels, test_labels = (
        torch.tensor([numbers[label] for label in part], dtype=torch.int64) for part in (train, test)
    )
    return train_labels, test_labels, len(classes)
