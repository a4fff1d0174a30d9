import json
import logging

import datasets
import numpy as np
import pytest
import torch

from poa_hf import KnnEvaluationCallback, PoaTrainer, WarmStartGuard
from poa_hf.cli.main import main
from poa_hf.data.textures import TextureDataset
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.splits import EvaluationData, open_splits
from poa_hf.evaluation.subject import load_subject
from poa_hf.evaluation.tasks import TaskOptions
from poa_hf.runs.evaluations import load_evaluations

from ..conftest import QUICKSTART, ROOT, TINY, run_python
from ..training.test_trainer import arguments, images, metrics, new_model
from .image_folders import table


def textures() -> EvaluationData:
    splits = [TextureDataset(seed=seed, length=count) for seed, count in ((1, 60), (2, 40))]
    train, test = (LabelledImages(split, name=name) for split, name in zip(splits, ("train", "test"), strict=True))
    return EvaluationData(test, train, "textures")


def test_the_teacher_is_measured_logged_and_its_best_checkpoint_kept(tmp_path):
    args = arguments(tmp_path / "run", max_steps=7, save_total_limit=1, learning_rate=0.05)
    callback = KnnEvaluationCallback(textures(), every_steps=2, k=5)
    state = PoaTrainer(new_model(), args, images(), callbacks=[callback]).train()
    lines = {line["step"]: line for line in metrics(tmp_path / "run")}
    measured = [step for step, line in lines.items() if "knn_mean" in line]
    assert measured == [2, 4, 6, 7]
    sizes = ["16x1", "32x1", "32x3"]
    assert {name for name in lines[2] if name.startswith("knn_")} == {"knn_mean", *(f"knn_{size}" for size in sizes)}
    means = {step: lines[step]["knn_mean"] for step in measured}
    assert means[4] == pytest.approx(sum(lines[4][f"knn_{size}"] for size in sizes) / 3)
    best = max(means, key=means.get)
    assert state.best_metric == means[best] and state.best_global_step == best
    kept = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert kept == {f"checkpoint-{best}", "checkpoint-7"}
    assert state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    records = load_evaluations(tmp_path / "run")
    assert len(records) == 12 and {(r.step, r.size) for r in records} == {(s, z) for s in measured for z in sizes}
    again = evaluate_sizes(
        load_subject(tmp_path / "run" / f"checkpoint-{best}"), textures(), sizes, ["knn"], TaskOptions(k=(5,))
    )
    assert [record.value for record in again] == [lines[best][f"knn_{size}"] for size in sizes]


def test_numbers_of_numpy(tmp_path):
    callback = KnnEvaluationCallback(textures(), np.int64(2), ["small"], np.int64(5), np.int32(64), np.uint8(0))
    PoaTrainer(new_model(), arguments(tmp_path, max_steps=2), images(), callbacks=[callback]).train()
    [record] = load_evaluations(tmp_path)
    assert (record.step, record.settings["k"]) == (2, 5)


