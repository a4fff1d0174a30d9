"""Checkpoints of a run: which are complete, where to resume, and a folder that holds one run only."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedConfig

from .atomic import delete, move_file, remove_leftovers
from .layout import (
    ABANDONED,
    CHECKPOINT,
    CHECKPOINT_PARTS,
    CONFIG,
    OPTIMIZER_STATE,
    WEIGHTS,
    WEIGHTS_INDEX,
    RunFolder,
    has_optimizer_state,
    is_checkpoint_name,
)

logger = logging.getLogger(__name__)

MAX_SHARD_SIZE = "5GB"  # of one file of weights; larger models are written as several files with an index
# Fields that may change when a run is resumed; all others decide which parameters exist and what they compute.
_NOT_ARCHITECTURE = {
    *("transformers_version", "architectures", "dtype", "_name_or_path", "auto_map", "warm_started_from"),
    *("koleo_weight", "intact_weight", "student_temperature", "drop_path_rate", "hidden_dropout_prob"),
    *("attention_probs_dropout_prob", "sampling_bias", "initializer_range", "layerscale_value"),
}


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint, `checkpoint-<step>`."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, from which it can be resumed, oldest first."""
    return [path for path in _checkpoint_folders(output_dir) if not missing_parts(path)]


def checkpoints_with_model(output_dir: Path) -> list[Path]:
    """The checkpoints whose model can be loaded, oldest first, whether or not the run can be resumed from them."""
    return [path for path in _checkpoint_folders(output_dir) if (path / CONFIG).exists() and has_weights(path)]


def missing_parts(checkpoint: Path) -> list[str]:
    """The names of the files that a checkpoint lacks: of the model, the optimizer, the trainer or the data."""
    missing = [name for name in CHECKPOINT_PARTS if not (checkpoint / name).exists()]
    missing += [] if has_weights(checkpoint) else [WEIGHTS]
    return missing + ([] if has_optimizer_state(checkpoint) else [OPTIMIZER_STATE])


def has_weights(folder: Path) -> bool:
    """Whether a model's weights exist: one file, or every file that an index lists."""
    index = folder / WEIGHTS_INDEX
    if not index.exists():
        return (folder / WEIGHTS).exists()
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError):
        return False
    return all((folder / name).exists() for name in names)


def replace_model(folder: Path, new: Path) -> None:
    """Move a saved model from the folder `new` into `folder`, replacing one that exists.

    The configuration is removed first and moved last, since weights without one are never read. The files of the old
    weights are removed too: a single old file would be loaded instead of several new ones.
    """
    (folder / CONFIG).unlink(missing_ok=True)
    for path in [*folder.glob("model*.safetensors"), folder / WEIGHTS_INDEX]:
        path.unlink(missing_ok=True)
    for path in sorted(new.iterdir(), key=lambda path: path.name == CONFIG):
        move_file(path, folder / path.name)
    new.rmdir()


def prune(output_dir: Path, keep: int | None, best_step: int | None = None) -> None:
    """Delete the complete checkpoints before the last `keep`, except that of the best step; None keeps all."""
    for path in checkpoints(output_dir)[: -keep if keep else 0]:
        if step_of(path) != best_step:
            delete(path)


def find_checkpoint(folder: Path, resume: bool | str | None, overwrite: bool) -> Path | None:
    """Find the checkpoint to resume from, or None to start anew. Nothing on the disk is changed.

    Args:
        folder: The folder of the run, which need not exist.
        resume: The path of a checkpoint, True for the last complete one in `folder`, or None or False to start anew.
            True and False may also be written as text.
        overwrite: Whether another run in the folder may be deleted.

    Returns:
        The checkpoint, or None if the run starts anew.

    Raises:
        ValueError: If the folder cannot hold a run, holds another run that is neither resumed nor to be overwritten, or
            `resume` is not a complete checkpoint.
    """
    for parent in (folder, *folder.parents):
        if parent.exists() and not (parent.is_dir() and os.access(parent, os.W_OK)):
            raise ValueError(f"{parent} is not a folder that can be written to: give another output_dir.")
    run = RunFolder(folder)
    occupied = bool(checkpoints(folder)) or run.config.exists() or _has_content(run.metrics)
    if resume in (None, False, "", "false", "False"):
        if occupied and not overwrite:
            raise ValueError(
                f"{folder} holds another run: give another output_dir, resume_from_checkpoint to continue it, or "
                "overwrite_output_dir to delete it."
            )
        return None
    if resume in (True, "true", "True"):
        return next(reversed(checkpoints(folder)), None)
    checkpoint = Path(str(resume))
    if missing := missing_parts(checkpoint):
        complete = ", ".join(str(path) for path in checkpoints(folder)) or "none"
        lack = f"it lacks {', '.join(missing)}" if checkpoint.is_dir() else "it does not exist"
        raise ValueError(
            f"{checkpoint} is not a checkpoint that can be resumed from ({lack}): those in {folder} are {complete}."
        )
    if occupied and checkpoint.resolve().parent != folder.resolve() and not overwrite:
        raise ValueError(
            f"{folder} holds another run than {checkpoint}: give another output_dir, or overwrite_output_dir to delete "
            "it."
        )
    return checkpoint


def start_folder(folder: Path, checkpoint: Path | None, overwrite: bool) -> None:
    """Prepare the folder of a run that starts anew or resumes from `checkpoint`. Only one process calls this.

    With `overwrite`, all that belongs to an old run is removed: its checkpoints, evaluations and report too (`removed`
    in `layout.ENTRIES`). When a run goes back to one of its checkpoints, the later ones are renamed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    run = RunFolder(folder)
    resumed_here = checkpoint is not None and checkpoint.resolve().parent == folder.resolve()
    if overwrite and not resumed_here:
        for path in list(run.removed()):
            delete(path)
    # the final model of an earlier part of the run would be taken for that of this part
    run.config.unlink(missing_ok=True)
    if checkpoint is None or not resumed_here:
        return
    for later in checkpoints(folder):
        if step_of(later) > step_of(checkpoint):
            abandoned = later.with_name(ABANDONED + later.name)
            delete(abandoned)
            later.rename(abandoned)
            logger.warning("Going back to %s: %s is now %s.", checkpoint.name, later.name, abandoned)


def check_architecture(config: PreTrainedConfig, checkpoint: Path) -> None:
    """Check that a checkpoint's model has the architecture of `config`.

    Raises:
        ValueError: If it has another one, with the first field that differs.
    """
    saved = json.loads((checkpoint / CONFIG).read_text())
    current = json.loads(config.to_json_string(use_diff=False))
    for field, old, new in _differences(saved, current):
        raise ValueError(f"{checkpoint} has another architecture: its {field} is {old}, this model's is {new}.")


def _differences(saved: dict, current: dict, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    for key in sorted(saved.keys() & current.keys() - _NOT_ARCHITECTURE):
        if isinstance(saved[key], dict) and isinstance(current[key], dict):
            yield from _differences(saved[key], current[key], f"{prefix}{key}.")
        elif saved[key] != current[key]:
            yield f"{prefix}{key}", saved[key], current[key]


def _checkpoint_folders(output_dir: Path) -> list[Path]:
    return sorted((path for path in output_dir.glob(CHECKPOINT + "*") if is_checkpoint_name(path.name)), key=step_of)


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
