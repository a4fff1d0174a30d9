import json

import pytest
import yaml

from poa_hf.runs.publishable import without_local_paths, write_run_files


def write_run(folder, recipe):
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "published").mkdir()
    return folder / "run"


@pytest.mark.parametrize("init_from", ["models/base-run", "/data/models/base-run", "../base-run"])
def test_where_the_first_model_lay_is_not_published(tmp_path, init_from):
    run = write_run(tmp_path, {"init_from": init_from, "max_steps": 7})
    write_run_files(tmp_path / "published", run, "base-run")
    assert yaml.safe_load((tmp_path / "published" / "config.yaml").read_text()) == {
        "init_from": "base-run",
        "max_steps": 7,
    }


def test_the_hub_id_of_the_first_model_is_published(tmp_path):
    run = write_run(tmp_path, {"init_from": "facebook/dinov2-large"})
    write_run_files(tmp_path / "published", run, "facebook/dinov2-large")
    assert "facebook/dinov2-large" in (tmp_path / "published" / "config.yaml").read_text()


def test_local_sources_are_cut_to_their_names_and_hub_ids_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pc" / "train").mkdir(parents=True)
    recipe = {"dataset_name": "pc/train", "eval_dataset_name": "timm/oxford-iiit-pet", "init_from": "pc/gone"}
    assert without_local_paths(recipe) == {
        "dataset_name": "train",
        "eval_dataset_name": "timm/oxford-iiit-pet",
        "init_from": "gone",
    }


@pytest.mark.parametrize(
    ("value", "published"),
    [
        ("/home/me/photos", "photos"),
        ("~/photos", "photos"),
        ("C:\\Users\\me\\photos", "photos"),
        ("data/of/mine", "mine"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("bf16", "bf16"),
        (["./a", 3, None], ["a", 3, None]),
    ],
)
def test_paths_are_cut_to_their_last_part(value, published):
    assert without_local_paths({"field": value}) == {"field": published}


def test_the_owners_text_is_published_as_it_is(tmp_path):
    run = write_run(tmp_path, {})
    (run / "card.yaml").write_text("about: For leaves and/or flowers and/or fruit.\n")
    write_run_files(tmp_path / "published", run, None)
    text = (tmp_path / "published" / "card.yaml").read_text()
    assert yaml.safe_load(text) == {"about": "For leaves and/or flowers and/or fruit."}


def test_files_that_cannot_be_read_are_left_out(tmp_path):
    run = write_run(tmp_path, {})
    (run / "compute.json").write_text("{")
    (run / "training_args.json").write_text(json.dumps({"seed": 1, "output_dir": "/x"}))
    write_run_files(tmp_path / "published", run, None)
    assert {path.name for path in (tmp_path / "published").iterdir()} == {"config.yaml", "training_args.json"}
    assert json.loads((tmp_path / "published" / "training_args.json").read_text()) == {"seed": 1}
