"""Several datasets with weights, from the command line to the model card."""

import json
import shutil

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from poa_hf.cli.recipe import parse_recipe
from poa_hf.data import DatasetMixture
from poa_hf.evaluation.data.sources import Source, training_source
from poa_hf.publishing.card.facts import CardFacts
from poa_hf.publishing.card.values import dataset_name
from poa_hf.runs.facts import RunFacts
from poa_hf.runs.layout import RunFolder

from ..data.streams import numbered

TINY = (
    "--per_device_train_batch_size 4 --dataloader_num_workers 0 --global_crop_size 16 --local_crop_size 8 "
    "--num_local_crops 1 --save_steps 2 --save_total_limit 10 --log_image_ids --quiet "
    "--model.backbone_config.image_size 16 --model.backbone_config.patch_size 8 --model.backbone_config.hidden_size 16 "
    "--model.backbone_config.num_hidden_layers 1 --model.backbone_config.num_attention_heads 2 "
    "--model.backbone_config.min_hidden_size 8 --model.backbone_config.min_num_hidden_layers 1 "
    "--model.num_prototypes 8 --model.head_hidden_size 8 --model.head_bottleneck_size 4"
).split()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of images and one of tables, the second of which can only be streamed."""
    root = tmp_path_factory.mktemp("datasets")
    (root / "my photos").mkdir()
    for number in range(6):
        Image.new("RGB", (16, 16), (number,) * 3).save(root / "my photos" / f"{number}.png")
    (root / "tables").mkdir()
    numbered(range(12)).to_parquet(root / "tables" / "train-0.parquet")
    return root


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a:0.7", "b:0.3"], [("a", 0.7), ("b", 0.3)]),
        (["a:0.7,b:0.3"], [("a", 0.7), ("b", 0.3)]),
        (["a", "me/b"], [("a", 1.0), ("me/b", 1.0)]),
        ([r"C:\my photos:2", "D:/b, c:1e0"], [(r"C:\my photos", 2.0), ("D:/b, c", 1.0)]),
        (["C:/a", "C:/b"], [("C:/a", 1.0), ("C:/b", 1.0)]),
        (["my photos:0.7 me/b:3e-1,c:2"], [("my photos", 0.7), ("me/b", 0.3), ("c", 2.0)]),
        (["a:1, b 2, c:3 "], [("a", 1.0), ("b 2, c", 3.0)]),
    ],
)
def test_names_and_weights_on_the_command_line(words, expected, tmp_path):
    recipe = parse_recipe(["--datasets", *words])
    assert [(each["dataset_name"], each["weight"]) for each in recipe.data.datasets] == expected
    saved = tmp_path / "saved.yaml"
    saved.write_text(recipe.to_yaml())
    assert parse_recipe(["--config", str(saved)]).data == recipe.data


def test_a_recipe_may_have_them_in_one_line(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("datasets: photos:0.7 other:0.3\n")
    assert parse_recipe(["--config", str(path)]).data == parse_recipe(["--datasets", "photos:0.7", "other:0.3"]).data


RECIPE = """
datasets:
  - dataset_name: {root}/my photos
    dataset_split: "train[:50%]"
    weight: 3
  - dataset_name: parquet
    data_files: ["{root}/tables/*.parquet"]
    image_column: image
    weight: 1
"""


def test_a_recipe_lists_datasets_with_their_options(folders, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(root=folders))
    mixture = parse_recipe(["--config", str(path)]).data.open_dataset()
    assert isinstance(mixture, DatasetMixture) and mixture.shares == [0.75, 0.25]
    assert mixture.names == ["my photos", "parquet"] and len(mixture.datasets[0]) == 3
    assert isinstance(mixture.datasets[1], datasets.IterableDataset)
    # what is given on the command line takes the place of the file's, whichever of the two ways the file has
    one = parse_recipe(["--config", str(path), "--dataset_name", "textures"]).data
    assert (one.dataset_name, one.datasets) == ("textures", None)
    path.write_text("dataset_name: me/images\ndataset_config_name: small\n")
    assert len(parse_recipe(["--config", str(path), "--datasets", "a", "b"]).data.datasets) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("datasets: [a]", "datasets names one dataset only"),
        ("datasets: [a, null]", "datasets names a dataset None: give NAME:WEIGHT"),
        ("datasets: [a, [b, c]]", r"datasets names a dataset \['b', 'c'\]: give NAME:WEIGHT"),
        ("datasets: [a, {dataset_name: b, weight: 0}]", "weight of b in datasets is 0: give a number above 0"),
        ("datasets: [a, 'b:1']", "gives no weight for a, but for others"),
        ("datasets: [a, {dataset_nam: b}]", "dataset_nam is not a known key.*did you mean dataset_name"),
        ("datasets: [a, {weight: 1}]", "has no dataset_name"),
        ("datasets: [a, b]\ndataset_revision: main", "dataset_revision is given beside datasets"),
        ("datasets: [a, b]\ndataset_name: c", "dataset_name is given beside datasets"),
        ("datasets: [a, {dataset_name: b, streaming: 3}]", "streaming of b is 3: give true or false"),
    ],
)
def test_mistakes_in_one_sentence(content, message, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_recipe(["--config", str(path)])


def test_evaluating_while_training_needs_labels_of_one_dataset(poa, tmp_path):
    message = poa(
        "pretrain", "--datasets", "textures:2", "textures:1", "--eval_steps", 5, *TINY, "--output_dir", tmp_path,
        "--max_steps", 10, status=2,
    )  # fmt: skip
    assert "Give --eval_dataset_name" in message


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    """A run of 4 steps."""
    from poa_hf.cli.main import main

    folder = tmp_path_factory.mktemp("runs") / "whole"
    named = ["--datasets", f"{folders / 'my photos'}:0.7", f"{folders / 'tables'}:0.3"]
    assert main(["pretrain", *named, *TINY, "--max_steps", "4", "--output_dir", str(folder)]) == 0
    return folder


def ids(folder):
    return [json.loads(line)["image_ids"] for line in RunFolder(folder).image_ids(0).read_text().splitlines()]


def test_a_resumed_run_is_bit_equal(run, tmp_path, poa):
    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped)
    poa("resume", stopped / "checkpoint-2")
    assert ids(stopped) == ids(run)
    (expected, found) = (load_file(folder / "model.safetensors") for folder in (run, stopped))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert {name.partition("/")[0] for batch in ids(run) for name in batch} == {"my photos", "tables"}


def test_every_file_of_a_run_has_a_name_that_windows_takes(run):
    for path in run.rglob("*"):
        assert not set(path.name) & set('<>:"\\|?*') and path.name[-1] not in ". "
        assert path.stem.upper() not in ("CON", "PRN", "AUX", "NUL")


def test_what_it_was_trained_on_is_recorded(run, folders):
    facts = RunFacts.read(run)
    assert facts.dataset == "my photos (70 %) and tables (30 %)" and facts.dataset_id is None
    assert dataset_name(CardFacts.read(facts.config, run)) == facts.dataset
    source = training_source(RunFolder(run))
    assert source.overlaps(Source(str(folders / "tables"), None, "train[:5]"))
    assert not source.overlaps(Source(str(folders / "tables"), None, "test"))
