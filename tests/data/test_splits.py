"""Expressions of splits give the rows that `datasets` gives for them, whatever the dataset is read from."""

import datasets
import pytest
from PIL import Image

from poa_hf.data import open_dataset
from poa_hf.data.errors import MissingSplit

from .streams import memory_stream, numbered

TRAIN, TEST = list(range(23)), list(range(100, 107))
EXPRESSIONS = [
    "train", "test", "train+test", "test+train", "train[:90%]", "train[33%:67%]", "train[-30%:]", "train[5:9]",
    "train[:-3]", "train[4:]", "train[:10]+test[50%:]", "train[:1000]",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same rows as parquet files, saved, and as image files, whose grey value is the number."""
    root = tmp_path_factory.mktemp("splits")
    (root / "parquet").mkdir()
    for split, numbers in {"train-0": TRAIN[:9], "train-1": TRAIN[9:], "test-0": TEST}.items():
        numbered(numbers).to_parquet(root / "parquet" / f"{split}.parquet", batch_size=4)
    datasets.DatasetDict(train=numbered(TRAIN), test=numbered(TEST)).save_to_disk(root / "saved")
    for split, numbers in {"train": TRAIN, "test": TEST}.items():
        (root / "images" / split).mkdir(parents=True)
        for number in numbers:
            Image.new("RGB", (8, 8), (number,) * 3).save(root / "images" / split / f"{number:03d}.png")
    return root


def expected(split):
    reference = datasets.ReadInstruction.from_spec(split).to_absolute({"train": len(TRAIN), "test": len(TEST)})
    rows = {"train": TRAIN, "test": TEST}
    return [number for part in reference for number in rows[part.splitname][part.from_ : part.to]]


@pytest.mark.parametrize("split", [each for each in EXPRESSIONS if each != "train[:1000]"])
@pytest.mark.parametrize("kind", ["parquet", "saved", "images"])
def test_rows_are_those_of_the_reference(folders, kind, split):
    dataset = open_dataset(str(folders / kind), split=split)
    assert isinstance(dataset, datasets.IterableDataset) == (kind == "parquet")
    assert [row["image"].getpixel((0, 0))[0] for row in dataset] == expected(split)


def test_a_stream_that_is_converted_first_gives_the_same(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    dataset = open_dataset(str(folders / "parquet"), split="train[:90%]+test[2:4]", streaming=False)
    assert dataset["label"][:] == expected("train[:90%]+test[2:4]")


def test_rows_can_be_counted_from_the_start_where_their_number_is_not_known(folders, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: {"train": memory_stream()})
    assert [row["label"] for row in open_dataset("me/unknown", split="train[3:7]")] == [3, 4, 5, 6]
    for split in ("train[:50%]", "train[-5:]"):
        with pytest.raises(ValueError, match=r"needs the number of its rows.*train\[:1000\], or give --streaming"):
            open_dataset("me/unknown", split=split)


@pytest.mark.parametrize("kind", ["parquet", "saved", "images"])
def test_mistakes_in_one_sentence(folders, kind):
    folder = str(folders / kind)
    with pytest.raises(MissingSplit, match=r"has no split 'dev': choose one of train, test\."):
        open_dataset(folder, split="train+dev")
    for wrong in ("train[", "train[::2]", "train[1.5:]", "train[:300%]"):
        with pytest.raises(ValueError, match=r"is not a split of .*: write it as train\[:80%\] or train\+validation"):
            open_dataset(folder, split=wrong)
    with pytest.raises(ValueError, match=r"'train\[90%:10%\]' of .* holds no rows"):
        open_dataset(folder, split="train[90%:10%]")


def test_textures_have_no_slices():
    with pytest.raises(ValueError, match=r"drawn without end, so 'train\[:50%\]' is no split of them"):
        open_dataset("textures", split="train[:50%]")
