"""The folder of a run: checkpoints that are complete or absent, and no run on top of another."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

logger = logging.getLogger(__name__)

_UNFINISHED = ".unfinished-"  # being written or deleted: never looked at, removed when a run starts
_ABANDONED = "abandoned-"  # a checkpoint after the one that a run went back to
_RUN_FILES = ("config.json", "config.yaml", "training_args.json", "metrics.jsonl", "evaluations.json",
              "latency-*.json", "compute.json", "conversion.json", "image_ids-*.jsonl", "model*.safetensors*",
              "preprocessor_config.json")  # fmt: skip
_PARTS_OF_A_CHECKPOINT = ("config.json", "trainer_state.json", "data_state_0.json")
MAX_SHARD_SIZE = "5GB"  # of a file of weights; larger models are written as several, with an index
# What may change from one part of a run to the next: the rest decides what parameters there are and what they compute.
_NOT_ARCHITECTURE = {"transformers_version", "architectures", "dtype", "_name_or_path", "auto_map", "koleo_weight",
                     "intact_weight", "student_temperature", "drop_path_rate", "hidden_dropout_prob", "sampling_bias",
                     "attention_probs_dropout_prob", "initializer_range", "layerscale_value",
                     "warm_started_from"}  # fmt: skip


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(filter(_is_complete, found), key=step_of)


def _is_complete(checkpoint: Path) -> bool:
    return all((checkpoint / part).exists() for part in _PARTS_OF_A_CHECKPOINT) and _has_weights(checkpoint)


def _has_weights(folder: Path) -> bool:
    """Whether the weights are there: one file, or every file that an index lists."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.exists():
        return (folder / SAFE_WEIGHTS_NAME).exists()
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return False
    return all((folder / name).exists() for name in names)


def replace_model(folder: Path, aside: Path) -> None:
    """Move a saved model from `aside` into `folder`, in the place of another one that may be there.

    The configuration goes first and comes last, as without it weights are not looked at. Files of the other model's
    weights go too: those of a model in one file would be loaded in the place of several.
    """
    (folder / "config.json").unlink(missing_ok=True)
    for path in [*folder.glob("model*.safetensors"), folder / SAFE_WEIGHTS_INDEX_NAME]:
        path.unlink(missing_ok=True)
    for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
        path.replace(folder / path.name)
    aside.rmdir()


@contextmanager
def written_aside(target: Path, is_main: bool, wait_for_everyone) -> Iterator[Path]:
    """Gives a folder beside `target` to write into; it becomes `target` when all processes have left the block.

    What a crash leaves behind has another name. The rename comes after the data is on disk, so that a power failure
    does not leave a complete-looking folder of empty files.
    """
    aside = target.with_name(_UNFINISHED + target.name)
    if is_main:
        _delete(aside)
        aside.mkdir(parents=True)
    wait_for_everyone()
    yield aside
    for path in aside.rglob("*"):
        if path.is_file():
            _flush(path)
    wait_for_everyone()
    if is_main:
        _flush(aside)
        if target.exists():
            _delete(target)
        aside.rename(target)
        _flush(target.parent)
    wait_for_everyone()


def prune(output_dir: Path, keep: int | None, best_step: int | None = None) -> None:
    """Delete the oldest checkpoints beyond `keep`, but for that of the best step."""
    for path in checkpoints(output_dir)[: -keep if keep else 0]:
        if step_of(path) != best_step:
            _delete(path)


def find_checkpoint(folder: Path, resume: bool | str | None, overwrite: bool) -> Path | None:
    """The checkpoint to go on from, if any; changes nothing.

    Raises:
        ValueError: If the folder cannot be a run's, holds another run that is neither resumed nor to be overwritten, or
            `resume` is a path without a complete checkpoint.
    """
    for parent in (folder, *folder.parents):
        if parent.exists() and not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise ValueError(f"{parent} is not a folder that can be written to: give another output_dir.")
    metrics = folder / "metrics.jsonl"
    occupied = bool(checkpoints(folder)) or (folder / "config.json").exists() or _has_content(metrics)
    if resume in (None, False, "", "false", "False"):
        if occupied and not overwrite:
            raise ValueError(
                f"{folder} holds another run: give another output_dir, resume_from_checkpoint to continue it, or "
                "overwrite_output_dir to delete it."
            )
        return None
    if resume in (True, "true", "True"):
        return next(reversed(checkpoints(folder)), None)
    checkpoint = Path(resume)
    if not _is_complete(checkpoint):
        found = ", ".join(str(path) for path in checkpoints(folder)) or "none"
        raise ValueError(f"{checkpoint} is not a checkpoint of a run; those in {folder}: {found}.")
    if occupied and checkpoint.resolve().parent != folder.resolve() and not overwrite:
        raise ValueError(
            f"{folder} holds another run than {checkpoint}: give another output_dir, or overwrite_output_dir to delete "
            "it."
        )
    return checkpoint


def start_folder(folder: Path, checkpoint: Path | None, overwrite: bool) -> None:
    """Make the folder ready for a run that starts anew (an old one in it is deleted) or goes on from `checkpoint`
    (whatever came after it is put aside). One process calls this."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(_UNFINISHED + "*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    within = checkpoint is not None and checkpoint.resolve().parent == folder.resolve()
    if not within and overwrite:
        for path in [*folder.glob("checkpoint-*"), *(path for name in _RUN_FILES for path in folder.glob(name))]:
            _delete(path)
    # The final model of a part that has ended would be taken for that of this one.
    (folder / "config.json").unlink(missing_ok=True)
    for later in checkpoints(folder) if within else []:
        if step_of(later) > step_of(checkpoint):
            aside = later.with_name(_ABANDONED + later.name)
            _delete(aside)
            later.rename(aside)
            logger.warning("Going back to %s: %s is now %s.", checkpoint.name, later.name, aside)


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def check_architecture(config: PreTrainedConfig, checkpoint: Path) -> None:
    """ValueError that names the first difference, if the checkpoint's model is of another architecture."""
    saved = json.loads((checkpoint / "config.json").read_text())
    current = json.loads(config.to_json_string(use_diff=False))
    for where, old, new in _differences(saved, current):
        raise ValueError(f"{checkpoint} is of another architecture: its {where} is {old}, this model's is {new}.")


def _differences(saved: dict, current: dict, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    for key in sorted(saved.keys() & current.keys() - _NOT_ARCHITECTURE):
        if isinstance(saved[key], dict) and isinstance(current[key], dict):
            yield from _differences(saved[key], current[key], f"{prefix}{key}.")
        elif saved[key] != current[key]:
            yield f"{prefix}{key}", saved[key], current[key]


def _delete(path: Path) -> None:
    """Remove a file or folder such that a crash in between leaves nothing that looks like it."""
    if path.is_dir() and not path.name.startswith(_UNFINISHED):
        doomed = path.with_name(f"{_UNFINISHED}deleted-{path.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        path = path.rename(doomed)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # some file systems cannot open a folder
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
