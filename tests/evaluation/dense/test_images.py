import datasets
import numpy as np
import pytest

from poa_hf.evaluation.dense.images import DenseImages
from poa_hf.evaluation.dense.pixel_values import read_mask
from poa_hf.evaluation.splits import EvaluationData, open_splits

from ..images import parquet_folder
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
