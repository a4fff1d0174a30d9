"""`poa evaluate` from end to end, on folders made for it."""

import json
import re
import shutil
import socket

import pytest
import torch
from PIL import Image
from transformers import AutoModel

from poa_hf.cli.evaluate import evaluate
from poa_hf.cli.main import run
from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.subject import load_subject
from poa_hf.models.modeling_poa_pretraining import PoaForPreTraining
from poa_hf.publishing.formats.vit import as_vit
from poa_hf.runs.evaluations import load_evaluations

from ..conftest import run_python, tiny_config
from ..evaluation.dense import pictures
from ..evaluation.image_folders import challenge_folder, masked_table, parquet_folder, table

PROCESSOR = evaluation_processor(32, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
SCRIPT = """
import sys
from poa_hf.cli import run
from poa_hf.cli.evaluate import evaluate
sys.exit(run(evaluate, sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved model, and a dataset of 60 train and 30 test images of which one can't be decoded."""
    root = tmp_path_factory.mktemp("command")
    torch.manual_seed(0)
    PoaForPreTraining(tiny_config()).save_pretrained(root / "run")
    PROCESSOR.save_pretrained(root / "run")
    parquet_folder(root / "images", table(60), table(30, seed=6, broken=(4,)))
    return root


def command(capsys, *argv) -> tuple[int, str, str]:
    """Exit status, output and errors, without progress bars."""
    status = run(evaluate, [str(argument) for argument in argv])
    captured = capsys.readouterr()
    lines = [line for line in re.split(r"[\r\n]", captured.err) if line.strip() and not re.search(r"\d/\d+ \[", line)]
    return status, captured.out, "\n".join(lines)


def test_a_table_and_a_file_of_a_run(folders, capsys, tmp_path):
    argv = [folders / "run", "--dataset_name", folders / "images", "--num_workers", 0, "--output", tmp_path / "e.json"]
    status, out, err = command(
        capsys, *argv, "--tasks", "knn,linear,lowshot,clustering,retrieval", "--k", "5,20", "--sizes", "small,32x3"
    )
    assert status == 0, err
    lines = out.splitlines()
    assert lines[0] == "run on images, in % (29 test images classified by 60 train images)"
    assert lines[2].split("  ")[0] == "size" and lines[2].endswith("mAP     P@1    P@10")
    assert [line.split()[0] for line in lines[3:5]] == ["16x1", "32x3"] and len(lines[3].split()) == 12
    margins = [float(cell) for cell in lines[5].split()[1:]]
    assert lines[5].startswith("± ") and len(margins) == 11 and all(0 < margin < 40 for margin in margins)
    assert lines[7] == "± half of the widest 95 % interval of the column, for other test images of the same kind"
    assert lines[-1] == f"Written to {tmp_path / 'e.json'}"
    records = load_evaluations(tmp_path / "e.json")
    assert len(records) == 22 and {record.test_images for record in records} == {29}
    shown = [float(cell) for cell in lines[3].split()[1:]]
    assert shown == [round(100 * record.value, 1) for record in records[:11]]
    assert {record.skipped_images for record in records} == {1}
    assert all(record.interval[0] <= record.value <= record.interval[1] for record in records)
    halves = [(records[i].interval[1] - records[i].interval[0], records[i + 11].interval) for i in range(11)]
    assert margins == [round(50 * max(first, high - low), 1) for first, (low, high) in halves]
    # once more, and another size: the old numbers are replaced, the others kept
    assert command(capsys, *argv, "--k", "5", "--tasks", "knn", "--sizes", "16x1,16x2")[0] == 0
    assert len(load_evaluations(tmp_path / "e.json")) == 23


def test_textures_and_the_run_s_own_file(folders, capsys):
    argv = ["--dataset_name", "textures", "--max_train_images", 40, "--max_test_images", 10, "--num_workers", 0]
    status, out, err = command(capsys, folders / "run", *argv, "--tasks", "clustering", "--batch_size", 8)
    assert status == 0, err
    assert out.startswith("run on textures, in % (10 test images)")
    records = json.loads((folders / "run" / "evaluations.json").read_text())
    assert {record["dataset"] for record in records} == {"textures"} and "train_split" not in records[0]


@pytest.mark.parametrize("format", ["dinov2", "vit"])
def test_a_stock_checkpoint_has_the_numbers_of_its_size(folders, capsys, tmp_path, format):
    extracted = load_subject(folders / "run").model.extract("16x2")
    extracted = as_vit(extracted) if format == "vit" else extracted
    extracted.save_pretrained(tmp_path / "stock")
    argv = ["--dataset_name", folders / "images", "--k", "5,10", "--tasks", "knn", "--num_workers", 0]
    status, _, err = command(capsys, tmp_path / "stock", *argv)
    assert status == 2 and "has no image processor" in err
    PROCESSOR.save_pretrained(tmp_path / "stock")
    status, out, err = command(capsys, tmp_path / "stock", *argv)
    assert status == 0 and "MISSING" not in err, err
    found = load_evaluations(tmp_path / "stock" / "evaluations.json")
    assert [record.size for record in found] == ["-", "-"] and "\n-  " in out
    command(capsys, folders / "run", *argv, "--sizes", "16x2", "--output", tmp_path / "e.json")
    assert [r.value for r in found] == [r.value for r in load_evaluations(tmp_path / "e.json")]


def test_subjects(folders, tmp_path):
    run_ = load_subject(folders / "run")
    assert run_.name == "run" and run_.step is None and run_.results == folders / "run" / "evaluations.json"
    run_.model.save_pretrained(tmp_path / "teacher")
    PROCESSOR.save_pretrained(tmp_path / "teacher")
    assert load_subject(tmp_path / "teacher").sizes("16x1") == ["16x1"]  # elastic, without heads and student
    checkpoint = tmp_path / "mine" / "checkpoint-12"
    PoaForPreTraining.from_pretrained(folders / "run").save_pretrained(checkpoint)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 12}')
    (checkpoint / "data_state_0.json").write_text("{}")
    for path in (checkpoint, checkpoint.parent):
        subject = load_subject(path)
        assert (subject.name, subject.step, subject.results) == ("mine", 12, tmp_path / "mine" / "evaluations.json")
        assert subject.processor.crop_size["height"] == 32  # made for the model, as none was saved


