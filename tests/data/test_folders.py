"""A folder is what it looks like: all images, splits and classes by the folders on top, shards before pictures."""

import io
import json
import logging
import os
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from poa_hf.data import CropArguments, PretrainingLoader
from poa_hf.data.listing import image_suffixes, kinds_of, list_folder
from poa_hf.data.sources import MissingSplit, open_dataset
from poa_hf.evaluation.splits import open_splits


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 10, 3), value, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def put(folder: Path, *names: str) -> Path:
    """Write an image of another colour for each name; other files than images get text."""
    for value, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if ".tar" in path.suffixes:
            with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
                info = tarfile.TarInfo("0.png")
                info.size = len(png(value))
                archive.addfile(info, io.BytesIO(png(value)))
        elif path.suffix == ".parquet":
            rows = {"image": [{"bytes": png(value), "path": None}]}
            features = datasets.Features(image=datasets.Image())
            datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
        else:
            path.write_bytes(png(value) if path.suffix.lower() in image_suffixes() else b"text")
    return folder


def paths(folder: Path, split: str = "train") -> list[str]:
    dataset = open_dataset(str(folder), split=split).cast_column("image", datasets.Image(decode=False))
    return [row["image"]["path"].removeprefix(f"{folder}/") for row in dataset]


def labels(folder: Path, split: str = "train") -> dict[str, str | None]:
    dataset = open_dataset(str(folder), split=split)
    name = dataset.features["label"].int2str
    values = [None if value is None else name(value) for value in dataset["label"]]
    return dict(zip(paths(folder, split), values, strict=True))


@pytest.mark.parametrize(
    "names",
    [
        ["a.png", "a train.png", "lab-test.png", "val_1.png"],
        ["crane/1.png", "train/1.png", "bus/1.png"],
        ["train/1.png", "test/1.png", "1.png"],
        ["site/1.png", "dev/1.png"],
        ["a/train/1.png", "a/test/1.png"],
        ["a.JPG", "b.JfIf", "c.jp2", "d.tga", "e.TIFF", "f.avif", "g.webp", "h.qoi", "i.pgm"],
        ["é [1] (2)* #%20?.png", "a{b}/c::d!.png", " /x.png", "~/y.png"],
        ["deep/1/2/3/4/5/6.png", "deep.png/7.png"],
    ],
)
def test_all_images_are_read_whatever_their_names(tmp_path, names):
    assert sorted(paths(put(tmp_path, *names))) == sorted(names)
    assert open_dataset(str(tmp_path))[0]["image"].size == (10, 8)


def test_folders_on_top_that_are_all_splits_are_splits(tmp_path):
    put(tmp_path, "Train/cat/1.png", "Train/dog/2.png", "val/cat/3.png", "test/dog/4.png", "docs/readme.txt")
    assert labels(tmp_path) == {"Train/cat/1.png": "cat", "Train/dog/2.png": "dog"}
    assert labels(tmp_path, "validation") == {"val/cat/3.png": "cat"}
    assert labels(tmp_path, "test") == {"test/dog/4.png": "dog"}
    # numbered alike in all splits
    assert {
        tuple(open_dataset(str(tmp_path), split=s).features["label"].names) for s in ("train", "validation", "test")
    } == {("cat", "dog")}
    with pytest.raises(MissingSplit, match=r"no split 'other': choose one of train, validation, test\."):
        open_dataset(str(tmp_path), split="other")


def test_slices_of_splits(tmp_path):
    put(tmp_path, *(f"train/{i}.png" for i in range(5)), "test/5.png")
    assert paths(tmp_path, "train[:80%]") == [f"train/{i}.png" for i in range(4)]
    assert paths(tmp_path, "train[4:]+test") == ["train/4.png", "test/5.png"]
    assert open_dataset(str(tmp_path), split="train[:80%]").info.splits["train"].num_examples == 5


