"""A folder of photographs in class folders, one of which is broken, and the same images as a stream."""

from pathlib import Path

import datasets

from poa_hf.data.textures import TextureDataset

COUNT, BROKEN = 11, 4  # the broken one is row 4 in the order of paths


def write_photos(folder: Path) -> Path:
    """Write class folders; the image of row i is `names()[i]`."""
    source = TextureDataset(seed=5)
    for index, name in enumerate(names()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if index == BROKEN:
            path.write_bytes(b"no image")
        else:
            source[index]["image"].save(path)
    return folder


def names() -> list[str]:
    return [f"{'cat' if index < 6 else 'dog'}/{index:02d}.png" for index in range(COUNT)]


def write_parquet(folder: Path, photos: Path, files: int = 3) -> Path:
    """Write the photographs as tables, whose rows hold the bytes and the file's name."""
    folder.mkdir(parents=True)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "n": datasets.Value("int64"),
        }
    )
    rows = {"image": [], "label": [], "n": []}
    for index, name in enumerate(names()):
        rows["image"].append({"bytes": (photos / name).read_bytes(), "path": Path(name).name})
        rows["label"].append(int(name.startswith("dog")))
        rows["n"].append(index)
    table = datasets.Dataset.from_dict(rows, features=features)
    for part in range(files):
        table.shard(files, part, contiguous=True).to_parquet(str(folder / f"train-{part:05d}-of-{files:05d}.parquet"))
    return folder
