"""Runs of the command in processes that a server forks, to be killed at any moment or to meet a full disk."""

import contextlib
import ctypes
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from poa_hf.cli.main import main
from poa_hf.runs.checkpoints import checkpoint_folders
from poa_hf.runs.soundness import checkpoint_damage

from .processes import _CONTEXT

OPTIONS = """
dataset_name: {dataset}
streaming: {streaming}
dataloader_num_workers: {workers}
max_steps: {steps}
per_device_train_batch_size: 4
warmup_steps: 2
freeze_last_layer_steps: 1
masked_prediction_start_step: 1
teacher_temperature_warmup_steps: 4
global_crop_size: 16
local_crop_size: 8
num_local_crops: 1
logging_steps: 1
save_steps: 1
log_image_ids: true
disable_tqdm: true
model:
  num_prototypes: [8]
  head_hidden_size: 16
  head_bottleneck_size: 8
  backbone_config:
    hidden_size: 16
    num_attention_heads: 4
    num_hidden_layers: 1
    min_hidden_size: 8
    min_num_hidden_layers: 1
    image_size: 16
    patch_size: 8
    drop_path_rate: 0.3
"""
GRACEFUL = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PATIENCE = 60  # seconds after which a process hangs


def pictures(folder: Path) -> Path:
    """Forty small image files of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
    return folder


def command(run: Path, config: Path) -> list[str]:
    """What a user writes to start a run or to go on with it."""
    if checkpoint_folders(run):
        return ["resume", str(run)]
    return ["pretrain", "--config", str(config), "--output_dir", str(run), "--resume_from_checkpoint"]


@dataclass
class Life:
    """The processes of a run from a start to its end."""

    argv: list[str]
    log: Path
    count: int = 1
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        shared = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if self.count > 1:
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(self.count)}
            shared |= {"LOCAL_WORLD_SIZE": str(self.count)}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if self.count > 1 else {} for rank in range(self.count)]
        self.processes = [
            _CONTEXT.Process(target=_run, args=(shared | rank, self.argv, str(self.log))) for rank in ranks
        ]
        for process in self.processes:
            process.start()

    def send(self, number: int, only: int | None = None) -> None:
        """Send a signal to one process and its workers, or to all."""
        for rank, process in enumerate(self.processes):
            if only in (None, rank) and process.is_alive():
                # until it has a group of its own, the process alone
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    own_group = os.getpgid(process.pid) == process.pid
                    (os.killpg if own_group else os.kill)(process.pid, number)

    def statuses(self) -> list[int]:
        """Wait for the end, as a launcher does: when one process fails, the others are told to end."""
        deadline = time.monotonic() + PATIENCE
        told = False
        while any(process.is_alive() for process in self.processes):
            if not told and any(process.exitcode not in (None, 0) for process in self.processes):
                self.send(signal.SIGTERM)
                told, deadline = True, min(deadline, time.monotonic() + 15)
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                assert told, f"a process hangs: {self.log.read_text()}"
            time.sleep(0.01)
        return [process.exitcode for process in self.processes]


def _run(environment: dict[str, str], argv: list[str], log: str) -> None:
    os.setsid()
    # data workers are forked, as the command forks them on Linux; a forked server would load all libraries again
    multiprocessing.set_start_method("fork", force=True)
    os.environ.update(environment)
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    status = main(argv)
    sys.stdout.flush()
    sys.exit(status)


def delay(rng: random.Random, duration: float) -> float:
    """A moment of a run, a little after its end at most."""
    return rng.uniform(0, 1.1 * duration)


_NEW_MOUNTS, _NEW_USER, _PRIVATE, _REMOUNT = 0x00020000, 0x10000000, 0x40000 | 0x4000, 0x20


def mount_small_disk(folder: Path, size: int, again: bool = False) -> None:
    """Give this process, and no other, a disk of so many bytes in memory; `again` changes its size.

    Raises:
        OSError: If the system does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function, *args) -> None:
        if function(*args):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    if not again:
        call(libc.unshare, _NEW_MOUNTS if os.getuid() == 0 else _NEW_MOUNTS | _NEW_USER)
        call(libc.mount, b"none", b"/", None, ctypes.c_ulong(_PRIVATE), None)
    flags = ctypes.c_ulong(_REMOUNT if again else 0)
    call(libc.mount, b"tmpfs", str(folder).encode(), b"tmpfs", flags, f"size={size}".encode())


def disks_can_be_mounted(folder: str) -> None:
    """For a process of its own: end with status 0 if it can mount a disk."""
    mount_small_disk(Path(folder), 1_000_000)


def meet_a_full_disk(disk: str, size: int, config: str, log: str, expected: str) -> None:
    """For a process of its own: fill a disk of this size by a run, make room, go on, and compare the weights."""
    mount_small_disk(Path(disk), size)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    run = Path(disk) / "run"
    status = main(command(run, Path(config)))
    assert status in (0, 2), status
    if status:
        last = Path(log).read_text().strip().splitlines()[-1]
        assert last.startswith("poa: ") and "cannot be " in last and "No space left on device" in last, last
        assert not list(run.glob(".unfinished*")), list(run.iterdir())
    for checkpoint in checkpoint_folders(run):
        assert checkpoint_damage(checkpoint) is None, checkpoint_damage(checkpoint)
    mount_small_disk(Path(disk), 1 << 28, again=True)
    assert main(command(run, Path(config))) == 0
    assert (run / "model.safetensors").read_bytes() == Path(expected).read_bytes()
    print("full" if status else "fits", flush=True)
