"""Runs in processes of their own: killed and resumed, and on two processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from poa_hf.cli.main import main

from ..conftest import run_python

SCRIPT = str(Path(__file__).parents[2] / "examples" / "pretrain.py")
OPTIONS = """
max_steps: 12
per_device_train_batch_size: 8
warmup_steps: 2
freeze_last_layer_steps: 1
masked_prediction_start_step: 1
teacher_temperature_warmup_steps: 4
global_crop_size: 32
local_crop_size: 16
num_local_crops: 2
dataloader_num_workers: 2
logging_steps: 1
save_steps: 1
log_image_ids: true
disable_tqdm: true
model:
  num_prototypes: [12, 20]
  head_hidden_size: 24
  head_bottleneck_size: 8
  backbone_config:
    hidden_size: 32
    num_attention_heads: 4
    num_hidden_layers: 3
    min_hidden_size: 16
    min_num_hidden_layers: 1
    image_size: 32
    patch_size: 8
    layerscale_value: 0.1
    drop_path_rate: %s
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(OPTIONS % 0.3)
    return str(path)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def run_until(argv, step: int, folder: Path) -> None:
    """Start a run in a process group of its own, and kill -9 all of it once the checkpoint of `step` is there."""
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *argv],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / f"checkpoint-{step}").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the run ended before the step"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["textures", "parquet"])
def test_killed_twice_and_resumed_is_the_same_to_the_last_bit(config, tmp_path, dataset):
    argv = ["--config", config]
    if dataset == "parquet":
        argv += ["--dataset_name", str(parquet_folder(tmp_path / "images"))]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_python(SCRIPT, *argv, "--output_dir", str(whole), env=ENVIRONMENT)
    argv += ["--output_dir", str(parts)]
    run_until(argv, 5, parts)
    run_until([*argv, "--resume_from_checkpoint"], 9, parts)
    run_python(SCRIPT, *argv, "--resume_from_checkpoint", env=ENVIRONMENT)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert lines(whole / "image_ids-0.jsonl") == lines(parts / "image_ids-0.jsonl")
    assert [line["step"] for line in lines(parts / "metrics.jsonl")] == list(range(1, 13))
    assert len(list(parts.glob("checkpoint-*"))) == 2 and not list(parts.glob(".unfinished*"))


def parquet_folder(folder: Path) -> Path:
    """Sixty images in three parquet files of two row groups."""
    import datasets

    from poa_hf.data.textures import TextureDataset

    folder.mkdir()
    source = TextureDataset(seed=5)
    for part in range(3):
        rows = {"image": [source[20 * part + i]["image"] for i in range(20)]}
        features = datasets.Features({"image": datasets.Image()})
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(str(folder / f"train-{part:05d}-of-00003.parquet"), batch_size=10)
    return folder


def launch(num_processes: int, *argv: str, script: str = SCRIPT) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(num_processes), "--master-port", str(port)]
    run_python(*launcher, script, *argv, env=ENVIRONMENT, timeout=300)


def test_two_processes_match_one(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(OPTIONS % 0.0)
    argv = [
        "--config",
        str(config),
        "--max_steps",
        "5",
        "--model.koleo_weight",
        "0",
        "--same_sub_network",
        "--save_steps",
        "99",
    ]
    assert main(["pretrain", *argv, "--output_dir", str(tmp_path / "one")]) == 0
    launch(2, *argv, "--output_dir", str(tmp_path / "two"), "--per_device_train_batch_size", "4")
    one, two = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    names = [name for name in one[0] if "loss" in name]
    assert len(names) == 11 and len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert a["sub_network"] == b["sub_network"]
        for name in names:
            assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-6), (a["step"], name)
    ids = [lines(tmp_path / "two" / f"image_ids-{rank}.jsonl") for rank in (0, 1)]
    joined = [a["image_ids"] + b["image_ids"] for a, b in zip(*ids, strict=True)]
    assert joined == [line["image_ids"] for line in lines(tmp_path / "one" / "image_ids-0.jsonl")]
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all((a[name] - b[name]).abs().max() < 1e-4 for name in a)


@pytest.mark.slow
def test_two_processes_draw_their_own_sub_networks_skip_together_and_resume(config, tmp_path):
    """A loss that is not finite on one process only: both skip the step, and the run goes on from its checkpoint."""
    script = tmp_path / "poisoned.py"
    script.write_text(
        "import os, sys\n"
        "import torch\n"
        "from poa_hf import PoaForPreTraining\n"
        "from poa_hf.cli import pretrain, run\n"
        "forward, calls = PoaForPreTraining.forward, []\n"
        "def poisoned(self, *args, **kwargs):\n"
        "    output = forward(self, *args, **kwargs)\n"
        "    calls.append(str(kwargs['sub_network']))\n"
        "    if len(calls) == 3 and torch.distributed.get_rank() == 1:\n"
        "        output.loss = output.loss * float('nan')\n"
        "    return output\n"
        "PoaForPreTraining.forward = poisoned\n"
        "status = run(pretrain, sys.argv[1:])\n"
        f"open(r'{tmp_path}/sizes-' + os.environ['RANK'], 'w').write(' '.join(calls))\n"
        "sys.exit(status)\n"
    )
    argv = ["--config", config, "--max_steps", "6", "--save_steps", "2", "--output_dir", str(tmp_path / "run")]
    launch(2, *argv, script=str(script))
    found = lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["nonfinite_steps"] for line in found] == [0, 0, 1, 1, 1, 1] and "loss" not in found[2]
    sizes = [(tmp_path / f"sizes-{rank}").read_text().split() for rank in (0, 1)]
    assert len(sizes[0]) == len(sizes[1]) == 6 and sizes[0] != sizes[1]
    launch(2, *argv, "--max_steps", "8", "--resume_from_checkpoint")
    found = lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in found] == list(range(1, 9)) and found[-1]["nonfinite_steps"] == 1
