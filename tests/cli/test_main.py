import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from poa_hf.cli.main import main

from ..conftest import QUICKSTART, ROOT, TINY, run_python


def refused(capsys, *argv: str) -> str:
    assert main(list(argv)) == 2
    message = capsys.readouterr().err
    assert message.startswith("poa: ") and message.count("\n") == 1, message
    return message


def test_pretrain_then_extract(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["pretrain", "--config", QUICKSTART, *TINY.split(), "--output_dir", str(run)]) == 0
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["max_steps"] == 2 and saved["model"]["backbone_config"]["num_hidden_layers"] == 2
    assert main(["extract", str(run), "--size", "small", "--output", str(tmp_path / "small")]) == 0
    assert (tmp_path / "small" / "model.safetensors").exists()
    assert "holds another run" in refused(capsys, "pretrain", "--config", QUICKSTART, "--output_dir", str(run))
    again = ["--config", str(run / "config.yaml"), "--max_steps", "3", "--resume_from_checkpoint"]
    assert main(["pretrain", *again]) == 0
    assert (run / "checkpoint-3").is_dir()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--unknown 3", "--unknown is not a known key"),
        ("--model.backbone_config.min_hidden_size 40", "min_hidden_size 40 is not a positive multiple of 16"),
        ("--model.backbone_config.min_hidden_size 128", "min_hidden_size 128 is larger than hidden_size 64"),
        ("--model.backbone_config.image_size 33", "image_size 33 is not a multiple of patch_size 8"),
        ("--global_crop_size 36", "global_crop_size 36 is not a multiple of 8"),
        ("--per_device_train_batch_size 0", "per_device_train_batch_size is 0"),
        ("--dataset_name ./nowhere", "nowhere"),
        ("--dataset_name {empty}", "empty"),
        ("--dataset_name {images} --image_column photo", "photo"),
        ("--dataset_name {images} --dataset_split test", "test"),
        ("--config missing.yaml", "missing.yaml does not exist"),
    ],
)
def test_mistakes_are_refused_before_any_work(tmp_path, capsys, options, words):
    import datasets
    from PIL import Image

    (tmp_path / "empty").mkdir()
    table = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))] * 4, "label": [0] * 4})
    (tmp_path / "images").mkdir()
    table.to_parquet(str(tmp_path / "images" / "train-00000-of-00001.parquet"))
    capsys.readouterr()
    output = tmp_path / "run"
    options = options.format(empty=tmp_path / "empty", images=tmp_path / "images").split()
    config = [] if "--config" in options else ["--config", QUICKSTART]
    assert words in refused(capsys, "pretrain", *config, *options, "--output_dir", str(output))
    assert not output.exists()


def test_other_mistakes_of_the_command(capsys):
    assert "'train' is not a command: use one of pretrain, extract" in refused(capsys, "train")
    assert main([]) == 0 and "poa pretrain" in capsys.readouterr().out


def test_the_script_of_the_examples_is_the_same_job(tmp_path):
    script = str(ROOT / "examples" / "pretrain.py")
    run_python(script, "--config", QUICKSTART, *TINY.split(), "--output_dir", str(tmp_path / "run"))
    assert (tmp_path / "run" / "model.safetensors").exists()
    result = run_python(script, "--max_step", "3", check=False)
    assert result.returncode == 2 and result.stderr.strip().endswith("did you mean --max_steps?")


def test_the_command_is_installed():
    command = Path(sys.executable).with_name("poa")
    if not command.exists():
        pytest.skip("the package is not installed beside this interpreter")
    result = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "poa extract" in result.stdout
