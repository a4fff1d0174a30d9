"""Bringing a run that was pushed to the Hub to this machine: its records, and its newest sound checkpoint.

Only files of known names and kinds are fetched: numbers in safetensors, JSON, YAML, and the optimizer's state, which is
read as tensors and numbers only. All of them are those of one commit, so that a run that is pushed meanwhile does no
harm.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from huggingface_hub import HfApi

from ..hub.client import Hub
from ..hub.retrying import Patience
from ..locations import split_revision
from .atomic import UNFINISHED, delete, write_bytes
from .checkpoints import checkpoint_folders, checkpoints, step_of
from .json_files import read_object
from .layout import (
    EVALUATIONS,
    METRICS,
    OWNER,
    RECIPE,
    TRAINING_ARGUMENTS,
    TRAINING_TIME,
    UNIT_ORDER,
    RunFolder,
)
from .lock import LockedError, locked_run
from .run_source import RunSource, unfinished_checkpoint
from .soundness import checkpoint_damage

logger = logging.getLogger(__name__)

_RECORDS = (TRAINING_ARGUMENTS, TRAINING_TIME, EVALUATIONS, OWNER, UNIT_ORDER, METRICS, RECIPE)
_NO_STEP = -1


def fetch_run(name: str, folder: Path, token: str | None = None) -> None:
    """Bring a run's folder up to date with the Hub: its records and its newest sound checkpoint.

    A folder that holds the same run already is left as it is, unless the Hub has a newer checkpoint.

    Args:
        name: The repository that the run was pushed to: `namespace/name`, or `namespace/name@revision`.
        folder: The folder of the run, which need not exist.
        token: A token that may read the repository; that of `hf auth login` or HF_TOKEN if not given.

    Raises:
        ValueError: If there is no such repository or no sound checkpoint in it, or the folder holds another run.
    """
    repo_id, revision = split_revision(name)
    source = RunSource(repo_id, Hub(HfApi(token=token), Patience(attempts=5)))
    commit, files = source.head(revision)
    here = [path for path in checkpoints(folder) if checkpoint_damage(path) is None]
    if RunFolder(folder).config.exists() or checkpoint_folders(folder):
        source.check_same_run(folder, commit, files)
    newest = source.newest(commit, files, after=step_of(here[-1]) if here else _NO_STEP, into=folder)
    if newest is None:
        if here:
            logger.info("%s has the newest checkpoint of %s already.", folder, name)
            return
        raise ValueError(
            f"{name} holds no checkpoint that a run can be resumed from: push with hub_strategy checkpoint, or start "
            f"another run from its model by poa pretrain --init_from {name}."
        )
    source.fetch_kept_model(commit, files, folder)
    for record in _RECORDS:  # the recipe is the last, as it makes the folder one of a run
        if record in files:
            write_bytes(folder / record, source.hub.read(repo_id, record, commit))
    if _keeps_best(folder):
        source.fetch_best(commit, files, unfinished_checkpoint(folder), folder)
    target = RunFolder(folder).checkpoint(newest.step)
    delete(target)
    unfinished_checkpoint(folder).rename(target)


def _keeps_best(folder: Path) -> bool:
    """Whether the run takes the model of its best evaluation at its end."""
    arguments = RunFolder(folder).training_arguments
    return arguments.is_file() and read_object(arguments).get("load_best_model_at_end") is True


def fetch_once(name: str, folder: Path, token: str | None = None) -> None:
    """Call `fetch_run` in one of the processes that a launcher has started on a machine; the others wait for it.

    Raises:
        ValueError: As for `fetch_run`.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        with locked_run(folder):
            return fetch_run(name, folder, token)
    done = folder / f"{UNFINISHED}fetched-{_launch()}"  # removed when the training begins
    while not done.exists():  # the launcher ends the others if the first one fails
        if os.environ.get("LOCAL_RANK", "0") == "0":
            with suppress(LockedError), locked_run(folder):  # held by another machine of this run
                fetch_run(name, folder, token)
                done.touch()
        time.sleep(0.2)


def _launch() -> str:
    """What the processes of one launch on a machine have in common."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    text = "-".join([*(os.environ.get(name, "") for name in names), str(os.getppid())])
    return "".join(sign if sign.isalnum() or sign in "-." else "_" for sign in text)
