import json
import math
import shutil
from pathlib import Path

import pytest
import yaml

from poa_hf import PoaForPreTraining, PoaTrainer, PoaTrainingArguments, SubNetwork
from poa_hf.cli.main import main
from poa_hf.cli.recipe import parse_recipe
from poa_hf.data.textures import TextureDataset
from poa_hf.runs.evaluations import Evaluation, save_evaluations
from poa_hf.runs.facts import OwnerFacts, RunFacts

from ..conftest import tiny_config


def train(folder: Path, steps: int, resume: str | bool | None = None, **fields) -> PoaForPreTraining:
    args = PoaTrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=2, global_crop_size=32, local_crop_size=16,
        num_local_crops=2, dataloader_num_workers=0, masked_prediction_start_step=0, warmup_steps=1, logging_steps=3,
        freeze_last_layer_steps=0, save_steps=2, disable_tqdm=True, **fields,
    )  # fmt: skip
    model = PoaForPreTraining(tiny_config())
    PoaTrainer(model, args, train_dataset=TextureDataset()).train(resume_from_checkpoint=resume)
    return model


def record(size: str = "16x2", step: int | None = 4, **fields) -> Evaluation:
    usual = dict(
        model="run", task="knn", metric="knn_accuracy", value=0.5, dataset="textures", test_split="test",
        test_images=100, train_split="train", train_images=200, date="2026-11-25", settings={"k": 20},
    )  # fmt: skip
    return Evaluation(size=size, step=step, **{**usual, **fields})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("facts") / "run"
    train(folder, 4, gradient_accumulation_steps=2)
    return folder


def test_a_run_knows_its_steps_batch_recipe_and_compute(trained):
    facts = RunFacts.of(PoaForPreTraining.from_pretrained(trained), trained)
    assert (facts.steps, facts.batch_size, facts.images_seen) == (4, 4, 16)
    assert facts.folder == trained and facts.arguments["final_weight_decay"] == 0.4
    assert facts.peak_learning_rate == pytest.approx(4e-3 * math.sqrt(4 / 1024))
    (part,) = facts.compute
    assert (part.device, part.processes, part.first_step, part.last_step) == ("CPU", 1, 0, 4) and part.seconds > 0
    assert facts.dataset is None and facts.evaluations == () and facts.owner == OwnerFacts()
    text = (trained / "compute.json").read_text()
    assert set(json.loads(text)["parts"][0]) == {"device", "processes", "first_step", "last_step", "seconds"}


def test_a_checkpoint_has_its_own_steps(trained):
    facts = RunFacts.of(tiny_config(), trained / "checkpoint-2")
    assert (facts.steps, facts.images_seen, facts.folder) == (2, 8, trained / "checkpoint-2")
    assert facts.compute[0].last_step == 2


def test_a_resumed_run_adds_up(tmp_path):
    train(tmp_path / "run", 2)
    first = RunFacts.of(tiny_config(), tmp_path / "run").compute[0]
    train(tmp_path / "run", 5, resume=True)
    facts = RunFacts.of(tiny_config(), tmp_path / "run")
    assert [(part.first_step, part.last_step) for part in facts.compute] == [(0, 2), (2, 5)]
    # what the first part took until its checkpoint, before the model of its end was written
    assert 0 < facts.compute[0].seconds <= first.seconds
    train(tmp_path / "run", 5, resume=str(tmp_path / "run" / "checkpoint-4"))  # the fifth step again: it counts once
    facts = RunFacts.of(tiny_config(), tmp_path / "run")
    assert [(part.first_step, part.last_step) for part in facts.compute] == [(0, 2), (2, 4), (4, 5)]
    assert (facts.steps, facts.images_seen) == (5, 10)


def test_time_that_was_not_recorded_from_the_start_is_not_told(tmp_path):
    train(tmp_path / "run", 2)
    (tmp_path / "run" / "checkpoint-2" / "compute.json").unlink()  # as of an older version
    train(tmp_path / "run", 4, resume=True)
    facts = RunFacts.of(tiny_config(), tmp_path / "run")
    assert facts.compute == () and (facts.steps, facts.batch_size) == (4, 2)


