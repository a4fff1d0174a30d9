"""Pushing to the Hub in a process of its own, so that the training never waits for the Hub.

Hashing and sending gigabytes then takes no time from the training's threads, nothing of `huggingface_hub` shows in its
output, and what hangs can be ended at any moment. A job is a JSON object that the process reads; it ends with the
process that started it. Transfers are plain HTTP, whose silence is noticed (`HF_HUB_DISABLE_XET=0` allows others).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass, field
from typing import Any

_LONGEST = 12 * 3600.0  # seconds after which a job is ended


@dataclass(frozen=True)
class Target:
    """Where a run is pushed to.

    Args:
        endpoint: The address of the Hub.
        token: A token that may write.
        repo_id: The repository, with or without its namespace.
        private: Whether the repository is private if it is created; None for the default of its namespace.
    """

    endpoint: str
    token: str = field(repr=False)
    repo_id: str
    private: bool | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Args:
        repo_id: The repository, with its namespace.
        num_bytes: The bytes of the files that were pushed.
        refusal: Why it can never succeed as it is, as a sentence; None if it can.
        failure: Why it did not succeed this time, as a clause; None if it did.
        wait: The seconds after which the Hub asks to try again; None if it does not say.
    """

    repo_id: str = ""
    num_bytes: int = 0
    refusal: str | None = None
    failure: str | None = None
    wait: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether the job has succeeded."""
        return self.refusal is None and self.failure is None


class Job:
    """A job in a process of its own.

    Args:
        target: The repository.
        request: The `work`, `open` or `push`, and the arguments of its function in `run_pushes`.
    """

    def __init__(self, target: Target, request: dict[str, Any]):
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end of the job)
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "poa_hf.runs.run_pushes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,  # Ctrl-C is for the training, which ends the job when it is time
            env={"HF_HUB_DISABLE_XET": "1", **os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        self._request = json.dumps({"target": asdict(target), **request}).encode() + b"\n"
        self._was_ended = False

    def wait(self) -> Outcome:
        """Wait until the job has ended, and return what became of it."""
        limit = threading.Timer(_LONGEST, self.end)
        limit.daemon = True
        limit.start()
        process, written = self._process, b""
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(self._request)
            process.stdin.flush()  # and stays open: its end would end the job
            written = process.stdout.read()
        except OSError:
            pass  # it has ended before it could read
        finally:
            limit.cancel()
            self.end(only_if_done=True)
        try:
            return Outcome(**json.loads(written.splitlines()[-1]))
        except (ValueError, IndexError, TypeError):
            return Outcome(failure=self._last_words())

    def end(self, only_if_done: bool = False) -> None:
        """End the job at once, done or not."""
        self._was_ended |= not only_if_done
        if not only_if_done:
            self._process.kill()
        self._process.wait()

    def _last_words(self) -> str:
        if self._was_ended:
            return "it was not done in time"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines() or ["it ended without a word"]
        return lines[-1][:200]