@pytest.mark.slow
@pytest.mark.parametrize(
    ("test", "memory"),
    [
        ([], 2e-5),
        (["--holdout", 0.2], 1.5e-5),
        (["--tasks", "occlusion,shuffle,corruptions", "--k", 5], 3.5e-4),  # 50 alterations of each test image
        (
            ["--tasks", "knn,linear", "--k", 5, "--protocol", "poa", "--linear_steps", 5, "--linear_augmentation", 2],
            1.4e-4,
        ),
    ],
)
def test_two_processes_give_the_numbers_of_one(test, memory, folders, capsys, tmp_path):
    script = tmp_path / "launched.py"
    script.write_text(SCRIPT)
    argv = [folders / "run", "--dataset_name", folders / "images", "--num_workers", 0, "--sizes", "16x1,24x2,32x3"]
    argv += ["--tasks", "knn,linear,lowshot,clustering,retrieval", "--batch_size", 4, *test]
    argv += ["--feature_memory_gb", memory]
    status, _, err = command(capsys, *argv, "--output", tmp_path / "one.json")
    assert status == 0, err
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", port, script]
    argv = [*launcher, *argv, "--output", tmp_path / "two.json"]
    result = run_python(*map(str, argv), env={"ACCELERATE_USE_CPU": "1"})
    assert "Pass 2 of 2" in result.stderr and result.stdout.count("Written to") == 1
    assert result.stderr.count("could not be decoded") == ("--holdout" not in test)  # not once per process or pass
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


@pytest.mark.slow
def test_two_processes_exchange_the_backgrounds_that_one_does(folders, capsys, tmp_path):
    script = tmp_path / "launched.py"
    script.write_text(SCRIPT)
    parquet_folder(tmp_path / "masked", masked_table(60), masked_table(30, seed=6, classes=3))
    challenge_folder(tmp_path / "bg_challenge")
    argv = [folders / "run", "--sizes", "16x1,32x3", "--tasks", "backgrounds", "--k", 3, "--batch_size", 4]
    for name in ("masked", "bg_challenge"):
        argv_of_data = [*argv, "--dataset_name", tmp_path / name]
        one, two = tmp_path / f"{name}-1.json", tmp_path / f"{name}-2.json"
        status, _, err = command(capsys, *argv_of_data, "--num_workers", 2, "--output", one)
        assert status == 0, err
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", port, script]
        run_python(
            *map(str, [*launcher, *argv_of_data, "--num_workers", 0, "--output", two]), env={"ACCELERATE_USE_CPU": "1"}
        )
        assert one.read_bytes() == two.read_bytes()


