import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from poa_hf.cli import configs
from poa_hf.cli.configs import find_config
from poa_hf.cli.main import COMMANDS, main, run

from ..conftest import QUICKSTART, ROOT, TINY, run_python


def refused(capsys, *argv: str) -> str:
    assert main(list(argv)) == 2
    message = capsys.readouterr().err
    assert message.startswith("poa: ") and message.count("\n") == 1, message
    return message


def test_pretrain_then_extract(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["pretrain", "--config", QUICKSTART, *TINY.split(), "--output_dir", str(run)]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"Step 2 written to {run} after .*\nnext: poa report {run}\n +poa evaluate {run}\n", out), out
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
        ("--unknown 3", "--unknown is not an option of poa pretrain"),
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
    commands = "choose from check, compare, convert, embed, evaluate"
    assert f"'train' is not a command of poa: {commands}" in refused(capsys, "train")
    assert "'evalute' is not a command of poa: did you mean evaluate?" in refused(capsys, "evalute")
    assert "'--hlep' is not an option of poa: did you mean --help?" in refused(capsys, "--hlep")
    assert main([]) == 0 and "poa pretrain" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert re.fullmatch(r"poa_hf \S+ \(Python \S+, torch \S+, transformers \S+\)\n", capsys.readouterr().out)
    assert "'vit_large' belongs to no option: see poa pretrain --help" in refused(capsys, "pretrain", "vit_large")
    assert "Give --size and --output" in refused(capsys, "extract", "run")
    assert "--siz is not an option of poa extract: did you mean --size?" in refused(capsys, "extract", "--siz", "small")


def test_recipes_are_listed_and_found(capsys):
    assert main(["pretrain", "--list_configs"]) == 0
    printed = capsys.readouterr().out
    for path in (ROOT / "configs").glob("*.yaml"):
        (line,) = [line for line in printed.splitlines() if line.strip().startswith(f"{path.stem} ")]
        assert 20 < len(line.split(maxsplit=1)[1]) and line.endswith((".", ")")) and len(line) <= 130
    for path in (ROOT / "configs" / "accelerate").iterdir():
        assert any(Path(line.strip()).name == path.name for line in printed.splitlines())
    assert find_config("vit_large").read_bytes() == (ROOT / "configs" / "vit_large.yaml").read_bytes()
    assert "did you mean vit_large?" in refused(capsys, "pretrain", "--config", "vit_larg")
    assert "choose from dinov2_large_warm_start, " in refused(capsys, "pretrain", "--config", "mine")
    assert "(give --config vit_large for" in refused(capsys, "pretrain", "--config", "nowhere/vit_large.yaml")


def test_where_the_recipes_lie_without_symbolic_links():
    assert configs.FOLDER.samefile(ROOT / "configs")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_starts_at_once(command):
    """CPU seconds of `poa --help` and `poa X --help`, the best of three, and what they import."""
    code = (
        "import atexit, os, sys\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'numpy', 'huggingface_hub'}\n"
        "atexit.register(lambda: print(*heavy & set(sys.modules), sum(os.times()[:2]), file=sys.stderr))\n"
        "from poa_hf.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    seconds = []
    for _ in range(3):
        result = run_python("-c", code, *filter(None, [command]), "--help")
        *imported, used = result.stderr.split()
        assert not imported and result.stdout.startswith("usage: poa")
        seconds.append(float(used))
        if used < "0.2":
            break
    assert min(seconds) < (1.0 if command else 0.5)


def test_a_closed_pipe_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    for arguments in (["--help"], ["pretrain", "--help"], ["pretrain", "--list_configs"]):
        command = [sys.executable, "-m", "poa_hf.cli", *arguments]
        result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
        assert (result.returncode, result.stderr) == (141, "")
    os.close(writer)


def test_a_broken_pipe_elsewhere_is_a_mistake(capsys):
    def command(argv):
        raise BrokenPipeError(32, "Broken pipe")

    assert run(command, []) == 2 and "Broken pipe" in capsys.readouterr().err


@pytest.mark.slow
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
