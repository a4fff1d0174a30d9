"""Small labelled data for the tests of this folder."""

from pathlib import Path

import datasets
import numpy as np
from PIL import Image

from poa_hf.data.textures import TEXTURE_NAMES, TextureDataset

CLASSES = datasets.ClassLabel(names=list(TEXTURE_NAMES))
CHALLENGE_CLASSES = ("00_dog", "02_wheeled vehicle", "08_fish")
CHALLENGE_EACH = 6  # images of each class


def table(count: int, seed: int = 5, label=CLASSES, labels=None, broken: tuple[int, ...] = ()) -> datasets.Dataset:
    """So many textures with labels of any type; the rows `broken` hold no image."""
    source = TextureDataset(seed=seed)
    rows = [source[i] for i in range(count)]
    images = [b"no image" if i in broken else row["image"] for i, row in enumerate(rows)]
    features = datasets.Features({"image": datasets.Image(), "label": label})
    images = [{"bytes": image, "path": None} if isinstance(image, bytes) else image for image in images]
    return datasets.Dataset.from_dict(
        {"image": images, "label": labels or [row["label"] for row in rows]}, features=features
    )


def disc(size: int = 40, radius: int = 12, middle: tuple[int, int] = (18, 22)) -> np.ndarray:
    """A mask with 7 where the foreground is, a disc, and 0 elsewhere."""
    rows, columns = np.mgrid[:size, :size]
    return (7 * ((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < radius**2)).astype(np.uint8)


def masked_table(count: int, seed: int = 5, masks: list | None = None, classes: int = 10) -> datasets.Dataset:
    """So many textures of some of the classes, with masks: discs, or those that are given."""
    source = TextureDataset(seed=seed, length=2000)
    rows = [row for row in map(source.__getitem__, range(count * 20 // classes)) if row["label"] < classes][:count]
    discs = [Image.fromarray(disc(middle=(14 + 7 * number % 12, 26 - 5 * number % 12))) for number in range(count)]
    columns = {"image": [row["image"] for row in rows], "label": [row["label"] for row in rows], "mask": masks or discs}
    features = datasets.Features({"image": datasets.Image(), "label": CLASSES, "mask": datasets.Image()})
    return datasets.Dataset.from_dict(columns, features=features)


def parquet_folder(folder: Path, train: datasets.Dataset, test: datasets.Dataset | None = None, files: int = 3) -> Path:
    """Both splits in a folder, the first in so many files of row groups of 8."""
    folder.mkdir(parents=True)
    for part in range(files):
        path = folder / f"train-{part:05d}-of-{files:05d}.parquet"
        train.shard(files, part, contiguous=True).to_parquet(str(path), batch_size=8)
    if test is not None:
        test.to_parquet(str(folder / "test-00000-of-00001.parquet"), batch_size=8)
    return folder


def save_texture(path: Path, seed: int) -> None:
    """Save a texture as a JPEG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    TextureDataset(32, seed, 2)[0]["image"].save(path, "JPEG")


def _name(label: int, number: int) -> str:
    return f"n0{label}000_{number}"


def challenge_folder(root: Path, train: str | None = None, kinds=("only_fg", "mixed_same", "mixed_rand")) -> Path:
    """A folder like the published one, in small; mixed images are named after those that they are made of."""
    seed = 0
    for label, folder in enumerate(CHALLENGE_CLASSES):
        for number in range(CHALLENGE_EACH):
            seed += 100
            own = _name(label, number)
            save_texture(root / "original" / "val" / folder / f"{own}.JPEG", seed)
            others = {"mixed_same": (label, (number + 1) % CHALLENGE_EACH), "mixed_rand": ((label + 1) % 3, number)}
            for place, kind in enumerate(kinds, 1):
                stem = f"fg_{own}_bg_{_name(*others[kind])}" if kind in others else own
                save_texture(root / kind / "val" / folder / f"{stem}.JPEG", seed + place)
            if train is not None:
                save_texture(root / train / folder / f"train_{number}.JPEG", seed + 50)
    return root