def test_a_hold_out_is_recorded_and_the_split_of_the_pre_training_named(folders, capsys, caplog, tmp_path):
    shutil.copytree(folders / "run", tmp_path / "run")
    (tmp_path / "run" / "evaluations.json").unlink(missing_ok=True)  # of other tests
    (tmp_path / "link").symlink_to(folders / "images")
    (tmp_path / "run" / "config.yaml").write_text(f"dataset_name: {tmp_path / 'link'}/\ndataset_split: train\n")
    argv = [tmp_path / "run", "--dataset_name", folders / "images", "--num_workers", 0, "--sizes", "small"]
    status, out, err = command(capsys, *argv, "--tasks", "knn", "--k", 5, "--holdout", 0.2, "--seed", 3)
    assert status == 0, err
    assert "run was pre-trained, without labels, on the train split that it is tested on" in caplog.text
    [record] = load_evaluations(tmp_path / "run")
    assert (record.holdout, record.holdout_seed) == (0.2, 3)
    assert (record.coinciding_images, record.pretrained_on_test) == (0, True)
    assert record.train_images + record.test_images == 60
    assert f"{record.test_images} test images classified by {record.train_images} train images; test images: " in out
    assert "20 % of train, held out at random by class, seed 3" in out
    caplog.clear()
    status, _, err = command(capsys, *argv, "--tasks", "knn", "--k", 5)
    assert status == 0 and "pre-trained" not in caplog.text, err
    assert [record.pretrained_on_test for record in load_evaluations(tmp_path / "run")] == [True, False]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere/at/all"], "nowhere/at/all does not exist"),
        (["./no"], "./no does not exist"),
        (["{root}/images"], "holds no model yet"),
        (["{root}/run", "--sizes", "40x9"], "40x9 is not a size of this model"),
        (["{root}/run", "--tasks", "knn,guess"], "'guess' is not a task"),
        (
            ["{root}/run", "--tasks", "knn", "--protocol", "poa"],
            "--protocol is for the task linear, which is not among --tasks: add it, or leave out --protocol.",
        ),
        (["{root}/run", "--corruptions", "jpeg"], "--corruptions is for the task corruptions, which is not among"),
        (
            ["{root}/run", "--tasks", "linear", "--k", "5"],
            "--k is for the tasks knn, occlusion, shuffle, corruptions and backgrounds, which are not among --tasks",
        ),
        (["{root}/run", "--tasks", "knn", "--depth_scale", "1000"], "--depth_scale is for the task depth, which is"),
        (["{root}/run", "--k", "many"], "--k is 'many': give whole numbers"),
        (["{root}/run", "--k", "0"], "at least 1"),
        (["{root}/run", "--k", "61"], "k = 61 neighbours cannot be found among 60 train images"),
        (["{root}/run", "--max_train_images", "5"], "only 5 images"),
        (["{root}/run", "--max_train_images", "0"], "--max_train_images is '0': give a whole number of at least 1"),
        (["{root}/run", "--tasks", "occlusion", "--occlusion_ratios", "0.5,1"], "give numbers above 0 and below 1"),
        (["{root}/run", "--tasks", "corruptions", "--examples", "a.jpg"], "'a.jpg': give a .png file in a folder that"),
        (["{root}/run", "--tasks", "knn", "--examples", "{root}/a.png"], "None of the tasks knn alters images"),
        (["{root}/run", "--tasks", "corruptions", "--corruptions", "jpg"], "'jpg' is not a corruption: "),
        (["{root}/run", "--tasks", "occlusion", "--occlusion_grid", "40"], "smaller than a grid of 40 x 40 patches"),
        (["{root}/run", "--tasks", "shuffle", "--shuffle_grids", "2,5"], "A grid of 5 x 5 patches does not divide"),
        (["{root}/run", "--test_split", "dev"], "no split 'dev'"),
        (["{root}/run", "--test_split", "train"], "train is given both for training and for testing"),
        (["{root}/run", "--train_split", "test"], "pass --holdout 0.2"),
        (["{root}/run", "--holdout", "20"], "--holdout is '20': give a number above 0 and below 1"),
        (["{root}/run", "--holdout", "0.2", "--test_split", "test"], "leave out --test_split"),
        (["{root}/run", "--label_column", "lable"], "did you mean label?"),
        (["{root}/run", "--label_column", "image"], "'image' is of type Image"),
        (["{root}/run", "--image_column", "img"], "choose from image, label."),
        (["{root}/run", "--batch_size", "0"], "--batch_size is '0': give a whole number of at least 1"),
        (["{root}/run", "--batch_size", "x"], "--batch_size is 'x': give a whole number"),
        (["{root}/run", "--output", "{root}"], "is a folder"),
        (["{root}/run", "--output", "{root}/no/e.json"], "can be written to"),
        (["{root}/run", "--output", "{root}/run/config.json"], "cannot be read as evaluations"),
        (["{root}/run", "--dataset_name", "{root}/nothing"], "does not exist"),
        (["{root}/run", "--more"], "--more is not an option of poa evaluate: see poa evaluate --help"),
        ([], "Give MODEL: see poa evaluate --help."),
    ],
)
def test_mistakes_are_one_sentence(folders, capsys, argv, message):
    argv = [argument.replace("{root}", str(folders)) for argument in argv]
    if "--dataset_name" not in argv:
        argv += ["--dataset_name", str(folders / "images")]
    before = sorted(folders.rglob("*"))
    status, out, err = command(capsys, *argv, "--num_workers", 0)
    assert status == 2 and out == ""
    assert err.startswith("poa: ") and message in err and err.count("\n") == 0
    assert sorted(folders.rglob("*")) == before