def test_the_class_is_the_folder_on_top(tmp_path):
    put(tmp_path, "tench/1.png", "tench/more/2.png", "carp/a/b/3.png", "4.png")
    expected = {"4.png": None, "carp/a/b/3.png": "carp", "tench/1.png": "tench", "tench/more/2.png": "tench"}
    assert labels(tmp_path) == expected
    assert open_dataset(str(put(tmp_path / "flat", "1.png", "2.png"))).column_names == ["image"]


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["data/a.parquet", "banner.png"], 1),
        (["z/a.parquet", "assets/logo.png", "README.md", "model.pth"], 1),
        (["0.tar", "1.tar", "preview.png", "model.pth"], 2),
        (["0.tar.gz", "1.tar.gz"], 2),
        (["train/0.tar", "train/1.tar", "test/0.tar"], 2),
        (["data/train-0.parquet", "data/test-0.parquet"], 1),
        (["a-1.parquet", "a-2.parquet", "a-test.parquet"], 3),
        (["[x] *#é/a?.parquet", "notes.txt"], 1),
        (["stray.tar", *(f"{i}.png" for i in range(30)), *(f"{i}.json" for i in range(30))], 30),
    ],
)
def test_shards_win_over_a_few_pictures(tmp_path, names, rows):
    assert len(list(open_dataset(str(put(tmp_path, *names))))) == rows


@pytest.mark.parametrize("names", [["train-0.parquet", "test-0.parquet"], ["train/0.png", "test/0.png"]])
def test_a_split_has_one_name(tmp_path, names):
    """Else train and training would be the same images under two names, for training and for testing."""
    put(tmp_path, *names)
    for alias in ("training", "eval"):
        with pytest.raises(MissingSplit, match=rf"no split '{alias}': choose one of train, test\."):
            open_dataset(str(tmp_path), split=alias)
    with pytest.raises(MissingSplit, match=r"no split 'dev': choose one of train, test\."):
        open_dataset(str(tmp_path), split="dev")


def test_files_left_out_are_counted_by_kind(tmp_path, caplog):
    put(tmp_path, "a.png", "b.txt", "c/d.TXT", "e.mp4", ".hidden", "._a.png", "__MACOSX/a.png", "Thumbs.db")
    assert paths(tmp_path) == ["a.png"]
    assert caplog.messages == [f"Folder {tmp_path}: 1 images are read, 3 files are left out: 2 .txt, 1 .mp4."]
    assert kinds_of(["x", "y.a"]) == "1 .a, 1 without a suffix"


def test_links_are_followed_once(tmp_path, caplog):
    put(tmp_path / "elsewhere", "1.png", "2.png")
    root = put(tmp_path / "root", "a/3.png")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "c.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (root / "a" / "loop").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "lost.png").symlink_to(root / "nothing.png")
    os.mkfifo(root / "pipe.png")
    assert paths(root) == ["a/3.png", "b/1.png", "b/2.png", "c.png"]
    assert "2 links lead nowhere and are left out (first: lost.png)" in caplog.text
    (tmp_path / "link").symlink_to(root)
    assert len(open_dataset(str(tmp_path / "link"))) == 4


