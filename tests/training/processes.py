"""Training in several processes at once, which a server forks when the libraries are already loaded: seconds, not tens
of seconds."""

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from poa_hf import PoaForPreTraining, PoaTrainer, PoaTrainingArguments

from ..conftest import tiny_backbone, tiny_config

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["tests.training.processes", "poa_hf.data.augmentation", "kornia.enhance", "kornia.filters"]
)


LAUNCH_CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"


def launch_environment(config: str) -> dict[str, str]:
    """What `accelerate launch --config_file` sets for this file of configs/accelerate, but for the precision."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    command = ["--config_file", str(LAUNCH_CONFIGS / config), "examples/pretrain.py"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(command))
    args.deepspeed_fields_from_accelerate_config = ""  # set by the launcher itself, for its messages
    environment = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(("FSDP_", "ACCELERATE_")) and name != "ACCELERATE_MIXED_PRECISION"
    }


def images(count: int = 24) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(count)]


def in_processes(count: int, function, *args, environment: dict[str, str] | None = None) -> None:
    """Call `function(*args)` in `count` processes, as a launcher starts them. Fails if it does in one of them."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), **(environment or {})}
    shared |= {"LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    processes = [
        _CONTEXT.Process(target=_child, args=({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, function, *args))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(100)
        assert [process.exitcode for process in processes] == [0] * count
    finally:
        for process in processes:
            process.kill()


def _child(environment: dict[str, str], function, *args) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*args)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train(output_dir: str, model: dict, options: dict, koleo_rows: int | None = None, callbacks=()) -> PoaTrainer:
    """A run of the tiny model with these fields of `PoaConfig` and of the arguments. `koleo_rows` makes KoLeo a mean
    over groups of so many images, as it is over processes with so many each."""
    if koleo_rows:
        _group_koleo(koleo_rows)
    torch.manual_seed(0)
    fields = dict(
        output_dir=output_dir, max_steps=10, warmup_steps=2, freeze_last_layer_steps=1,
        teacher_temperature_warmup_steps=4, masked_prediction_start_step=2, global_crop_size=32, local_crop_size=16,
        num_local_crops=2, dataloader_num_workers=0, logging_steps=1, save_steps=100, disable_tqdm=True,
        log_image_ids=True,
    )  # fmt: skip
    args = PoaTrainingArguments(**{**fields, **options})
    trainer = PoaTrainer(PoaForPreTraining(tiny_config(tiny_backbone(), **model)), args, images(), callbacks)
    trainer.train()
    return trainer


def _group_koleo(rows: int) -> None:
    from poa_hf.objective.losses import koleo

    def grouped(features: torch.Tensor) -> torch.Tensor:
        groups = features.split(rows)
        return sum(koleo(group) for group in groups) / len(groups)

    for module in list(sys.modules.values()):
        if module.__name__.startswith("poa_hf") and getattr(module, "koleo", None) is koleo:
            module.koleo = grouped


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, dict[str, float]]:
    """Every loss and the norm of the gradients, by step."""
    return {
        line["step"]: {name: value for name, value in line.items() if "loss" in name or name == "grad_norm"}
        for line in metrics(folder)
    }


def global_batches(folder: Path, processes: int) -> list[list[str]]:
    """The ids of the images of each batch, in the order of their places in it."""
    files = [(folder / f"image_ids-{rank}.jsonl").read_text().splitlines() for rank in range(processes)]
    return [sum((json.loads(line)["image_ids"] for line in lines), []) for lines in zip(*files, strict=True)]
