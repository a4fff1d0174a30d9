import datasets
import pytest

from poa_hf.data.textures import TextureDataset
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.splits import EvaluationData, encode_labels, open_splits

from .image_folders import parquet_folder, table


def test_labels_of_both_splits_get_the_same_numbers():
    def encode(train_feature, test_feature, train, test):
        splits = [
            LabelledImages(table(1, label=f, labels=v[:1])) for f, v in ((train_feature, train), (test_feature, test))
        ]
        return encode_labels(EvaluationData(splits[1], splits[0]), train, test)

    integer, string = datasets.Value("int64"), datasets.Value("string")
    train, test, classes = encode(integer, integer, [7, 3, 7], [3, 9])
    assert train.tolist() == [1, 0, 1] and test.tolist() == [0, 2] and classes == 3
    train, test, classes = encode(string, string, ["b", "a"], ["a"])
    assert train.tolist() == [1, 0] and test.tolist() == [0] and classes == 2
    orders = datasets.ClassLabel(names=["a", "b"]), datasets.ClassLabel(names=["b", "a"])
    train, test, _ = encode(*orders, [0, 1], [0, 1])
    assert train.tolist() == [0, 1] and test.tolist() == [1, 0]
    with pytest.raises(ValueError, match="numbers and others strings"):
        encode(integer, string, [1], ["1"])
    with pytest.raises(ValueError, match=r"None of the classes of train \(1\) is in .* --holdout 0.2"):
        encode(integer, integer, [1], [2])


def test_the_test_split_is_the_first_with_labels(tmp_path):
    folder = parquet_folder(tmp_path / "images", table(30), table(20, label=datasets.Value("int64"), labels=[-1] * 20))
    with pytest.raises(ValueError, match="no label"):
        open_splits(str(folder))
    table(20, seed=6).to_parquet(str(folder / "validation.parquet"))
    assert open_splits(str(folder)).test.name == "validation"
    with pytest.raises(ValueError, match="no split 'dev'"):
        open_splits(str(folder), test_split="dev")
    (folder / "validation.parquet").unlink()
    (folder / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"neither a test nor a validation split .* --holdout 0.2 .* --test_split"):
        open_splits(str(folder))
    with pytest.raises(ValueError, match="max_test_images is 0"):
        open_splits(str(folder), max_test_images=0)


def test_textures_of_an_evaluation_are_others_than_those_of_training():
    data = open_splits("textures", max_train_images=3, max_test_images=2)
    assert (len(data.train), len(data.test)) == (3, 2) and data.name == "textures"
    images = [next(iter(split.batches(1)))[1][0].image.tobytes() for split in (data.train, data.test)]
    assert len({*images, TextureDataset()[0]["image"].tobytes()}) == 3


@pytest.mark.parametrize("splits", [{"train_split": "trian"}, {"test_split": "tset"}])
def test_a_misspelt_split_of_the_textures_is_an_error(splits):
    with pytest.raises(ValueError, match="textures has no split '(trian|tset)': choose one of train, test"):
        open_splits("textures", **splits)
