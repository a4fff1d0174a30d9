"""What a job does on the Hub for a run: make its repository ready, and push the run as it is now.

`push_job.Job` runs this module as a program.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import HfApi

from ..hub.client import Hub, HubError
from ..hub.retrying import CONFLICT, Patience, describe, is_temporary, requested_wait
from ..hub.timeout import hub_timeout
from .layout import METRICS
from .push_job import Outcome, Target
from .run_repo import (
    PAGE,
    checkpoint_files,
    checkpoint_folder,
    holds_a_run,
    is_ours,
    kept_model_files,
    outdated_files,
    run_files,
    run_page,
)

_SILENCE = 60.0  # seconds without a byte from the Hub after which a request has failed
_OTHER_NAMESPACE = "leave push_to_hub out (--no_push_to_hub), or begin hub_model_id with one of"
_ONCE = Patience(attempts=1)  # who started the job tries again


def open_repository(target: Target, silence: float, log_start: str | None, resumes: bool, overwrite: bool) -> Outcome:
    """Check that the run may be pushed to a repository, which is made if there is none.

    Args:
        target: The repository.
        silence: Seconds without a byte from the Hub after which a request has failed.
        log_start: The first line of the run's log; None if it has none.
        resumes: Whether the run goes on from a checkpoint.
        overwrite: Whether another run there may be replaced.
    """

    def work(hub: Hub) -> Outcome:
        namespace, _, name = target.repo_id.rpartition("/")
        owner = hub.check_rights(namespace or None, collection=False, advice=_OTHER_NAMESPACE)
        repo_id = f"{owner}/{name}"
        files = hub.list_files(repo_id)
        if files is None:
            hub.create(repo_id, target.private)
        elif (is_run := holds_a_run(files)) is False:
            raise HubError(f"{repo_id} on the Hub holds something other than a run: give another hub_model_id.")
        elif is_run and not resumes and not overwrite:
            raise HubError(
                f"{repo_id} on the Hub already holds a run: go on with it by poa resume {repo_id}, give another "
                "hub_model_id, or overwrite_output_dir to replace it."
            )
        elif is_run and resumes and log_start is not None and METRICS in files:
            other = hub.read(repo_id, METRICS).decode(errors="replace").partition("\n")[0]
            if other and not _same_line(other, log_start):
                raise HubError(f"{repo_id} on the Hub holds another run than this one: give another hub_model_id.")
        return Outcome(repo_id)

    return _outcome(target, silence, work)


def push_run(
    target: Target,
    silence: float,
    run: str,
    model: str,
    checkpoints: dict[str, str],
    step: int,
    max_steps: int,
    sizes: str,
    message: str,
) -> Outcome:
    """Push a run by one commit, so that the repository is whole at any moment.

    Args:
        target: The repository, with its namespace.
        silence: Seconds without a byte from the Hub after which a request has failed.
        run: The folder of the run.
        model: The folder of the model: a checkpoint, or that of the run.
        checkpoints: The checkpoints to push, by the names of their folders in the repository.
        step: The step of the model.
        max_steps: The steps of the run.
        sizes: What the model is called, and its sizes.
        message: The title of the commit.
    """

    def work(hub: Hub) -> Outcome:
        repo_id = target.repo_id
        with tempfile.TemporaryDirectory(prefix="poa-push-") as scratch:
            files = run_files(Path(run), Path(model), step, Path(scratch))
            for folder, checkpoint in checkpoints.items():
                files |= {f"{folder}/{path}": file for path, file in checkpoint_files(Path(checkpoint)).items()}
            if checkpoints:
                files |= kept_model_files(Path(run))
            present = hub.list_files(repo_id)
            if present is None:
                raise HubError(f"{repo_id} is no longer on the Hub: make it again, or give another hub_model_id.")
            delete = outdated_files(present, files, step)
            kept = {*present, *files} - {*delete}
            folders = {name for path in kept if (name := checkpoint_folder(path)) is not None}
            if PAGE not in present or is_ours(hub.read(repo_id, PAGE)):
                files[PAGE] = run_page(repo_id, sizes, step, max_steps, folders)
            hub.publish(repo_id, files, message, delete=tuple(delete), create=False)
            sizes_of = (len(file) if isinstance(file, bytes) else file.stat().st_size for file in files.values())
            return Outcome(repo_id, sum(sizes_of))

    return _outcome(target, silence, work)


def _outcome(target: Target, silence: float, work: Callable[[Hub], Outcome]) -> Outcome:
    """Do work on the Hub once, and say what became of it."""
    try:
        with hub_timeout(silence):
            return work(Hub(HfApi(target.endpoint, token=target.token), _ONCE))
    except Exception as error:  # whatever fails here, the training goes on
        wait = requested_wait(error)
        # a file may be gone because the run has gone on
        if is_temporary(error, CONFLICT) or isinstance(error, FileNotFoundError):
            return Outcome(failure=describe(error), wait=wait)
        return Outcome(refusal=str(error) if isinstance(error, ValueError) else describe(error), wait=wait)


def _same_line(one: str, other: str) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return one == other


def main() -> None:
    """Read a job from the standard input, do it, and write its outcome to the standard output."""
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(10)
    work, target = request.pop("work"), Target(**request.pop("target"))
    options = {"silence": _SILENCE, **request}
    outcome = open_repository(target, **options) if work == "open" else push_run(target, **options)
    print(json.dumps(asdict(outcome)), flush=True)
    os._exit(0)  # threads of libraries that hang must not keep it


def _end_with_parent() -> None:
    """End this process when the one that started it has ended, which closes the pipe between them."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
