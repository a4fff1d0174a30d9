"""An evaluation without a dataset: the labelled images that the recipe of a run names."""

import numpy as np
import pytest
import torch
from PIL import Image

from poa_hf.cli.evaluate import evaluate
from poa_hf.cli.main import run
from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.data.own_data import OwnData, open_own_splits
from poa_hf.models.modeling_poa_pretraining import PoaForPreTraining
from poa_hf.runs.evaluations import load_evaluations

from ...conftest import tiny_config
from ..image_folders import parquet_folder, table

WAY = ["--num_workers", "0", "--sizes", "small", "--tasks", "knn", "--k", "5"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved model without a recipe."""
    folder = tmp_path_factory.mktemp("own") / "run"
    torch.manual_seed(0)
    PoaForPreTraining(tiny_config()).save_pretrained(folder)
    evaluation_processor(32, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).save_pretrained(folder)
    return folder


@pytest.fixture
def trained_on(model):
    """A function that writes the run's recipe, and returns the run."""

    def write(**recipe):
        (model / "config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in recipe.items()))
        (model / "evaluations.json").unlink(missing_ok=True)
        return model

    yield write
    (model / "config.yaml").unlink(missing_ok=True)


def photos(folder, splits, labelled=("train", "test", "validation")):
    """A folder of 10 photographs per split, in folders of two classes where the split is labelled."""
    for split in splits:
        for index in range(10):
            below = folder / split / ("cat", "dog")[index % 2] if split in labelled else folder / split
            below.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(index).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(below / f"{index}.png")
    return folder


def splits_of(record):
    return record.dataset, record.train_split, record.train_images, record.test_split, record.test_images


def test_the_test_split_of_the_images_that_the_run_is_trained_on(trained_on, tmp_path, capsys, caplog):
    folder = parquet_folder(tmp_path / "images", table(40), table(20, seed=6))
    path = trained_on(dataset_name=folder, dataset_split="train", eval_train_split="train")
    assert run(evaluate, [str(path), *WAY]) == 0, capsys.readouterr().err
    [record] = load_evaluations(path)
    assert splits_of(record) == ("images", "train", 40, "test", 20)
    assert record.holdout is None and not record.pretrained_on_test
    assert "the run's own images, images; the split test is classified by the split train." in caplog.text
    # the same numbers as with the dataset's name
    output = tmp_path / "named.json"
    assert run(evaluate, [str(path), "--dataset_name", str(folder), "--output", str(output), *WAY]) == 0
    assert load_evaluations(output) == [record]


@pytest.mark.parametrize("splits", [("train",), ("train", "test")], ids=["no test split", "test split without labels"])
def test_a_fifth_is_held_out_where_no_test_split_is_labelled(splits, trained_on, tmp_path, capsys, caplog):
    path = trained_on(dataset_name=photos(tmp_path / "photos", splits, labelled=("train",)))
    assert run(evaluate, [str(path), *WAY]) == 0, capsys.readouterr().err
    [record] = load_evaluations(path)
    assert splits_of(record) == ("photos", "train", 8, "train", 2) and record.holdout == 0.2
    assert record.pretrained_on_test
    assert "it has no labelled test split, so 20 % of the split train, held out at random, is classified" in caplog.text


def test_what_the_recipe_says_of_its_evaluation_and_what_the_command_says(trained_on, tmp_path):
    mine = photos(tmp_path / "mine", ("train", "test", "validation"))
    theirs = photos(tmp_path / "theirs", ("train", "validation"))
    own = OwnData.of(trained_on(dataset_name=mine, eval_dataset_name=theirs))
    data, _ = open_own_splits(own)
    assert (data.name, data.train.name, data.test.name) == ("theirs", "train", "validation")
    own = OwnData.of(trained_on(dataset_name=mine, dataset_split="'train[:50%]'", eval_test_split="validation"))
    tested = [open_own_splits(own)[0].test.name, open_own_splits(own, test_split="test")[0].test.name]
    assert tested == ["validation", "test"]
    data, _ = open_own_splits(OwnData.of(trained_on(dataset_name=mine, dataset_split="test")))
    assert (data.train.name, data.test.name) == ("test", "validation")
    own = OwnData.of(trained_on(dataset_name=mine, eval_holdout=0.4))
    data, sentence = open_own_splits(own)
    assert (len(data.train), len(data.test)) == (6, 4) and "40 % of the split train" in sentence
    data, _ = open_own_splits(own, holdout=0.2)
    assert (len(data.train), len(data.test)) == (8, 2)
    data, _ = open_own_splits(OwnData.of(trained_on(dataset_name=mine)), needs_train=False)
    assert data.train is None and data.test.name == "test"


def refusal(capsys, argv):
    assert run(evaluate, [*map(str, argv), *WAY]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


def test_without_own_images(model, trained_on, tmp_path, capsys):
    plain = "poa: Give --dataset_name: see poa evaluate --help."
    assert refusal(capsys, [model]) == plain  # no recipe
    absent = tmp_path / "none"
    wrong_path = "is not here, and names no images of its own: correct the path, or give --dataset_name."
    assert refusal(capsys, [absent]) == f"poa: {absent} {wrong_path}"
    assert refusal(capsys, [trained_on(max_steps=3)]) == plain
    (model / "config.yaml").write_text("dataset_name: [")
    assert refusal(capsys, [model]) == plain
    path = trained_on(dataset_name=photos(tmp_path / "bare", ("train",), labelled=()))
    error = refusal(capsys, [path])
    assert error.startswith(
        "poa: Give --dataset_name: the run's own images, bare, cannot be measured on (10 images lie"
    )
    assert "does not exist" in refusal(capsys, [trained_on(dataset_name=tmp_path / "gone")])
    assert not (model / "evaluations.json").exists()


def test_textures(trained_on):
    data, sentence = open_own_splits(OwnData.of(trained_on(dataset_name="textures")), max_train_images=20)
    assert (len(data.train), data.test.name) == (20, "test") and "textures; the split test" in sentence


def test_a_supernet_on_the_hub(trained_on, hub, tmp_path):
    """A folder that a recipe on the Hub names is one of another machine, even where this one has such a folder."""

    def published(name, **recipe):
        path = trained_on(**recipe)
        hub.add_repo(name, {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()})
        return OwnData.of(name)

    assert published("me/first", dataset_name="textures").name == "textures"
    assert published("me/second", dataset_name="some/images", dataset_config_name="large").config_name == "large"
    assert published("me/third", dataset_name=photos(tmp_path / "photos", ("train",))) is None
    assert OwnData.of("me/fourth") is None
