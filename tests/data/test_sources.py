"""Datasets are opened by name without the network where they are local, and mistakes end in one sentence."""

import io
import shutil
import socket
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image

from poa_hf.data import find_image_column, open_dataset
from poa_hf.data.rows import StreamedImages
from poa_hf.evaluation.splits import open_splits


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "cache")


def picture(number=0):
    return Image.fromarray(np.full((8, 10, 3), number, dtype=np.uint8))


def encoded(kind, number=0) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, kind)
    return file.getvalue()


def archive(path, *members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def stored(count=6):
    rows = {"image": [{"bytes": encoded("PNG"), "path": None}] * count, "label": list(range(count))}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture
def parquet(tmp_path):
    stored().to_parquet(tmp_path / "train-00000-of-00001.parquet")
    stored(2).to_parquet(tmp_path / "test-00000-of-00001.parquet")
    return tmp_path


@pytest.mark.parametrize("streaming", [True, False])
def test_parquet_folder(parquet, streaming):
    dataset = open_dataset(str(parquet), streaming=streaming)
    assert isinstance(dataset, datasets.IterableDataset) is streaming
    assert len(list(dataset)) == 6
    assert find_image_column(dataset) == "image"
    assert len(list(open_dataset(parquet, split="test", streaming=streaming))) == 2
    with pytest.raises(ValueError, match=r"no split 'validation': choose one of train, test\.") as caught:
        open_dataset(str(parquet), split="validation", streaming=streaming)
    assert "\n" not in str(caught.value)


def test_webdataset_folder(tmp_path):
    archive(tmp_path / "train-000.tar", *((f"{i:05d}.jpg", encoded("JPEG", i)) for i in range(3)))
    dataset = open_dataset(str(tmp_path))
    assert find_image_column(dataset) == "jpg"
    assert len(list(dataset)) == 3


@pytest.mark.parametrize("nested", [True, False])
def test_image_folder_is_map_style_even_when_streaming(tmp_path, nested):
    root = tmp_path / "train" if nested else tmp_path
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for i in range(3):
            picture(i).save(root / label / f"{i}.png")
    dataset = open_dataset(str(tmp_path))
    assert len(dataset) == 6
    assert find_image_column(dataset) == "image"
    assert dataset.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"] is None
    with pytest.raises(ValueError, match=r"no split 'test': choose one of train\."):
        open_dataset(str(tmp_path), split="test")


def test_saved_datasets(tmp_path):
    stored().save_to_disk(tmp_path / "one")
    assert len(open_dataset(str(tmp_path / "one"))) == 6
    datasets.DatasetDict(train=stored(), test=stored(2)).save_to_disk(tmp_path / "two")
    assert len(open_dataset(str(tmp_path / "two"), split="test")) == 2
    with pytest.raises(ValueError, match="no split 'other': choose one of train, test"):
        open_dataset(str(tmp_path / "two"), split="other")


def test_textures():
    textures = pytest.importorskip("poa_hf.data.textures")
    dataset = open_dataset("textures")
    assert isinstance(dataset, textures.TextureDataset)
    assert find_image_column(dataset) == "image"


@pytest.mark.parametrize("streaming", [True, False])
def test_mistakes_in_one_sentence(tmp_path, parquet, streaming):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.md").write_text("nothing")
    cases = {
        str(tmp_path / "missing"): "does not exist",
        "./missing": "does not exist",
        str(tmp_path / "empty"): "holds no images, parquet files or tar archives",
        str(tmp_path / "other"): "holds no images, parquet files or tar archives",
        str(parquet / "train-00000-of-00001.parquet"): "is a file",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            open_dataset(name, streaming=streaming)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("streaming", [True, False])
def test_unknown_name_on_the_hub(monkeypatch, streaming):
    def load_dataset(*args, **kwargs):
        raise datasets.exceptions.DatasetNotFoundError("Dataset doesn't exist on the Hub\nor cannot be accessed.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"me/none could not be opened \(.*on the Hub or cannot be accessed\): check"):
        open_dataset("me/none", streaming=streaming)


def test_image_column_by_type_name_or_request():
    one = stored()
    assert find_image_column(one) == find_image_column(one, "image") == "image"
    assert find_image_column(one.rename_column("image", "x_ray")) == "x_ray"
    assert find_image_column(one, "label") == "label"  # the user's word is taken
    with pytest.raises(ValueError, match=r"no column 'imgae' for --image_column: did you mean image\?"):
        find_image_column(one, "imgae")
    two = one.add_column("second", [None] * 6, feature=datasets.Image())
    with pytest.raises(ValueError, match=r"several image columns \(image, second; all columns: image, label, second\)"):
        find_image_column(two)
    with pytest.raises(ValueError, match=r"no image column \(its columns: label\): pass --image_column"):
        find_image_column(one.remove_columns("image"))


def test_image_column_without_features():
    rows = datasets.IterableDataset.from_generator(lambda: iter([{"jpg": b"", "cls": 1}]))
    assert find_image_column(rows) == "jpg"
    assert find_image_column([{"img": 1, "cls": 1}]) == "img"
    assert find_image_column([picture()]) is None
    assert find_image_column([(picture(), 1)]) is None
    with pytest.raises(ValueError, match="several image columns"):
        find_image_column([{"png": 1, "jpg": 1}])
    with pytest.raises(ValueError, match="no columns, so not 'image'"):
        find_image_column([picture()], "image")
    with pytest.raises(ValueError, match="empty"):
        find_image_column([])
    with pytest.raises(ValueError, match="int is not a dataset"):
        find_image_column(3)


def test_textures_have_a_train_and_a_test_split():
    train, test = open_dataset("textures"), open_dataset("textures", split="test")
    assert test[0]["image"].tobytes() != train[0]["image"].tobytes()
    _, [measured] = next(open_splits("textures").test.batches(1))  # poa evaluate tests on the same images
    assert (measured.image.tobytes(), measured.label) == (test[0]["image"].tobytes(), test[0]["label"])
    with pytest.raises(ValueError, match=r"textures has no split 'trian': choose one of train, test\."):
        open_dataset("textures", split="trian")


def test_a_folder_called_textures_is_read_by_its_path(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "textures").mkdir()
    picture(7).save(tmp_path / "textures" / "1.png")
    assert len(open_dataset("./textures")) == 1 and not caplog.records
    assert len(open_dataset("textures")) > 1
    assert "textures are the built-in images: write ./textures to read the folder" in caplog.text


def test_options_without_a_meaning_are_refused(tmp_path):
    stored().save_to_disk(tmp_path / "saved")
    for name, what in ((str(tmp_path / "saved"), "is a saved dataset"), ("textures", "is built in")):
        with pytest.raises(ValueError, match=f"{what}, so it has no dataset_config_name: leave"):
            open_dataset(name, "large")
    for name in ("", " "):
        with pytest.raises(ValueError, match="The name of the dataset is empty: give a folder"):
            open_dataset(name)


@pytest.mark.parametrize("content", ["{}", "[1]", "{", '{"x": 1}'])
@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_images_beside_a_file_called_as_in_saved_datasets(tmp_path, name, content):
    picture().save(tmp_path / "1.png")
    (tmp_path / name).write_text(content)
    assert len(open_dataset(str(tmp_path))) == 1


@pytest.mark.parametrize("lost", ["data-00000-of-00001.arrow", "dataset_info.json"])
def test_a_saved_dataset_that_lacks_a_file(tmp_path, lost):
    stored().save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / lost).unlink()
    with pytest.raises(
        ValueError, match=r"saved dataset .*saved could not be opened \(.*\): write it again by save_to"
    ):
        open_dataset(str(tmp_path / "saved"))


JPEG, PNG = encoded("JPEG"), encoded("PNG")


@pytest.mark.parametrize(
    "members, message",
    [
        ([], "holds no file with a suffix"),
        ([("0", JPEG)], "holds no file with a suffix"),
        ([("0.jpg", JPEG), ("1.png", PNG)], "begins with samples of several kinds of files"),
        ([("0.jpg", JPEG), ("0.cls", b"cat")], "has a .cls that is no whole number"),
        ([("0.jpg", JPEG), ("0.jpg", JPEG)], "has one name twice"),
        (
            [("0.jpg", JPEG), ("0.json", b'{"a": 1}'), ("1.jpg", JPEG), ("1.json", b'{"a": "x"}')],
            "has a field of several types",
        ),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
def test_archives_that_are_no_webdataset_are_named(tmp_path, members, message, streaming):
    archive(tmp_path / "train-0.tar", *members)
    with pytest.raises(ValueError, match=rf"The file .*train-0\.tar {message} \(.*\): ") as caught:
        open_dataset(str(tmp_path), streaming=streaming)
    assert "check its name" not in str(caught.value)


def test_what_is_no_webdataset_is_named_wherever_it_is(tmp_path):
    samples = [(f"{row}.{suffix}", content) for row in range(7) for suffix, content in (("jpg", JPEG), ("cls", b"1"))]
    archive(tmp_path / "train-0.tar", *samples, ("7.jpg", JPEG), ("7.cls", b"cat"))
    with pytest.raises(ValueError, match=r"The file .*train-0\.tar has a .cls that is no whole number .*: call such"):
        len(open_splits(str(tmp_path), train_split=None, test_split="train", label_column="cls").test)


@pytest.mark.parametrize("streaming", [True, False])
def test_tables_that_cannot_be_opened_are_named(tmp_path, streaming):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"The file .*a\.jsonl holds no rows"):
        open_dataset(str(tmp_path), streaming=streaming)
    archive(tmp_path / "a::b" / "train-0.tar", ("0.jpg", JPEG))
    with pytest.raises(ValueError, match=r"a::b/train-0.tar has '::' in it, which .*: rename it"):
        open_dataset(str(tmp_path / "a::b"), streaming=streaming)


def test_a_first_arrow_file_that_is_damaged(tmp_path):
    for number in range(2):
        stored(2).save_to_disk(tmp_path / "saved")
        (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(tmp_path / f"train-{number}.arrow")
    (tmp_path / "train-0.arrow").write_bytes((tmp_path / "train-0.arrow").read_bytes()[:300])
    shutil.rmtree(tmp_path / "saved")
    images = StreamedImages(open_dataset(str(tmp_path)))
    assert len(list(images.rows(images.open_shard(1)))) == 2
    with pytest.raises(ValueError, match=r"train-0.arrow is damaged after 0 rows"):
        list(images.rows(images.open_shard(0)))


def test_configurations_behind_a_byte_order_mark_are_read(parquet):
    card = "\ufeff---\nconfigs:\n- config_name: small\n  data_files: test-*.parquet\n---\n"
    (parquet / "README.md").write_text(card, encoding="utf-8")
    assert len(list(open_dataset(str(parquet)))) == 2
