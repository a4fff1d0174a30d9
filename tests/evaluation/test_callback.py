import json

import datasets
import pytest
import torch

from poa_hf import KnnEvaluationCallback, PoaTrainer
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