def test_a_checkpoint_that_is_not_whole(folders, capsys, tmp_path):
    (tmp_path / "config.json").write_text("{")
    status, _, err = command(capsys, tmp_path, "--dataset_name", folders / "images")
    assert status == 2 and "config.json of" in err
    AutoModel.from_config(load_subject(folders / "run").model.config).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    status, _, err = command(capsys, tmp_path, "--dataset_name", folders / "images")
    assert status == 2 and "has no weights in safetensors files" in err


def test_masks_and_labels_of_one_dataset_in_one_command(folders, capsys, tmp_path):
    labelled = [
        pictures.table(count, seed).add_column("label", [number % 2 for number in range(count)])
        for seed, count in enumerate((16, 6))
    ]
    parquet_folder(tmp_path / "data", *labelled)
    argv = [folders / "run", "--dataset_name", tmp_path / "data", "--num_workers", 0, "--output", tmp_path / "e.json"]
    argv += ["--sizes", "small", "--dense_image_size", 16]
    status, out, err = command(capsys, *argv, "--tasks", "segmentation,knn", "--k", "5", "--ignore_index", "3,-1")
    assert status == 0, err
    assert out.splitlines()[2].split() == ["size", "5-NN", "mIoU", "pixels", "20-NN", "mIoU", "20-NN", "pixels"]
    knn, miou = load_evaluations(tmp_path / "e.json")[:2]
    assert (knn.metric, miou.metric) == ("knn_accuracy", "segmentation_miou")
    assert miou.settings["ignored"] == [-1, 3, 255] and list(miou.details["iou"]) == ["0", "1", "2"]
    status, _, err = command(capsys, *argv, "--tasks", "segmentation", "--mask_column", "label")
    assert status == 2 and "its mask" in err
    status, _, err = command(capsys, *argv, "--tasks", "segmentation", "--num_classes", "2")
    assert status == 2 and re.search(r"Row 0:\d of the train split has a pixel of the class \d, but classes", err)
    argv[2] = folders / "images"
    status, _, err = command(capsys, *argv, "--tasks", "segmentation")
    words = "The dataset has no column of masks (its columns: image, label): pass --mask_column with the one to use, "
    words += "or give a dataset that has one."
    assert status == 2 and words in err


@pytest.mark.slow
def test_two_processes_measure_patches_as_one_does(folders, capsys, tmp_path):
    parquet_folder(tmp_path / "data", pictures.table(14, depth=True), pictures.table(7, seed=1, depth=True))
    argv = [str(folders / "run"), "--dataset_name", str(tmp_path / "data"), "--num_workers", "1"]
    argv += ["--tasks", "segmentation,depth,correspondence", "--depth_scale", "1000"]
    argv += ["--sizes", "small,32x3", "--batch_size", "2"]
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "script.py")]
    run_python(*launch, *argv, "--output", str(tmp_path / "two.json"))
    status, _, err = command(capsys, *argv, "--output", tmp_path / "one.json")
    assert status == 0, err
    one, two = (load_evaluations(tmp_path / f"{name}.json") for name in ("one", "two"))
    assert one == two and len(one) == 2 * (4 + 2 + 4)


def test_backgrounds_by_masks_and_by_the_challenge_s_folder(folders, capsys, tmp_path):
    parquet_folder(tmp_path / "masked", masked_table(60), masked_table(30, seed=6, classes=3))
    challenge_folder(tmp_path / "bg_challenge")
    argv = [folders / "run", "--num_workers", 0, "--sizes", "16x1", "--tasks", "knn,backgrounds", "--k", 3]
    for name, kinds in (("masked", 5), ("bg_challenge", 4)):
        output = tmp_path / f"{name}.json"
        pictures_argv = ["--dataset_name", tmp_path / name, "--examples", tmp_path / f"{name}.png"]
        status, out, err = command(capsys, *argv, *pictures_argv, "--output", output)
        assert status == 0, err
        assert Image.open(tmp_path / f"{name}.png").height == 4 + kinds * 68  # a row of 64 pixels for each kind
        records = load_evaluations(output)
        assert [record.metric for record in records[1:]] == ["backgrounds_accuracy"] * kinds + ["background_gap"]
        assert "BG mixed_rand" in out and "BG gap" in out
    assert "bg_challenge" == records[0].dataset and records[0].holdout == 0.5
    status, out, err = command(capsys, *argv, "--dataset_name", folders / "images", "--output", tmp_path / "e.json")
    assert (
        status == 2
        and (
            "The task backgrounds needs a mask for each test image: the dataset has no column of masks (its columns: "
            "image, label): pass --mask_column with the one to use, or give a dataset that has one."
        )
        in err
    )
