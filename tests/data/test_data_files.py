"""`data_dir` and `data_files` name files alike in a local folder and on the Hub."""

import io
import os
import sys

import datasets
import pytest
from PIL import Image

from poa_hf.data import open_dataset

from .streams import numbered


def labels(name, **options):
    return [row["label"] for row in open_dataset(str(name), **options)]


@pytest.fixture
def tables(tmp_path):
    for place, numbers in {"a/train-0": [1, 2], "a/test-0": [3], "b, c/x": [4], "year=2020/d[1]": [5]}.items():
        path = tmp_path / f"{place}.parquet"
        path.parent.mkdir(exist_ok=True)
        numbered(numbers).to_parquet(path)
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "split", "expected"),
    [
        (["a/*.parquet"], "train", [3, 1, 2]),  # what is named is the split train, whatever the files are called
        (["**/*.parquet"], "train", [3, 1, 2, 4, 5]),
        (["a/train-0.parquet", "b, c/x.parquet"], "train", [1, 2, 4]),
        (["year=2020/d[1].parquet"], "train", [5]),
        (["a"], "train", [3, 1, 2]),
        (["train=a/train*", "test=b, c/*"], "test", [4]),
        (["a/train*", "test=b, c/*"], "train+test", [1, 2, 4]),
    ],
)
def test_files_of_a_folder(tables, patterns, split, expected):
    assert labels(tables, data_files=patterns, split=split) == expected
    absolute = [f"{before}{equals}{tables}{os.sep}{rest}" for before, equals, rest in map(_parts, patterns)]
    assert labels(tables, data_files=absolute, split=split) == expected


def _parts(pattern):
    split, equals, rest = pattern.partition("=")
    return (split, equals, rest) if split in ("train", "test") else ("", "", pattern)


def test_a_folder_of_the_dataset(tables):
    assert labels(tables, data_dir="a") == [1, 2]
    assert labels(tables, data_dir="a", data_files="test-0.parquet") == [3]
    assert labels("parquet", data_dir=str(tables / "a")) == [1, 2]  # as load_dataset takes it
    assert labels("parquet", data_files=str(tables / "a" / "t*.parquet"), split="train") == [3, 1, 2]


def test_images_of_a_folder(tmp_path):
    for place in ("cat/1", "cat/2", "dog/1", "bird/1"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{place}.png")
    dataset = open_dataset(str(tmp_path), data_files=["cat/*.png", "test=dog"])
    assert dataset["label"][:] == [0, 0] and dataset.features["label"].names == ["cat", "dog"]
    assert len(open_dataset(str(tmp_path), data_files=["cat/*.png", "test=dog"], split="test")) == 1
    assert len(open_dataset("imagefolder", data_dir=str(tmp_path))) == 4


def test_mistakes_in_one_sentence(tables):
    with pytest.raises(ValueError, match=r"data_files 'x\*' is no file of"):
        open_dataset(str(tables), data_files=["a", "x*"])
    with pytest.raises(ValueError, match=r"data_dir 'x' is no folder in"):
        open_dataset(str(tables), data_dir="x")
    with pytest.raises(ValueError, match="is a local folder, so it has no dataset_revision: leave"):
        open_dataset(str(tables), revision="v1")
    with pytest.raises(ValueError, match="textures is built in, so it has no data_files: leave"):
        open_dataset("textures", data_files=["x"])
    numbered([1]).save_to_disk(tables / "saved")
    with pytest.raises(ValueError, match="is a saved dataset, so it has no data_files: leave"):
        open_dataset(str(tables / "saved"), data_files=["x"])


@pytest.fixture
def hub_of_datasets(hub, monkeypatch, tmp_path):
    """The Hub of the tests, for `datasets` too, which copies the address when it is imported."""
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.endpoint)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    files = {"data/train-0.parquet": range(10), "data/test-0.parquet": range(10, 14), "more/a.parquet": range(20, 25)}
    hub.add_repo("me/images", {name: _table(numbers) for name, numbers in files.items()}, type="dataset", private=True)
    return hub


def _table(numbers):
    file = io.BytesIO()
    numbered(numbers).to_parquet(file)
    return file.getvalue()


def test_a_private_dataset_of_the_hub(hub_of_datasets, monkeypatch):
    hub = hub_of_datasets
    repo = hub.repos["dataset", "me/images"]
    repo.branches["old"] = repo.branches["main"]
    hub.commit(repo, {"data/train-0.parquet": _table([7])})
    assert labels("me/images") == [7]
    assert labels("me/images", revision="old", split="train[-20%:]+test[:1]") == [8, 9, 10]
    assert labels("me/images", data_files=["more/*.parquet"]) == [20, 21, 22, 23, 24]
    assert labels("me/images", data_dir="more") == [20, 21, 22, 23, 24]
    with pytest.raises(ValueError, match=r"me/images could not be opened \(.*'nope'"):
        open_dataset("me/images", revision="nope")
    with pytest.raises(ValueError, match="check its name, its data_files"):
        open_dataset("me/images", data_files=["nope/*"])


def test_a_token_of_the_command_line_opens_it_and_is_written_nowhere(hub_of_datasets, monkeypatch, poa, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    run = tmp_path / "run"
    words = [
        *f"--output_dir {run} --dataset_name me/images --dataset_split train[:80%] --max_steps 1".split(),
        *"--per_device_train_batch_size 2 --dataloader_num_workers 0 --global_crop_size 16 --local_crop_size 8".split(),
        *"--num_local_crops 1 --model.backbone_config.image_size 16 --model.backbone_config.patch_size 8".split(),
        *"--model.backbone_config.hidden_size 16 --model.backbone_config.num_hidden_layers 1".split(),
        *"--model.backbone_config.num_attention_heads 2 --model.backbone_config.min_hidden_size 8".split(),
        *"--model.backbone_config.min_num_hidden_layers 1 --model.num_prototypes 8".split(),
        *"--model.head_hidden_size 8 --model.head_bottleneck_size 4".split(),
    ]
    assert "could not be opened" in poa("pretrain", *words, status=2)
    monkeypatch.setattr(sys, "argv", ["poa", "pretrain", *words, "--token", "hf_me"])
    poa("pretrain", *words, "--token", "hf_me")
    assert os.environ["HF_TOKEN"] == "hf_me" and "hf_me" not in sys.argv  # trackers record them
    assert "train[:80%]" in (run / "config.yaml").read_text()
    for path in run.rglob("*"):
        assert not path.is_file() or b"hf_me" not in path.read_bytes(), path
