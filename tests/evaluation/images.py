"""Small labelled data for the tests of this folder."""

from pathlib import Path

import datasets

from poa_hf.data.textures import TEXTURE_NAMES, TextureDataset

CLASSES = datasets.ClassLabel(names=list(TEXTURE_NAMES))


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


def parquet_folder(folder: Path, train: datasets.Dataset, test: datasets.Dataset | None = None, files: int = 3) -> Path:
    """Both splits in a folder, the first in so many files of row groups of 8."""
    folder.mkdir(parents=True)
    for part in range(files):
        path = folder / f"train-{part:05d}-of-{files:05d}.parquet"
        train.shard(files, part, contiguous=True).to_parquet(str(path), batch_size=8)
    if test is not None:
        test.to_parquet(str(folder / "test-00000-of-00001.parquet"), batch_size=8)
    return folder
