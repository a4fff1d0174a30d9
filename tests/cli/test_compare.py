"""`poa compare` from end to end, on folders made for it."""

import json

import pytest
import torch

from poa_hf.cli.compare import compare
from poa_hf.cli.main import run
from poa_hf.data.processor import evaluation_processor
from poa_hf.models.modeling_poa_pretraining import PoaForPreTraining

from ..conftest import run_python, tiny_config
from ..evaluation.dense import pictures
from ..evaluation.image_folders import parquet_folder, table


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two saved models, a stock one, and a dataset of 60 train and 30 test images of which one can't be decoded."""
    root = tmp_path_factory.mktemp("compare")
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = PoaForPreTraining(tiny_config())
        model.save_pretrained(root / name)
        evaluation_processor(32).save_pretrained(root / name)
    model.teacher.extract("small").save_pretrained(root / "stock")
    evaluation_processor(40).save_pretrained(root / "stock")  # prepares the same images in another way
    parquet_folder(root / "images", table(60), table(30, seed=6, broken=(4,)))
    return root


def command(capsys, *argv) -> tuple[int, str, str]:
    status = run(compare, [str(argument) for argument in argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_runs_sizes_and_a_stock_model(folders, capsys, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(folders)
    options = ["--dataset_name", "images", "--num_workers", 0, "--json", tmp_path / "found.json"]
    status, out, err = command(capsys, "one:small", "two", "stock", *options, "--tasks", "knn,retrieval", "--k", 5)
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0] == "Compared on images (29 test images classified by 60 train images)"
    assert lines[2:5] == ["A  one:16x1", "B  two:32x3", "C  stock"]
    assert [line.split("  ")[:2] for line in lines[7:15]] == [
        [pair, title] for pair in ("A - B", "A - C") for title in ("5-NN", "mAP", "P@1", "P@10")
    ]
    assert "p values are those of 8 comparisons together (Holm)" in out
    assert caplog.text.count("could not be decoded") == 1  # what there is to say about the data is said once
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["test_images"] == 29 and len(found["comparisons"]) == 8
    for each in found["comparisons"]:
        assert each["difference"] == pytest.approx(each["first_value"] - each["second_value"])
        assert each["interval"][0] <= each["difference"] <= each["interval"][1] and 0 < each["p_value"] <= 1
        assert each["adjusted_p_value"] >= each["p_value"]
    assert not (folders / "one" / "evaluations.json").exists()


def test_images_that_were_altered_differently_are_not_compared(folders, capsys, monkeypatch):
    monkeypatch.chdir(folders)
    options = ["--dataset_name", "images", "--num_workers", 0, "--k", 5, "--occlusion_ratios", 0.5]
    status, out, err = command(capsys, "one", "--sizes", "small,large", *options, "--tasks", "occlusion")
    assert status == 0 and "not compared" not in out, err  # sizes of a run share what is salient
    assert all(f"A - B  occlusion ({dropped})" in out for dropped in ("random", "salient", "non-salient"))
    # images of 32 and 40 pixels have 4 x 4 and 5 x 5 patches of 8 pixels
    status, out, err = command(capsys, "one", "stock", *options, "--tasks", "occlusion")
    assert status == 2 and "(5-NN accuracy with random patches dropped, 5-NN accuracy with salient" in err
    status, out, err = command(capsys, "one", "stock", *options, "--tasks", "occlusion", "--occlusion_grid", 4)
    assert status == 0 and out.count("A - B  occlusion (") == 1, err
    assert "\n5-NN accuracy with salient patches dropped, 5-NN accuracy with non-salient patches dropped: not c" in out


def test_tasks_of_images_and_of_patches_in_one_command(folders, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(folders)
    labelled = [
        pictures.table(count, seed).add_column("label", [number % 2 for number in range(count)])
        for seed, count in enumerate((16, 6))
    ]
    parquet_folder(tmp_path / "data", *labelled)
    options = ["--dataset_name", tmp_path / "data", "--num_workers", 0, "--k", 5, "--dense_image_size", 16]
    status, out, err = command(capsys, "one:small", "two:small", *options, "--tasks", "knn,correspondence")
    assert status == 0, err
    assert out.splitlines()[0] == "Compared on data (6 test images classified by 16 train images)"
    titles = ["5-NN", *(f"found ({pixels} px)" for pixels in (4, 8, 16, 32))]
    assert [line.split("  ")[1] for line in out.splitlines() if line.startswith("A - B")] == titles


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["one", "one:large"], "one:32x3 is compared with itself"),
        (["one"], "There is nothing to compare one with: name a second model, or several --sizes."),
        (["one:", "two"], "one: names no model and size"),
        (["one", "stock:small"], "stock is a checkpoint of one size"),
        (["one", "two", "--tasks", "knnn"], "'knnn' is not a task"),
        (["one", "two", "--tasks", "knn", "--k", "61"], "k = 61 neighbours cannot be found among 60 train images"),
        (["one", "two", "--json", "."], "cannot be a file"),
        ([], "Give MODEL[:SIZE]: see poa compare --help."),
    ],
)
def test_mistakes_are_one_sentence(folders, capsys, monkeypatch, argv, words):
    monkeypatch.chdir(folders)
    status, out, err = command(capsys, *argv, "--dataset_name", "images", "--num_workers", 0)
    assert status == 2 and out == "" and words in err and err.count("\n") == 1 and "Traceback" not in err


SCRIPT = """
import sys
from poa_hf.cli import run
from poa_hf.cli.compare import compare
sys.exit(run(compare, sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_processes_find_what_one_does(folders, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(folders)
    argv = ["one", "two", "--sizes", "small,large", "--dataset_name", "images", "--num_workers", "0"]
    argv += ["--tasks", "knn,linear,lowshot,clustering", "--k", "5", "--linear_augmentation", "2"]
    status, out, err = command(capsys, *argv, "--json", tmp_path / "one.json")
    assert status == 0, err
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "script.py")]
    result = run_python(*launch, *argv, "--json", str(tmp_path / "two.json"), env={"ACCELERATE_USE_CPU": "1"})
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert result.stdout == out
