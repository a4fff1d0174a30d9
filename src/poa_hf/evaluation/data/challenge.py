"""The folder of the backgrounds challenge: test images of ImageNet-9 with their foregrounds on other backgrounds.

Source: Xiao et al. 2020, "Noise or Signal: The Role of Image Backgrounds in Object Recognition". The published folder
`bg_challenge` holds the images as they are (`original`) and kinds of them (`mixed_rand`, `only_fg`, ...), each as
KIND/val/CLASS/IMAGE. In the names of mixed images are those of the images that they were made of: fg_A_bg_B.JPEG.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...data.crop_arguments import MAX_IMAGE_PIXELS
from ...data.sources import open_dataset
from ..labelled import LabelledImages
from .evaluation_data import EvaluationData
from .holdout import HoldOut
from .sources import Source

logger = logging.getLogger(__name__)

ORIGINAL = "original"
KINDS = ("only_fg", "no_fg", "mixed_same", "mixed_rand", "mixed_next", "only_bg_b", "only_bg_t")
TRAIN_FOLDERS = ("original/train", "train")  # where train images are looked for
HELD_OUT = 0.5  # of the original images, where there are no train images


def is_challenge(name: str) -> bool:
    """Whether a dataset's name is the folder of the challenge."""
    folder = Path(name).expanduser()
    return (folder / ORIGINAL / "val").is_dir() and any((folder / kind / "val").is_dir() for kind in KINDS)


def open_challenge(
    name: str,
    train_split: str | None = None,
    max_train_images: int | None = None,
    max_test_images: int | None = None,
    seed: int = 0,
    holdout: float | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> EvaluationData[LabelledImages]:
    """Open the folder of the challenge: its original images are the test split, and its other kinds the variants.

    Without train images, half of the original ones are held out to test on, and the others are the train split. Of the
    other kinds, images that show the foreground or the background of a train image are left out then.

    Args:
        name: The folder.
        train_split: A folder of train images in class folders, relative to that of the challenge. By default one of
            `TRAIN_FOLDERS`, if there is one.
        max_train_images: The number of train images to use, all by default.
        max_test_images: The number of images of each kind to use, all by default.
        seed: Decides which images are used, and which are held out.
        holdout: The share of the original images to test on, where they are the train images too.
        max_image_pixels: The largest width times height of an image that is decoded; larger ones are left out.

    Raises:
        ValueError: For a folder that does not exist, and if names do not tell which images others were made of.
    """
    root = Path(name).expanduser()
    kinds = [kind for kind in KINDS if (root / kind / "val").is_dir()]
    train_folder = None if holdout is not None else _train_folder(root, train_split)
    folders = {kind: f"{kind}/val" for kind in (ORIGINAL, *kinds)}
    opened = {kind: open_dataset(str(root / folder)) for kind, folder in folders.items()}
    if train_folder is not None:
        opened["train"], folders["train"] = open_dataset(str(root / train_folder)), train_folder
    names = sorted({each for dataset in opened.values() for each in _classes(dataset, root)})
    splits = {
        kind: LabelledImages(_with_classes(dataset, names), name=folders[kind], max_image_pixels=max_image_pixels)
        for kind, dataset in opened.items()
    }
    original, train = splits.pop(ORIGINAL), splits.pop("train", None)
    held_out = None
    random = np.random.default_rng(seed)
    if train is None:
        held_out = HoldOut(holdout or HELD_OUT, seed)
        originals = {parts.foreground for parts in _parts(original)}
        train, original = held_out.split(original, max_train_images, max_test_images)
        splits = {kind: _without(images, train, originals) for kind, images in splits.items()}
    else:
        train, original = _limited(train, max_train_images, random), _limited(original, max_test_images, random)
    variants = {kind: _limited(images, max_test_images, random) for kind, images in splits.items()}
    source = Source(name, None, original.name)
    return EvaluationData(original, train, root.resolve().name, None, held_out, source, variants)


def _train_folder(root: Path, asked: str | None) -> str | None:
    if asked not in (None, "train"):
        if not (root / str(asked)).is_dir():
            raise ValueError(
                f"{root} has no folder {asked} of train images: give --train_split a folder of class folders, relative "
                "to that of the challenge, or leave it out to hold out half of the original images."
            )
        return asked
    return next((folder for folder in TRAIN_FOLDERS if (root / folder).is_dir()), None)


def _classes(dataset: Any, root: Path) -> list[str]:
    names: list[str] | None = getattr(dataset.features.get("label"), "names", None)
    if not names:
        raise ValueError(f"A folder of images in {root} has no class folders: unpack the challenge again.")
    return names


def _with_classes(dataset: Any, names: Sequence[str]) -> Any:
    """Number the labels of a dataset by their place among the names of all classes."""
    import datasets

    own = dataset.features["label"].names
    labels = [names.index(own[label]) for label in dataset["label"][:]]
    return dataset.remove_columns("label").add_column("label", labels, feature=datasets.ClassLabel(names=list(names)))


@dataclass(frozen=True)
class Parts:
    """What an image of the challenge was made of, by its path `CLASS/NAME.JPEG`.

    Args:
        foreground: The path of the original image, without suffix; that of the image itself unless it is a mixed one.
        background: The name of the original image whose background it has, without folder and suffix.

    Example:
        >>> Parts.of("00_dog/fg_n02085620_574_bg_n02655020_31.JPEG")
        Parts(foreground='00_dog/n02085620_574', background='n02655020_31')
        >>> Parts.of("00_dog/n02085620_574.JPEG")
        Parts(foreground='00_dog/n02085620_574', background='n02085620_574')
    """

    foreground: str
    background: str

    @classmethod
    def of(cls, image: str) -> Parts:
        """Read an image's path."""
        path = PurePosixPath(image)
        mixed = re.fullmatch(r"fg_(.+)_bg_(.+)", path.stem)
        foreground, background = mixed.groups() if mixed else (path.stem, path.stem)
        return cls(str(path.parent / foreground), background)


def _parts(images: LabelledImages) -> list[Parts]:
    return [Parts.of(row.name) for _, rows in images.batches(1024) for row in rows]


def _without(images: LabelledImages, train: LabelledImages, originals: Collection[str]) -> LabelledImages:
    """Leave out the images that show the foreground or the background of a train image."""
    memory = _parts(train)
    foregrounds = {parts.foreground for parts in memory}
    backgrounds = {parts.background for parts in memory}
    found = _parts(images)
    if not any(parts.foreground in originals for parts in found):
        logger.warning(
            "The names in %s do not tell which original images they were made of, so some may show foregrounds of the "
            "train images, and their accuracy may be too high: give other train images with --train_split.",
            images.name,
        )
        return images
    mixed = [not parts.foreground.endswith(f"/{parts.background}") for parts in found]
    rows = [
        row
        for row, parts in enumerate(found)
        if parts.foreground not in foregrounds and not (mixed[row] and parts.background in backgrounds)
    ]
    if not rows:
        raise ValueError(
            f"All images in {images.name} show the foreground or the background of a train image: hold out more with "
            "--holdout 0.8, or give other train images with --train_split."
        )
    return images.part(np.array(rows, dtype=np.int64), [len(found)])


def _limited(images: LabelledImages, limit: int | None, random: np.random.Generator) -> LabelledImages:
    count = len(images)
    if limit is None or limit >= count:
        return images
    return images.part(np.sort(random.choice(count, limit, replace=False)), [count])