def test_training_is_not_changed_by_it_and_resumes_with_its_best(tmp_path):
    weights = []
    for name, callbacks in (("without", []), ("with", [KnnEvaluationCallback(textures(), 2, ["small"], k=5)])):
        model = new_model(drop_path_rate=0.3)
        PoaTrainer(model, arguments(tmp_path / name, save_steps=2), images(), callbacks=callbacks).train()
        weights.append(model.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    before = json.loads((tmp_path / "with" / "checkpoint-2" / "trainer_state.json").read_text())
    assert before["best_global_step"] == 2 and before["best_model_checkpoint"].endswith("checkpoint-2")
    trainer = PoaTrainer(new_model(), arguments(tmp_path / "with"), images())
    trainer.train(resume_from_checkpoint=str(tmp_path / "with" / "checkpoint-2"))
    assert trainer.state.best_metric == before["best_metric"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": ["8x1"]}, "8x1 is not a size of this model"),
        ({"k": 61}, "k = 61 neighbours cannot be found among 60 train images"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(tmp_path, options, message):
    callback = KnnEvaluationCallback(textures(), every_steps=100, **options)
    with pytest.raises(ValueError, match=message):
        PoaTrainer(new_model(), arguments(tmp_path), images(), callbacks=[callback]).train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_pretrain_evaluates_by_its_options(tmp_path, capsys):
    options = ["--config", QUICKSTART, *TINY.split(), "--output_dir", str(tmp_path / "run"), "--eval_k", "3"]
    limits = ["--eval_max_train_images", "30", "--eval_max_test_images", "20"]
    assert main(["pretrain", *options, "--eval_steps", "0"]) == 2
    assert "eval_steps is 0" in capsys.readouterr().err
    assert main(["pretrain", *options, *limits, "--eval_steps", "2", "--eval_sizes", "small,large"]) == 0
    records = load_evaluations(tmp_path / "run")
    assert {record.dataset for record in records} == {"textures"} and len({record.size for record in records}) == 2
    assert "eval_steps: 2" in (tmp_path / "run" / "config.yaml").read_text()
    unlabelled = datasets.Dataset.from_dict({"image": images(4)}).cast_column("image", datasets.Image())
    for split in ("train", "test"):
        unlabelled.to_parquet(f"{tmp_path}/data/{split}-00000-of-00001.parquet")
    more = ["--eval_steps", "2", "--eval_dataset_name", str(tmp_path / "data"), "--overwrite_output_dir"]
    assert main(["pretrain", *options, *more]) == 2
    assert "no label column" in capsys.readouterr().err


def test_pretrain_measures_on_a_held_out_part(tmp_path, capsys, caplog):
    table(60).to_parquet(f"{tmp_path}/data/train.parquet")
    options = ["--config", QUICKSTART, *TINY.split(), "--output_dir", str(tmp_path / "run"), "--eval_k", "3"]
    options += ["--eval_steps", "1", "--eval_sizes", "small", "--dataset_name", str(tmp_path / "data")]
    assert main(["pretrain", *options]) == 2
    assert "pass --eval_holdout 0.2" in capsys.readouterr().err
    assert main(["pretrain", *options, "--eval_test_split", "train"]) == 2
    assert "pass --eval_test_split with another split, or --eval_holdout 0.2" in capsys.readouterr().err
    assert main(["pretrain", *options, "--eval_holdout", "0.2"]) == 0
    assert caplog.text.count("was pre-trained, without labels, on the train split") == 1  # not at each evaluation
    records = load_evaluations(tmp_path / "run")
    assert {(record.holdout, record.pretrained_on_test) for record in records} == {(0.2, True)} and len(records) == 2
    assert "eval_holdout: 0.2" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    options = [
        "--config",
        QUICKSTART,
        *TINY.split(),
        "--eval_steps",
        "2",
        "--eval_k",
        "3",
        "--eval_max_train_images",
        "30",
    ]
    options += ["--output_dir", str(tmp_path / "run"), "--eval_max_test_images", "20", "--max_steps", "2"]
    script = str(ROOT / "examples" / "pretrain.py")
    run_python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, *options)
    (line,) = [line for line in metrics(tmp_path / "run") if "knn_mean" in line]
    data = open_splits("textures", max_train_images=30, max_test_images=20)
    records = evaluate_sizes(load_subject(tmp_path / "run"), data, "all", ["knn"], TaskOptions(k=(3,)))
    values = {f"knn_{record.size}": record.value for record in records}
    measured = {name: value for name, value in line.items() if name.startswith("knn_") and name != "knn_mean"}
    assert measured and all(values[name] == value for name, value in measured.items())


class Spoiled(WarmStartGuard):
    """Measures a teacher whose full size is good, but spoiled from a step to another one."""

    spoiled = range(3, 6)

    def _measure(self, args, state, model):
        values = super()._measure(args, state, model)
        return values | {self.full: 0.3 if state.global_step in self.spoiled else 0.9}


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if "has lost" in r.getMessage()]


def guarded(tmp_path, callback, **overrides):
    args = arguments(tmp_path, **{"learning_rate": 1e-6, "save_steps": 4, "max_steps": 8, **overrides})
    trainer = PoaTrainer(new_model(), args, images(), callbacks=[callback])
    return trainer


def test_the_start_is_measured_and_a_fall_is_said_once_for_as_long_as_it_lasts(tmp_path, caplog):
    trainer = guarded(tmp_path, Spoiled(textures(), every_steps=1, sizes=["small"], k=5))
    with caplog.at_level(logging.WARNING, logger="poa_hf"):
        state = trainer.train()
    (message,) = warnings(caplog)
    start = state.log_history[0]
    assert start["step"] == 0 and start["knn_start"] == start["knn_32x3"] and "knn_16x1" in start
    # 40 test images: the root of (0.9 * 0.1 + 0.3 * 0.7) / 40
    assert "lost 60.0 points" in message and "(90.0 % to 30.0 % at step 3; " in message and "difference 8.7)" in message
    assert "lower learning_rate" in message
    assert all(line["knn_start"] == start["knn_start"] for line in metrics(tmp_path))


@pytest.mark.slow
def test_it_knows_after_a_resume_what_the_start_was_and_that_it_has_warned(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="poa_hf"):
        guarded(tmp_path, Spoiled(textures(), every_steps=1, sizes=["small"], k=5)).train()
        caplog.clear()
        callback = Spoiled(textures(), every_steps=1, sizes=["small"], k=5)
        guarded(tmp_path, callback).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert callback.start == 0.9 and not warnings(caplog)
    assert [line["knn_start"] for line in metrics(tmp_path)] == [0.9] * 8


@pytest.mark.parametrize(("now", "fallen"), [(0.9, False), (0.48, False), (0.40, True)])
def test_it_warns_beyond_the_margin_and_two_standard_errors(now, fallen):
    guard = WarmStartGuard(textures(), every_steps=1, margin=0.01)
    guard.num_test_images = 1000
    # the difference's standard error is about 0.022: 0.5 may fall to about 0.445
    assert guard._has_fallen(0.5, now) is fallen


def test_a_run_that_was_not_measured_at_its_start_says_so(tmp_path, caplog):
    PoaTrainer(new_model(), arguments(tmp_path, save_steps=2), images()).train()
    with caplog.at_level(logging.WARNING, logger="poa_hf"):
        callback = WarmStartGuard(textures(), every_steps=2, k=5)
        trainer = PoaTrainer(new_model(), arguments(tmp_path), images(), callbacks=[callback])
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "was not evaluated at its start" in caplog.text
    with pytest.raises(ValueError, match="margin is 2"):
        WarmStartGuard(textures(), every_steps=2, margin=2)


def test_the_guard_does_not_change_training(tmp_path):
    weights = []
    for name, callbacks in (("without", []), ("with", [WarmStartGuard(textures(), 2, ["small"], k=5)])):
        model = new_model(drop_path_rate=0.3)
        PoaTrainer(model, arguments(tmp_path / name), images(), callbacks=callbacks).train()
        weights.append(model.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
