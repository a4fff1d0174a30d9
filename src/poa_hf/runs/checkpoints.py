"""Checkpoints of a run: where to resume, which to delete, and a folder that holds one run only."""

from __future__ import annotations

import logging
import os
from collections.abc import Container
from pathlib import Path

from ..locations import named_path
from .atomic import delete, move_file, remove_leftovers
from .json_files import read_object
from .layout import (
    ABANDONED,
    CHECKPOINT,
    CHECKSUMS,
    CONFIG,
    WEIGHT_FILES,
    WEIGHTS_INDEX,
    RunFolder,
    is_checkpoint_name,
    is_weights,
)
from .soundness import checkpoint_damage, has_weights, missing_parts, model_damage, read_counts

logger = logging.getLogger(__name__)

MAX_SHARD_SIZE = "5GB"  # of one file of weights; larger models are written as several files with an index


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint, `checkpoint-<step>`."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoint_folders(output_dir: Path) -> list[Path]:
    """All folders with the name of a checkpoint, oldest first, complete or not."""
    named = (path for path in output_dir.glob(CHECKPOINT + "*") if is_checkpoint_name(path.name) and path.is_dir())
    return sorted(named, key=step_of)


def checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, from which it can be resumed, oldest first."""
    return [path for path in checkpoint_folders(output_dir) if not missing_parts(path)]


def checkpoints_with_model(output_dir: Path) -> list[Path]:
    """The checkpoints whose model can be loaded, oldest first, whether or not the run can be resumed from them."""
    return [path for path in checkpoint_folders(output_dir) if (path / CONFIG).exists() and has_weights(path)]


def replace_model(folder: Path, new: Path) -> None:
    """Move a saved model from the folder `new` into `folder`, replacing one that exists.

    The configuration is removed before the weights and moved after them, since weights without one are never read.
    Checksums are removed first and moved last, as they are those of a whole model. The files of the old weights are
    removed too: a single old file would be loaded instead of several new ones. Files with other names stay.
    """
    for name in (CHECKSUMS, CONFIG, WEIGHTS_INDEX):
        (folder / name).unlink(missing_ok=True)
    for path in filter(lambda path: is_weights(path.name), folder.glob(WEIGHT_FILES)):
        path.unlink(missing_ok=True)
    last = (CONFIG, CHECKSUMS)
    for path in sorted(new.iterdir(), key=lambda path: last.index(path.name) if path.name in last else -1):
        move_file(path, folder / path.name)
    new.rmdir()


def prune(
    output_dir: Path, keep: int | None, best_step: int | None = None, in_use: Container[Path] = frozenset()
) -> None:
    """Delete the complete checkpoints before the last `keep`; None keeps all.

    That of the best step stays, the last one from before a streak of steps that were not finite, and those in use.
    """
    safe = before_nonfinite_steps(output_dir)
    for path in checkpoints(output_dir)[: -keep if keep else 0]:
        if step_of(path) != best_step and path != safe and path not in in_use:
            delete(path)


def units_ordered_on(checkpoint: Path) -> int | None:
    """The images by whose features the units of a checkpoint's model were put in order; None if they were not."""
    count = read_object(checkpoint / CONFIG).get("units_ordered_on")
    return count if isinstance(count, int) else None


def is_finished(output_dir: Path, checkpoint: Path, max_steps: int) -> bool:
    """Whether a run has reached its last step and written its model, so that resuming it would change nothing."""
    last = (checkpoint_folders(output_dir) or [checkpoint])[-1]
    return checkpoint == last and step_of(last) == max_steps and model_damage(output_dir) is None


def before_nonfinite_steps(output_dir: Path) -> Path | None:
    """The last complete checkpoint whose own step was finite, so that it is from before any streak that follows."""
    return next((path for path in reversed(checkpoints(output_dir)) if not _in_streak(path)), None)


def _in_streak(checkpoint: Path) -> bool:
    """Whether the step of a checkpoint was not finite; False if its counts are damaged."""
    try:
        return read_counts(checkpoint)["in_a_row"] > 0
    except ValueError:
        return False


def find_checkpoint(folder: Path, resume: bool | str | None, overwrite: bool, thorough: bool = False) -> Path | None:
    """Find the checkpoint to resume from, or None to start anew. Nothing on the disk is changed.

    Args:
        folder: The folder of the run, which need not exist.
        resume: The path of a checkpoint, True for the last sound one in `folder`, or None or False to start anew.
            True and False may also be written as text.
        overwrite: Whether another run in the folder may be deleted.
        thorough: Whether to compare weights and optimizer state with their checksums, and to warn of damaged
            checkpoints that are passed over; otherwise only small files and sizes are compared.

    Returns:
        The checkpoint, or None if the run starts anew.

    Raises:
        ValueError: If the folder cannot hold a run, holds another run that is neither resumed nor to be overwritten, or
            there is no sound checkpoint of those that `resume` asks for.
    """
    nearest = _nearest_that_exists(folder)
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        raise ValueError(f"{nearest} is not a folder that can be written to: give another output_dir.")
    run = RunFolder(folder)
    if (path := run.misplaced()) is not None:
        found, kept = ("folder", "file") if path.is_dir() else ("file", "folder")
        raise ValueError(f"{path} is a {found}, but a run keeps a {kept} under this name: move it to another place.")
    occupied = bool(checkpoint_folders(folder)) or _holds_model(run) or _has_content(run.metrics)
    if resume in (None, False, "", "false", "False"):
        if occupied and not overwrite:
            raise ValueError(
                f"{folder} holds another run: give another output_dir, resume_from_checkpoint to continue it, or "
                "overwrite_output_dir to delete it."
            )
        return None
    if resume in (True, "true", "True"):
        return _last_sound(folder, overwrite, thorough)
    checkpoint = named_path(Path(str(resume)).expanduser())
    damage = checkpoint_damage(checkpoint, thorough) if checkpoint.is_dir() else "it does not exist"
    if damage:
        sound = ", ".join(str(path) for path in checkpoint_folders(folder) if not checkpoint_damage(path, thorough))
        raise ValueError(
            f"{checkpoint} is not a checkpoint that can be resumed from ({damage}): those in {folder} are "
            f"{sound or 'none'}."
        )
    if occupied and not _lies_in(checkpoint, folder) and not overwrite:
        raise ValueError(
            f"{folder} holds another run than {checkpoint}: give another output_dir, or overwrite_output_dir to delete "
            "it."
        )
    return checkpoint