def test_folders_that_cannot_be_listed_are_named(tmp_path, monkeypatch, caplog):
    put(tmp_path, "a/1.png", "b/2.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list_folder(tmp_path).unreadable == {"b": "Permission denied"}
    assert len(open_dataset(str(tmp_path))) == 1
    assert "b cannot be read (Permission denied)" in caplog.text
    monkeypatch.setattr(os, "scandir", lambda path: refuse("/b"))
    with pytest.raises(ValueError, match=r"cannot be read \(Permission denied\): check its rights\."):
        open_dataset(str(tmp_path))


def test_names_that_are_no_utf8(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(name, "wb") as file:
            file.write(png(7))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    put(tmp_path, "b.png")
    dataset = open_dataset(str(tmp_path))
    assert [np.asarray(row["image"])[0, 0, 0] for row in dataset] == [0, 7]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_beside_images(tmp_path, suffix, caplog):
    put(tmp_path, "a.png", "train/b.png", "c.png", "d.txt")
    table = {"file_name": ["train/b.png", "./a.png", "gone.png"], "label": ["x", "y", "z"], "age": [1, 2, 3]}
    table = datasets.Dataset.from_dict(table)
    {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[suffix](tmp_path / f"metadata.{suffix}")
    dataset = open_dataset(str(tmp_path))
    assert paths(tmp_path) == ["a.png", "c.png", "train/b.png"]
    assert (dataset["label"][:], dataset["age"][:]) == (["y", None, "x"], [2, None, 1])
    assert "1 images are not in metadata" in caplog.text and "(first: gone.png)" in caplog.text


def test_metadata_of_splits(tmp_path):
    put(tmp_path, "train/1.png", "test/2.png")
    for split, name in (("train", "1.png"), ("test", "2.png")):
        (tmp_path / split / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": split}))
    assert open_dataset(str(tmp_path), split="test")["text"][:] == ["test"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("a,b\n1,2", "has no column 'file_name'"), ("", "cannot be read"), ("file_name,image\na.png,1", "'image'")],
)
def test_broken_metadata_is_named(tmp_path, content, message):
    put(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(ValueError, match=rf"metadata\.csv .*{message}") as caught:
        open_dataset(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "metadata.csv",
            "file_name,file_name\n0.png,0.png\n",
            "has 'file_name' as the name of several columns",
        ),
        ("metadata.csv", "file_name,label,label\n0.png,1,2\n", "has 'label' as the name of several columns: rename"),
        ("metadata.csv", "file_name,label\n0.png,a\n0.png,b\n", "names 0.png a second time, with other values: leave"),
        ("metadata.csv", "file_name,label\n0.png,a\n1.png,caf\xe9\n", r"is not in UTF-8 \(line 3\): save it"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": "caf\xe9"}\n', r"is not in UTF-8 \(line 1\): save it"),
        (
            "metadata.csv",
            "file_name,mask_file_name\ngone.png,0.png\n",
            "holds only files that its metadata names",
        ),
    ],
)
def test_metadata_that_means_nothing_clear_is_refused(tmp_path, name, content, message):
    put(tmp_path, "0.png")
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        open_dataset(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_row_of_metadata_may_be_repeated(tmp_path):
    put(tmp_path, "0.png", "1.png")
    (tmp_path / "metadata.csv").write_bytes("\ufefffile_name,size\n0.png,nan\n1.png,2.5\n0.png,nan\n".encode())
    assert open_dataset(str(tmp_path))["size"][1] == 2.5


def test_archives_are_to_be_unpacked(tmp_path):
    put(tmp_path, "photos.zip")
    with pytest.raises(ValueError, match=r"holds no images.* \(1 \.zip\): unpack its archives\."):
        open_dataset(str(tmp_path))
    with pytest.raises(ValueError, match=r"photos\.zip is an archive: unpack it"):
        open_dataset(str(tmp_path / "photos.zip"))


def test_nothing_is_cached(tmp_path, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise AssertionError("a copy is made")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    caplog.set_level(logging.WARNING)
    assert len(open_dataset(str(put(tmp_path, "a.png")))) == 1 and not caplog.messages


def test_bad_files_are_named_by_their_paths(tmp_path, caplog):
    put(tmp_path, *(f"a/{i}.png" for i in range(6)))
    (tmp_path / "a" / "empty.png").write_bytes(b"")
    (tmp_path / "a" / "text.jpg").write_text("not an image")
    (tmp_path / "a" / "cut.png").write_bytes(png(3)[:-30])
    args = CropArguments(global_crop_size=8, local_crop_size=4, num_local_crops=0)
    batches = PretrainingLoader(open_dataset(str(tmp_path)), args, 3, (2, 2))
    seen = {name for _, batch in zip(range(9), batches, strict=False) for name in batch["image_ids"]}
    assert seen == {f"a/{i}.png" for i in range(6)}
    reasons = {message.split()[1]: message.split(": ", 1)[1] for message in caplog.messages}
    assert reasons["a/empty.png"] == "it is empty (0 bytes)."
    assert reasons["a/text.jpg"] == "its bytes are text, in no known image format."
    assert len(reasons) == len(set(reasons.values())) == len(caplog.messages) == 3


def test_evaluation_says_what_lies_outside_of_class_folders(tmp_path):
    put(tmp_path / "flat", "1.png", "2.png")
    with pytest.raises(ValueError, match=r"2 images lie directly in .*/flat, outside of any class folder \(first: 1\."):
        open_splits(str(tmp_path / "flat"), holdout=0.5)
    put(tmp_path / "mixed", "cat/1.png", "dog/2.png", "3.png")
    with pytest.raises(ValueError, match=r"1 image lies directly in .*/mixed, .*first: 3\.png.*\(cat, dog, "):
        open_splits(str(tmp_path / "mixed"), holdout=0.5)
    put(tmp_path / "splits", "train/tench/1.png", "train/tench/more/2.png", "test/carp/3.png", "test/tench/4.png")
    data = open_splits(str(tmp_path / "splits"))
    assert data.train.class_names == data.test.class_names == ["carp", "tench"]
    assert (data.train.labels(), data.test.labels()) == ([[1, 1]], [[0, 1]])
