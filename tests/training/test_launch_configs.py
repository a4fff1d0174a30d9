"""The files of configs/accelerate."""

import json
import subprocess

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from ..conftest import ROOT, run_python
from .processes import LAUNCH_CONFIGS, launch_environment, losses
from .test_processes import ENVIRONMENT, OPTIONS, SCRIPT

TYPES = {
    "single_gpu": DistributedType.NO,
    "multi_gpu": DistributedType.MULTI_GPU,
    "multi_node": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
}


def test_all_files_are_known():
    assert {path.stem for path in LAUNCH_CONFIGS.glob("*.yaml")} == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_accelerate_reads_them(name):
    path = LAUNCH_CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == TYPES[name]
    assert config.mixed_precision == "bf16" and not config.use_cpu
    assert config.num_machines == (4 if name == "multi_node" else 1) and config.num_processes % config.num_machines == 0
    launch = [line for line in path.read_text().splitlines() if "accelerate launch --config_file" in line]
    assert f"configs/accelerate/{path.name}" in launch[0]


def test_what_the_launcher_makes_of_them():
    fsdp = launch_environment("fsdp2.yaml")
    assert (fsdp["ACCELERATE_USE_FSDP"], fsdp["FSDP_VERSION"], fsdp["FSDP_AUTO_WRAP_POLICY"]) == (
        "true",
        "2",
        "NO_WRAP",
    )
    deepspeed = launch_environment("deepspeed_zero2.yaml")
    assert (deepspeed["ACCELERATE_USE_DEEPSPEED"], deepspeed["ACCELERATE_DEEPSPEED_ZERO_STAGE"]) == ("true", "2")
    for plain in ("multi_gpu.yaml", "multi_node.yaml"):
        assert not {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & launch_environment(plain).keys()


def test_the_slurm_script_is_a_script():
    script = LAUNCH_CONFIGS / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert "examples/pretrain.py" in text and (ROOT / "examples" / "pretrain.py").exists()
    assert "--resume_from_checkpoint" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multi_gpu", "fsdp2"])
def test_accelerate_launch(name, tmp_path):
    """From the command line to a model, with as many processes as asked for."""
    config = tmp_path / "config.yaml"
    config.write_text(OPTIONS % 0.0)
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(LAUNCH_CONFIGS / f"{name}.yaml")]
    launcher += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    argv = ["--config", str(config), "--max_steps", "3", "--output_dir", str(tmp_path / "run")]
    run_python(*launcher, SCRIPT, *argv, env={**ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}, timeout=220)
    assert list(losses(tmp_path / "run")) == [1, 2, 3]
    states = {path.name for path in (tmp_path / "run" / "checkpoint-3").glob("data_state_*.json")}
    assert states == {"data_state_0.json", "data_state_1.json"}, "two processes took part in one run"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["architectures"] == ["PoaForPreTraining"]
