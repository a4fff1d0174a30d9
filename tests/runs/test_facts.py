import json
import math
import shutil
from pathlib import Path

import pytest
import yaml

from poa_hf import PoaForPreTraining, PoaTrainer, PoaTrainingArguments, SubNetwork
from poa_hf.cli.recipe import parse_recipe
from poa_hf.data.textures import TextureDataset
from poa_hf.runs.facts import RunFacts
from poa_hf.runs.layout import RunFolder

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("facts") / "run"
    train(folder, 4, gradient_accumulation_steps=2)
    return folder


def test_a_run_knows_its_steps_batch_recipe_and_compute(trained):
    facts = RunFacts.read(trained)
    assert (facts.steps, facts.batch_size, facts.images_seen) == (4, 4, 16)
    assert facts.model == facts.folder.path == trained and facts.arguments["final_weight_decay"] == 0.4
    assert facts.peak_learning_rate == pytest.approx(4e-3 * math.sqrt(4 / 1024))
    (part,) = facts.compute
    assert (part.device, part.processes, part.first_step, part.last_step) == ("CPU", 1, 0, 4) and part.seconds > 0
    assert facts.dataset is None and facts.evaluations == ()
    text = (trained / "compute.json").read_text()
    assert set(json.loads(text)["parts"][0]) == {"device", "processes", "first_step", "last_step", "seconds"}


def test_a_checkpoint_has_its_own_steps(trained):
    facts = RunFacts.read(trained / "checkpoint-2")
    assert (facts.steps, facts.images_seen, facts.model) == (2, 8, trained / "checkpoint-2")
    assert facts.folder.path == trained
    assert facts.compute[0].last_step == 2


def test_a_resumed_run_adds_up(tmp_path):
    train(tmp_path / "run", 2)
    first = RunFacts.read(tmp_path / "run").compute[0]
    train(tmp_path / "run", 5, resume=True)
    facts = RunFacts.read(tmp_path / "run")
    assert [(part.first_step, part.last_step) for part in facts.compute] == [(0, 2), (2, 5)]
    # what the first part took until its checkpoint, before the model of its end was written
    assert 0 < facts.compute[0].seconds <= first.seconds
    train(tmp_path / "run", 5, resume=str(tmp_path / "run" / "checkpoint-4"))  # the fifth step again: it counts once
    facts = RunFacts.read(tmp_path / "run")
    assert [(part.first_step, part.last_step) for part in facts.compute] == [(0, 2), (2, 4), (4, 5)]
    assert (facts.steps, facts.images_seen) == (5, 10)


def test_time_that_was_not_recorded_from_the_start_is_not_told(tmp_path):
    train(tmp_path / "run", 2)
    for name in ("compute.json", "checksums.json"):  # as of an older version
        (tmp_path / "run" / "checkpoint-2" / name).unlink()
    train(tmp_path / "run", 4, resume=True)
    facts = RunFacts.read(tmp_path / "run")
    assert facts.compute == () and (facts.steps, facts.batch_size) == (4, 2)


def test_older_runs_tell_what_their_checkpoints_do(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    for path in (tmp_path / "run").rglob("compute.json"):
        path.unlink()
    facts = RunFacts.read(tmp_path / "run")
    assert (facts.steps, facts.batch_size, facts.compute) == (4, 4, ())


def test_another_run_in_the_folder_leaves_nothing_of_the_first(tmp_path):
    train(tmp_path / "run", 3)
    train(tmp_path / "run", 1, overwrite_output_dir=True)
    facts = RunFacts.read(tmp_path / "run")
    assert [(part.first_step, part.last_step) for part in facts.compute] == [(0, 1)]


def test_of_a_saved_model_nothing_else_is_known(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "saved")
    facts = RunFacts.read(tmp_path / "saved")
    assert facts.space == tiny_model.config.backbone_config.space
    known = RunFacts(facts.config, str(tmp_path / "saved"), RunFolder(tmp_path / "saved"), tmp_path / "saved")
    assert facts == known and facts.log == [] and facts.comparisons == []
    assert facts.images_seen is None and facts.peak_learning_rate is None


def test_a_run_without_a_model_is_known_by_its_recipe_or_log(tmp_path):
    with pytest.raises(ValueError, match="holds neither a model nor a run's log"):
        RunFacts.read(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        RunFacts.read(tmp_path / "nowhere")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    facts = RunFacts.read(tmp_path)
    assert facts.config is None and facts.log == [{"step": 1, "loss": 2.5}]
    assert "holds no model yet" in facts.no_model and facts.comparisons == []
    (tmp_path / "config.yaml").write_text("model:\n  backbone_config: {hidden_size: 768}\n")
    assert RunFacts.read(tmp_path).space.full == SubNetwork(768, 24)
    (tmp_path / "config.yaml").write_text("model:\n  backbone_config: {field_of_another_version: 1}\n")
    assert RunFacts.read(tmp_path).config is None


def test_broken_evaluations_are_told(trained):
    (trained / "evaluations.json").write_text("{")
    facts = RunFacts.read(trained)
    assert facts.evaluations == () and "evaluations.json cannot be read" in facts.no_evaluations
    (trained / "evaluations.json").unlink()


def test_commands_name_the_run_as_its_user_did(trained, monkeypatch):
    monkeypatch.chdir(trained.parent)
    assert RunFacts.read("run").command("select", "--device", "cpu") == "poa select run --device cpu"


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
    facts = RunFacts.read(tmp_path)
    assert (facts.dataset, facts.dataset_id) == (shown, hub_id)
    assert facts.dataset_config == (None if name is None else "2012")


def test_names_and_numbers_of_other_kinds_are_not_known(trained, tmp_path):
    """A recipe is read as it is, since a card or report says less where it is damaged."""
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "config.yaml").write_text("dataset_name: [a, b]\neval_dataset_name: 7\ndataset_split: {a: 1}\nseed: 3\n")
    (run / "training_args.json").write_text(json.dumps({"learning_rate": "high", "warmup_steps": "many"}))
    facts = RunFacts.read(run)
    assert facts.recipe == {"seed": 3} and facts.dataset is facts.dataset_split is facts.peak_learning_rate is None


def test_a_checkpoint_of_one_size_is_named(tiny_model, tmp_path):
    size = tiny_model.config.backbone_config.space.smallest
    tiny_model.config.backbone_config.stock_config(size).save_pretrained(tmp_path)
    facts = RunFacts.read(tmp_path)
    for read in (lambda: facts.backbone, lambda: facts.space):
        with pytest.raises(ValueError) as refusal:
            read()
        assert str(refusal.value) == (f"{tmp_path} is a checkpoint of one size (dinov2): give the output_dir of a run.")


def test_a_folder_that_looks_like_a_hub_id_is_recorded_as_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "images").mkdir(parents=True)
    for name, recorded in [("my/images", "./my/images"), ("your/images", "your/images"), ("textures", "textures")]:
        recipe = parse_recipe(["--dataset_name", name])
        assert yaml.safe_load(recipe.to_yaml())["dataset_name"] == recorded
