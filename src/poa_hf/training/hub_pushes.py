"""Pushing a run to the Hub while it trains: what is pushed when, and what is said of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_token

from ..models.configuration_poa import PoaConfig
from ..runs.checkpoints import checkpoints, step_of
from ..runs.json_lines import first_line
from ..runs.layout import RunFolder
from ..runs.push_job import Job, Outcome, Target
from ..runs.run_repo import LAST_CHECKPOINT
from .arguments import PoaTrainingArguments
from .hub_login import check_login, repository_of
from .push_thread import Push, PushThread

logger = logging.getLogger(__name__)

_AT_START = 3  # attempts to reach the Hub before the first step, of
_SECONDS_AT_START = 15.0  # at most together
_AFTER_A_SIGNAL = 20.0  # seconds that a run that was stopped waits; torchrun kills after 30


class HubPushes:
    """The pushes of a run. The main process makes one; nothing of it waits for the Hub but `open` and `finish`.

    Args:
        args: The arguments of the run.
        config: The configuration of the model.
        say: Prints a line.
    """

    def __init__(self, args: PoaTrainingArguments, config: PoaConfig, say: Callable[[str], None]):
        backbone, space = config.backbone_config, config.backbone_config.space
        self.sizes = f"{backbone.model_type}, {len(space)} sizes from {space.smallest} to {space.full}"
        self.args, self._say = args, say
        self.run = Path(args.output_dir)
        self.repo_id = repository_of(args)
        self._thread = PushThread(self._attempt, args.hub_strategy == "all_checkpoints", lambda: self.address)
        self._job: Job | None = None
        self._open_request: dict[str, Any] | None = None  # what the Hub has not been asked yet
        self._best: Path | None = None
        self._is_closing = False

    @property
    def address(self) -> str:
        """The address of the repository."""
        return f"{constants.ENDPOINT}/{self.repo_id}"

    def open(self, resumes: bool, step: int) -> str:
        """Make the repository ready, before the first step, and return its name, with its namespace if that is known.

        A Hub that cannot be reached is asked again before the first push.

        Args:
            resumes: Whether the run goes on from a checkpoint.
            step: The step that the run is at.

        Raises:
            ValueError: If the run must not be pushed there.
        """
        check_login(self.args)
        self._open_request = {
            "work": "open",
            "log_start": first_line(RunFolder(self.run).metrics, step),
            "resumes": resumes,
            "overwrite": self.args.overwrite_output_dir,
            "silence": _SECONDS_AT_START,
        }
        begun = time.monotonic()
        for attempt in range(_AT_START):
            outcome = self._open()
            if outcome.refusal is not None:
                raise ValueError(outcome.refusal)
            if outcome.is_done:
                return self.repo_id
            if time.monotonic() - begun > _SECONDS_AT_START:
                break
            time.sleep(2.0**attempt)
        logger.warning("%s cannot be pushed to yet (%s): training goes on.", self.repo_id, outcome.failure)
        self._thread.state.is_told = True
        return self.repo_id

    def add(self, checkpoint: Path, best: Path | None = None) -> None:
        """Ask for a checkpoint that was saved to be pushed; one that still waits is left out for it.

        Args:
            checkpoint: The checkpoint.
            best: That of the best evaluation, where the run needs it at its end.
        """
        self._best = best
        strategy, step = self.args.hub_strategy, step_of(checkpoint)
        if strategy != "end":
            kept = {"checkpoint": self._with_best(checkpoint), "all_checkpoints": (checkpoint,)}.get(strategy, ())
            self._thread.ask(Push(step, checkpoint, kept, f"Training in progress, step {step}"))

    def push_model(self, step: int, message: str = "End of training") -> None:
        """Ask for the model in the run's folder to be pushed, with the checkpoints that the strategy asks for."""
        kept: tuple[Path, ...] = ()
        if self.args.hub_strategy == "checkpoint" and (saved := checkpoints(self.run)):
            kept = self._with_best(saved[-1])
        elif self.args.hub_strategy == "all_checkpoints":
            kept = tuple(path for path in checkpoints(self.run) if path not in self._thread.state.pushed)
        self._thread.ask(Push(step, self.run, kept, message))

    def in_use(self) -> set[Path]:
        """Return the folders that are pushed or wait for it, which must stay."""
        return self._thread.in_use()

    def report(self) -> None:
        """Say what has happened since the last call; the training calls this, so that lines come one by one."""
        messages = self._thread.state.messages
        while messages:
            level, text = messages.popleft()
            if level >= logging.WARNING:
                logger.warning("%s", text)
            elif not self.args.quiet:
                self._say(text)

    def finish(self, patience: float | None = None, is_stopped: Callable[[], object] = lambda: False) -> bool:
        """Wait for what is pushed or waits for it, but not for ever, and say what was not pushed.

        Args:
            patience: The seconds to wait; by default as long as a slow upload takes, or a minute if the Hub fails.
            is_stopped: Whether to wait no longer.

        Returns:
            Whether everything is pushed.
        """
        begun, is_told = time.monotonic(), self.args.quiet
        while not is_stopped() and (push := self._thread.wait(time.monotonic() - begun, patience)) is not None:
            if time.monotonic() - begun > 2 and not is_told:
                self._say(f"Waiting until step {push.step} is pushed to {self.address} ...")
                is_told = True
            self.report()
        self.report()
        self._is_closing = True
        state = self._thread.close(self._end_job)
        self._is_closing = False
        if state.left is None:
            return True
        logger.warning(
            "Step %d was not pushed to %s (%s): it is in %s, and %s pushes it.",
            state.left.step,
            self.repo_id,
            state.reason or "the Hub did not take it in time",
            self.run,
            f"poa resume {self.run}" if RunFolder(self.run).recipe.exists() else "trainer.push_to_hub()",
        )
        return False

    @contextmanager
    def closed_at_the_end(self) -> Iterator[None]:
        """Within this context, an error or a signal that ends the run waits a moment for what is pushed."""
        try:
            yield
        except BaseException:
            self.finish(_AFTER_A_SIGNAL)
            raise

    def _with_best(self, checkpoint: Path) -> tuple[Path, ...]:
        best = self._best
        return (checkpoint,) if best is None or best == checkpoint else (best, checkpoint)

    def _attempt(self, push: Push) -> Outcome:
        if self._open_request is not None and not (outcome := self._open()).is_done:
            return outcome
        last = push.checkpoints[-1] if self.args.hub_strategy == "checkpoint" and push.checkpoints else None
        return self._do(
            {
                "work": "push",
                "run": str(self.run.absolute()),
                "model": str(push.model.absolute()),
                "checkpoints": {
                    LAST_CHECKPOINT if path == last else path.name: str(path.absolute()) for path in push.checkpoints
                },
                "step": push.step,
                "max_steps": self.args.max_steps,
                "sizes": self.sizes,
                "message": push.message,
            }
        )

    def _open(self) -> Outcome:
        assert self._open_request is not None
        outcome = self._do(self._open_request)
        if outcome.is_done:
            self.repo_id, self._open_request = outcome.repo_id, None
        return outcome

    def _do(self, request: dict[str, Any]) -> Outcome:
        """Do a job on the Hub, and return what became of it."""
        token = self.args.hub_token or get_token() or ""
        target = Target(constants.ENDPOINT, token, self.repo_id, self.args.hub_private_repo)
        try:
            self._job = job = Job(target, request)
            if self._is_closing:
                job.end()
            return job.wait()
        except OSError as error:  # no process could be started
            return Outcome(failure=str(error))
        finally:
            self._job = None

    def _end_job(self) -> None:
        if (job := self._job) is not None:
            job.end()


def push_finished(args: PoaTrainingArguments, config: PoaConfig, say: Callable[[str], None]) -> None:
    """Push a run that has reached its last step, as far as the Hub lacks it.

    Raises:
        ValueError: If it must not be pushed there, or the Hub does not take it.
    """
    pushes = HubPushes(args, config, say)
    pushes.open(resumes=True, step=args.max_steps)
    pushes.push_model(args.max_steps)
    if not pushes.finish():
        raise ValueError(f"The run was not pushed to {pushes.repo_id}: run the same command again later.")
