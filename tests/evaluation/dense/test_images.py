import csv
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from poa_hf.data.decoding import UndecodableImage
from poa_hf.data.sources import find_image_column, open_dataset
from poa_hf.evaluation.dense.images import DenseImages
from poa_hf.evaluation.dense.pixel_values import read_mask
from poa_hf.evaluation.splits import EvaluationData, open_splits

from ..image_folders import parquet_folder
from .pictures import rows, table


def masks(images: DenseImages, size: int = 4, shares: int = 1) -> list[np.ndarray]:
    batches = [batch for share in range(shares) for batch in images.batches(size, share, shares)]
    return [read_mask(row.values["mask"], 10_000) for _, part in sorted(batches, key=lambda b: b[0]) for row in part]


def stream(count: int) -> datasets.IterableDataset:
    return table(count).to_iterable_dataset(num_shards=3)


def as_arrays(count: int) -> datasets.Dataset:
    features = datasets.Features(
        {"image": datasets.Array3D((32, 48, 3), "uint8"), "mask": datasets.Array2D((32, 48), "uint8")}
    )
    return datasets.Dataset.from_list([{key: row[key] for key in features} for row in rows(count)], features=features)


@pytest.mark.parametrize(
    "made",
    [table, stream, as_arrays, rows, lambda count: [(row["image"], row["mask"]) for row in rows(count)],
     lambda count: table(count).with_format("torch"), lambda count: as_arrays(count).to_iterable_dataset()],
    ids=["map-style", "stream", "arrays", "dicts", "tuples", "torch format", "stream of arrays"],
)  # fmt: skip
def test_rows_are_those_of_the_dataset_in_its_order(made):
    images = DenseImages(made(10))
    assert len(images) == 10
    for shares in (1, 3):
        for mine, row in zip(masks(images, shares=shares), rows(10), strict=True):
            assert (mine == row["mask"]).all()


def test_a_sample_is_the_same_rows_for_image_and_mask():
    images = DenseImages(table(20), limit=5, seed=3)
    chosen = [images.dataset[index] for index in images.indices]
    assert len(masks(images)) == 5
    for found, row in zip(masks(images), chosen, strict=True):
        assert (found == read_mask(row["mask"], 10_000)).all()


def test_splits_are_opened_and_held_out(tmp_path):
    folder = parquet_folder(tmp_path / "data", table(12), table(5, seed=1))
    data = open_splits(str(folder), pixel_columns={"mask": None})
    assert (len(data.train), len(data.test), data.test.name) == (12, 5, "test")
    held_out = open_splits(str(folder), pixel_columns={"mask": "mask"}, holdout=0.25)
    assert (len(held_out.train), len(held_out.test)) == (9, 3)
    found = sorted(mask.tobytes() for mask in masks(held_out.train) + masks(held_out.test))
    assert found == sorted(row["mask"].astype(np.int64).tobytes() for row in rows(12))
    with pytest.raises(ValueError, match="given both for training and for testing"):
        EvaluationData(data.train, data.train)
    with pytest.raises(ValueError, match=r"no column of depth maps \(its columns: image, mask\): pass --depth_column"):
        open_splits(str(folder), pixel_columns={"depth": None})


@pytest.mark.parametrize("metadata", ["csv", "jsonl"])
def test_a_folder_whose_metadata_names_the_masks(tmp_path, metadata):
    lines = []
    for split, count, seed in (("train", 6, 0), ("test", 3, 1)):
        for number, row in enumerate(rows(count, seed)):
            for kind in ("image", "mask"):
                path = tmp_path / split / f"{kind}s" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(row[kind]).save(path)
            named = {kind: f"{split}/{kind}s/{number}.png" for kind in ("image", "mask")}
            lines.append({"file_name": named["image"], "mask_file_name": named["mask"], "camera": number})
    lines[1]["mask_file_name"] = None
    (tmp_path / "train" / "masks" / "1.png").unlink()
    if metadata == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        with open(tmp_path / "metadata.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, lines[0])
            writer.writeheader()
            writer.writerows(lines)
    data = open_splits(str(tmp_path), pixel_columns={"mask": None})
    assert (len(data.train), len(data.test)) == (6, 3)
    for found, row in zip(masks(data.test), rows(3, seed=1), strict=True):
        assert (found == row["mask"]).all()
    (_, first), *_ = data.train.batches(6)
    assert first[0].name == "train/images/0.png" and data.train.dataset.column_names == ["image", "mask"]
    with pytest.raises(UndecodableImage):
        read_mask(first[1].values["mask"], 10_000)

    dataset = open_dataset(str(tmp_path))
    assert find_image_column(dataset) == "image" and dataset["camera"][:] == list(range(6))
