"""The folder of a run: checkpoints that are complete or absent, and no run on top of another."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

_UNFINISHED = ".unfinished-"  # being written or deleted: never looked at, removed when a run starts
_RUN_FILES = ("config.json", "config.yaml", "training_args.json", "metrics.jsonl", "image_ids-*.jsonl",
              "model.safetensors", "preprocessor_config.json")  # fmt: skip
_NOT_ARCHITECTURE = {"transformers_version", "architectures", "dtype", "_name_or_path", "auto_map"}


def checkpoints(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


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


def prune(output_dir: Path, keep: int | None) -> None:
    """Delete the oldest checkpoints beyond `keep`."""
    for path in checkpoints(output_dir)[: -keep if keep else 0]:
        _delete(path)


def prepare_folder(
    folder: Path, resume: bool | str | None, overwrite: bool, is_main: bool, wait_for_everyone: Callable[[], None]
) -> Path | None:
    """Make the folder of a run ready, and give the checkpoint to go on from, if any.

    Raises:
        ValueError: If the folder holds another run that is neither resumed nor to be overwritten, or `resume` is a path
            without a checkpoint.
    """
    checkpoint = None
    if resume in (None, False, "", "false", "False"):
        occupied = bool(checkpoints(folder)) or any((folder / name).exists() for name in _RUN_FILES)
        wait_for_everyone()
        if occupied and not overwrite:
            raise ValueError(
                f"{folder} holds another run: give another output_dir, resume_from_checkpoint to continue it, or "
                "overwrite_output_dir to delete it."
            )
        if occupied and is_main:
            for path in [*checkpoints(folder), *(path for name in _RUN_FILES for path in folder.glob(name))]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    elif resume in (True, "true", "True"):
        checkpoint = next(reversed(checkpoints(folder)), None)
        if checkpoint is None and is_main:
            logger.warning("%s has no checkpoint yet: starting from step 0.", folder)
    else:
        checkpoint = Path(resume)
        if not (checkpoint / "trainer_state.json").exists():
            found = ", ".join(str(path) for path in checkpoints(folder)) or "none"
            raise ValueError(f"{checkpoint} is not a checkpoint of a run; those in {folder}: {found}.")
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(_UNFINISHED + "*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    wait_for_everyone()
    return checkpoint


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
    """Remove a folder such that a crash in between leaves nothing that looks like it."""
    if path.exists():
        doomed = path if path.name.startswith(_UNFINISHED) else path.with_name(f"{_UNFINISHED}deleted-{path.name}")
        if doomed != path:
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
        shutil.rmtree(doomed)


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
