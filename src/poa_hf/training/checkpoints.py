"""Checkpoint folders that are complete or absent, and logs that forget what a checkpoint has not seen."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNFINISHED = ".unfinished-"  # being written or deleted: never looked at, removed when a run starts


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


def remove_unfinished(output_dir: Path) -> None:
    for path in output_dir.glob(_UNFINISHED + "*"):
        shutil.rmtree(path, ignore_errors=True)


def truncate_jsonl(path: Path, last_step: int) -> None:
    """Drop the lines after `last_step` (and a half-written one), which a resumed run will write again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= last_step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    aside = path.with_name(_UNFINISHED + path.name)
    aside.write_text("".join(kept))
    aside.replace(path)


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