def test_older_runs_tell_what_their_checkpoints_do(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    for path in (tmp_path / "run").rglob("compute.json"):
        path.unlink()
    facts = RunFacts.of(tiny_config(), tmp_path / "run")
    assert (facts.steps, facts.batch_size, facts.compute) == (4, 4, ())


def test_another_run_in_the_folder_leaves_nothing_of_the_first(tmp_path):
    train(tmp_path / "run", 3)
    train(tmp_path / "run", 1, overwrite_output_dir=True)
    facts = RunFacts.of(tiny_config(), tmp_path / "run")
    assert [(part.first_step, part.last_step) for part in facts.compute] == [(0, 1)]


def test_of_a_saved_model_nothing_else_is_known(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "saved")
    facts = RunFacts.of(tiny_model, tmp_path / "saved")
    assert facts == RunFacts(tiny_model.config, folder=tmp_path / "saved")
    assert facts.images_seen is None and facts.peak_learning_rate is None and not facts.quality.values
    assert (
        RunFacts.of(tiny_model) == RunFacts.of(tiny_model.config, tmp_path / "nowhere") == RunFacts(tiny_model.config)
    )


def test_only_results_of_this_model_count(trained, tmp_path):
    save_evaluations(trained, [record(), record(step=2), record("16x3", None), record("99x9"), record(value=math.nan)])
    assert {(found.size, found.step) for found in RunFacts.of(tiny_config(), trained).evaluations} == {("16x3", None)}
    save_evaluations(trained, [record()])
    facts = RunFacts.of(tiny_config(), trained)
    assert {(found.size, found.step) for found in facts.evaluations} == {("16x2", 4), ("16x3", None)}
    assert [found.value for found in facts.evaluations_of(SubNetwork(16, 2))] == [0.5]
    assert facts.quality.values == {SubNetwork(16, 2): 0.5}
    assert [found.step for found in RunFacts.of(tiny_config(), trained / "checkpoint-2").evaluations] == [2, None]
    (trained / "evaluations.json").write_text("{")
    assert RunFacts.of(tiny_config(), trained).evaluations == ()
    (trained / "evaluations.json").unlink()


def test_quality_falls_back_to_the_linear_probe():
    linear = record(metric="linear_accuracy", task="linear", settings={"seed": 0})
    assert RunFacts(tiny_config(), evaluations=(linear,)).quality.title == "linear"


@pytest.mark.parametrize(
    ("name", "shown", "hub_id"),
    [
        ("my/images", "my/images", "my/images"),
        ("textures", "textures", None),
        ("./data/my photos", "my photos", None),
        ("/home/somebody/secret/photos", "photos", None),
        ("imagenet", "imagenet", None),
        (None, None, None),
    ],
)
def test_training_images_are_named_without_their_place(tiny_model, tmp_path, name, shown, hub_id):
    tiny_model.save_pretrained(tmp_path)
    if name is not None:
        content = {"dataset_name": name, "dataset_config_name": "2012", "dataset_split": "train"}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    facts = RunFacts.of(tiny_model, tmp_path)
    assert (facts.dataset, facts.dataset_id) == (shown, hub_id)
    assert facts.dataset_config == (None if name is None else "2012")


def test_a_folder_that_looks_like_a_hub_id_is_recorded_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "images").mkdir(parents=True)
    for name, recorded in [("my/images", "./my/images"), ("your/images", "your/images"), ("textures", "textures")]:
        recipe = parse_recipe(["--dataset_name", name])
        assert yaml.safe_load(recipe.to_yaml())["dataset_name"] == recorded


def test_the_owner_adds_what_no_run_knows(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "config.yaml").write_text("dataset_name: /data/copy\ndataset_config_name: a\n")
    (tmp_path / "card.yaml").write_text(
        "license: other\nlicense_name: my-licence\nlicense_link: LICENSE\ndataset: my/images\ncontact: me@example.org\n"
    )
    facts = RunFacts.of(tiny_model, tmp_path)
    assert (facts.dataset, facts.dataset_id, facts.dataset_config) == ("my/images", "my/images", None)
    assert (facts.owner.license_name, facts.owner.contact) == ("my-licence", "me@example.org")
    given = RunFacts.of(tiny_model, tmp_path, license="mit", contact=None).owner
    assert (given.license, given.license_name, given.license_link) == ("mit", None, None)
    assert given.contact == "me@example.org" and RunFacts.of(tiny_model, license="mit").owner == OwnerFacts("mit")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("licence: mit", "card.yaml must hold `key: value` lines with keys of license,"),
        ("- mit", "must hold `key: value` lines"),
        ("license: [", "can't be read"),
        ("license: Apache 2.0", "did you mean apache-2.0"),
        ("license: other", "needs a license_name"),
        ("license: mit\nlicense_link: LICENSE", "go with license other only"),
        ("license: other\nlicense_name: My Licence\nlicense_link: LICENSE", "small letters"),
        ("license: other\nlicense_name: mine\nlicense_link: ftp://x", "web address"),
        ("dataset: /home/me/images", "no Hub id"),
        ("contact: 17", "contact 17 is no text"),
    ],
)
def test_what_an_owner_may_not_say_is_one_sentence(tiny_model, tmp_path, text, message, capsys):
    tiny_model.save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "card.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        RunFacts.of(tiny_model, tmp_path / "run")
    output = tmp_path / "out"
    capsys.readouterr()
    assert main(["extract", str(tmp_path / "run"), "--size", "small", "--output", str(output)]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not output.exists()