def _nearest_that_exists(folder: Path) -> Path:
    """The folder, or what it would be made in, or what is in the way. Of folders above, nobody needs to write to."""
    for path in (folder, *folder.parents):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError, PermissionError):  # the last: its name cannot be looked up
            continue
        return path
    return folder


def _last_sound(folder: Path, overwrite: bool, thorough: bool) -> Path | None:
    """The last sound checkpoint from before any steps that were not finite, or else the last sound one.

    None if there are none at all, and nothing else that would be lost.
    """
    damages: dict[Path, str] = {}
    in_streak: list[Path] = []
    for path in reversed(checkpoint_folders(folder)):
        if damage := checkpoint_damage(path, thorough):
            damages[path] = damage
        elif _in_streak(path):
            in_streak.append(path)
        else:
            return _chosen(path, damages, in_streak, thorough)
    if in_streak:
        return _chosen(in_streak[0], damages, [], thorough)
    if damages:
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in damages.items())
        raise ValueError(
            f"{folder} has no sound checkpoint to resume from ({reasons}): restore one from a copy, or give "
            "overwrite_output_dir without resume_from_checkpoint to start anew."
        )
    if _holds_model(RunFolder(folder)) and not overwrite:
        raise ValueError(
            f"{folder} holds a model but no checkpoint to resume from: give another output_dir, or "
            "overwrite_output_dir to delete it."
        )
    return None


def _chosen(checkpoint: Path, damages: dict[Path, str], in_streak: list[Path], thorough: bool) -> Path:
    """Return the checkpoint, after a warning for each later one that is passed over."""
    if thorough:
        for path, reason in damages.items():
            if step_of(path) > step_of(checkpoint):
                logger.warning("%s is damaged (%s): resuming from %s instead.", path, reason, checkpoint.name)
        for path in in_streak:
            logger.warning("The loss was not finite at %s: resuming from %s instead.", path, checkpoint.name)
    return checkpoint


def check_recipe_is_own(folder: Path, checkpoint: Path | None, overwrite: bool) -> None:
    """Check that the recipe which a run will write into its folder replaces none that somebody else wrote there.

    Args:
        folder: The folder of the run.
        checkpoint: What `find_checkpoint` has found.
        overwrite: Whether another run in the folder may be deleted.

    Raises:
        ValueError: If it would.
    """
    run = RunFolder(folder)
    goes_on = checkpoint is not None and _lies_in(checkpoint, folder)
    # a run writes its arguments before its recipe
    if run.recipe.exists() and not (run.training_arguments.exists() or goes_on or overwrite):
        raise ValueError(
            f"{run.recipe} was not written by a run, whose recipe would replace it: give another output_dir, or move "
            "the file to another place."
        )


def start_folder(folder: Path, checkpoint: Path | None, overwrite: bool) -> None:
    """Prepare the folder of a run that starts anew or resumes from `checkpoint`. Only one process calls this.

    With `overwrite`, all that belongs to an old run is removed: its checkpoints, evaluations and report too (`removed`
    in `layout.ENTRIES`). When a run goes back to one of its checkpoints, the later ones are renamed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    run = RunFolder(folder)
    resumed_here = checkpoint is not None and _lies_in(checkpoint, folder)
    if overwrite and not resumed_here:
        for path in list(run.removed()):
            delete(path)
    # the final model of an earlier part of the run would be taken for that of this part
    run.checksums.unlink(missing_ok=True)
    run.config.unlink(missing_ok=True)
    if checkpoint is None or not resumed_here:
        return
    for later in checkpoint_folders(folder):
        if step_of(later) > step_of(checkpoint):
            abandoned = later.with_name(ABANDONED + later.name)
            delete(abandoned)
            later.rename(abandoned)
            logger.warning("Going back to %s: %s is now %s.", checkpoint.name, later.name, abandoned)


def _lies_in(checkpoint: Path, folder: Path) -> bool:
    """Whether a folder has a checkpoint, or a link to one that lies on another disk."""
    return Path(os.path.abspath(checkpoint)).parent.resolve() == folder.resolve()


def _holds_model(run: RunFolder) -> bool:
    return run.config.exists() or has_weights(run.path)


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
