"""Folders of checkpoints, as a run writes them but for what is in their models."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerState

from poa_hf.runs.checksums import write_checksums
from poa_hf.runs.layout import CHECKPOINT_PARTS

PARTS = (*CHECKPOINT_PARTS, "model.safetensors", "optimizer.bin")


def checkpoint(run: Path, step: int, *without: str, checksums: bool = False) -> Path:
    """Write a sound checkpoint, but for the parts that it is to lack."""
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    parameter = torch.nn.Parameter(torch.arange(600.0))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(600)
    optimizer.step()
    (folder / "config.json").write_text('{"model_type": "poa"}')
    (folder / "counts.json").write_text(json.dumps({"global_batch_size": 4, "nonfinite_steps": 0, "in_a_row": 0}))
    (folder / "data_state_0.json").write_text('{"batch": 1}')
    TrainerState(global_step=step, log_history=[{"step": step}]).save_to_json(str(folder / "trainer_state.json"))
    save_file({"weight": parameter.detach()}, folder / "model.safetensors")
    torch.save(optimizer.state_dict(), folder / "optimizer.bin")
    for name in without:
        (folder / name).unlink()
    if checksums:
        write_checksums(folder)
    return folder


def flip_bit(path: Path, position: float = 0.9) -> None:
    """Flip one bit of a file, at a share of its length: by default among the last tensors."""
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 4
    path.write_bytes(content)
