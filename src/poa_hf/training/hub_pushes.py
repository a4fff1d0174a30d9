"""Pushing a run to the Hub while it trains: one push at a time, in the background, and the newest checkpoint first."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import constants, get_token

from ..formatting import format_bytes, format_duration
from ..locations import is_hub_id
from ..models.configuration_poa import PoaConfig
from ..runs.checkpoints import checkpoints, step_of
from ..runs.json_lines import first_line
from ..runs.layout import RunFolder
from ..runs.push_job import Job, Outcome, Target
from ..runs.run_repo import LAST_CHECKPOINT
from .arguments import PoaTrainingArguments

logger = logging.getLogger(__name__)

_LONGEST_PAUSE = 60.0  # seconds between two attempts, unless the Hub asks for more
_LONGEST_ASKED = 900.0  # seconds that the Hub may ask for
_GRACE = 60.0  # seconds that the end of a run waits for a Hub that fails or is silent
_SLOW = 1e6  # bytes per second of an upload that the end of a run waits for
_PAUSE_AT_END = 5.0  # seconds between two attempts after the last step
_AT_START = 3  # attempts to reach the Hub before the first step, of
_SECONDS_AT_START = 15.0  # at most together
_AFTER_A_SIGNAL = 20.0  # seconds that a run that was stopped waits; torchrun kills after 30


def repository_of(args: PoaTrainingArguments) -> str:
    """Return the repository that a run is pushed to, with or without its namespace.

    Raises:
        ValueError: If the Hub can have no repository of that name.
    """
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    if is_hub_id(name):
        return name
    if args.hub_model_id is None:
        raise ValueError(f"The Hub can have no repository called {name!r}, as output_dir is: give hub_model_id.")
    kind, _, rest = name.partition("/")
    if kind in ("datasets", "spaces", "models") and is_hub_id(rest):
        raise ValueError(f"hub_model_id is {name!r}: give {rest!r}, as runs are pushed to repositories of models.")
    raise ValueError(f"hub_model_id is {name!r}, which the Hub can have no repository of: write me/my-run, or my-run.")


def check_login(args: PoaTrainingArguments) -> None:
    """Refuse to push a run without what that takes, as far as it can be known without the Hub.

    Raises:
        ValueError: If the repository can have no such name, there is no token, or `huggingface_hub` is offline.
    """
    if not args.push_to_hub:
        return
    repository_of(args)
    if constants.is_offline_mode():
        raise ValueError(
            "push_to_hub needs the Hub, and huggingface_hub is offline by HF_HUB_OFFLINE: unset it, or leave "
            "push_to_hub out."
        )
    if not (args.hub_token or get_token()):
        raise ValueError(
            "push_to_hub needs a token for the Hub: run `hf auth login`, set HF_TOKEN to a token that may write, or "
            "leave push_to_hub out."
        )


@dataclass(frozen=True)
class _Push:
    """What is to be pushed.

    Args:
        step: The step of the model.
        model: The folder of the model: a checkpoint, or that of the run.
        checkpoints: The checkpoints that are pushed with it, newest last.
        message: The title of the commit.
    """

    step: int
    model: Path
    checkpoints: tuple[Path, ...] = ()
    message: str = ""

    @property
    def folders(self) -> set[Path]:
        return {self.model, *self.checkpoints}


@dataclass
class _State:
    """What the thread and the training share, under one lock."""

    waiting: _Push | None = None
    current: _Push | None = None
    failed: _Push | None = None  # for good: it is not tried again
    reason: str = ""  # of the last failure
    failures: int = 0  # in a row
    said: str | None = None  # the failure that was told last
    pushed_step: int | None = None
    is_ending: bool = False  # the run has ended, and waits
    is_closed: bool = False
    messages: deque[tuple[int, str]] = field(default_factory=deque)


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
        self._state, self._changed = _State(), threading.Condition()
        self._thread: threading.Thread | None = None
        self._job: Job | None = None
        self._open_request: dict | None = None

    @property
    def address(self) -> str:
        """The address of the repository."""
        return f"{constants.ENDPOINT}/{self.repo_id}"

    def open(self, resumes: bool, step: int) -> str:
        """Make the repository ready, before the first step, and return its name with the namespace if that is known.

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
            if outcome.failure is None:
                return self.repo_id
            if time.monotonic() - begun > _SECONDS_AT_START:
                break
            time.sleep(2.0**attempt)
        self._tell(logging.WARNING, f"{self.repo_id} cannot be pushed to yet ({outcome.failure}); training starts.")
        self._state.said = outcome.failure
        self.report()
        return self.repo_id

    def add(self, checkpoint: Path, best: Path | None = None) -> None:
        """Ask for a checkpoint that was saved to be pushed; one that still waits is left out for it.

        Args:
            checkpoint: The checkpoint.
            best: That of the best evaluation, where the run needs it at its end.
        """
        strategy, step = self.args.hub_strategy, step_of(checkpoint)
        if strategy == "end":
            return
        pushed: tuple[Path, ...] = ()
        if strategy == "checkpoint":
            pushed = (checkpoint,) if best is None or best == checkpoint else (best, checkpoint)
        elif strategy == "all_checkpoints":
            pushed = (checkpoint,)
        self._ask(_Push(step, checkpoint, pushed, f"Training in progress, step {step}"))

    def in_use(self) -> set[Path]:
        """Return the folders that are pushed or wait for it, which must stay."""
        with self._changed:
            pushes = [self._state.current, self._state.waiting]
            return {folder for push in pushes if push is not None for folder in push.folders}

    def report(self) -> None:
        """Say what has happened since the last call; the training calls this, so that lines come one by one."""
        while self._state.messages:
            level, text = self._state.messages.popleft()
            if level >= logging.WARNING:
                logger.warning("%s", text)
            elif not self.args.quiet:
                self._say(text)

    def push_model(self, step: int, message: str = "End of training") -> None:
        """Ask for the model in the run's folder to be pushed, with the checkpoints that the strategy asks for."""
        pushed: tuple[Path, ...] = ()
        if self.args.hub_strategy == "checkpoint":
            pushed = tuple(checkpoints(self.run)[-1:])
        self._ask(_Push(step, self.run, pushed, message))

    def finish(self, patience: float | None = None, is_stopped: Callable[[], object] = lambda: False) -> bool:
        """Wait for what is pushed or waits for it, but not for ever, and say what was not pushed.

        Args:
            patience: The seconds to wait; by default as long as a slow upload takes, or a minute if the Hub fails.
            is_stopped: Whether to wait no longer.

        Returns:
            Whether everything is pushed.
        """
        begun, said = time.monotonic(), False
        while True:
            with self._changed:
                state = self._state
                state.is_ending = True
                self._changed.notify_all()
                push = state.current or state.waiting
                allowed = _GRACE + (_bytes_of(push) / _SLOW if push and not state.failures else 0)
                waited = time.monotonic() - begun
                if push is None or is_stopped() or waited > (allowed if patience is None else patience):
                    break
                self._changed.wait(0.1)
            if waited > 2 and not said:
                said = True
                self._tell(logging.INFO, f"Waiting until step {push.step} is pushed to {self.address} ...")
            self.report()
        with self._changed:
            left = state.waiting or state.current or state.failed
            state.waiting, state.is_closed = None, True
            reason = state.reason or "the Hub did not take it in time"
            job, thread = self._job, self._thread
            self._changed.notify_all()
        if job is not None:
            job.end()
        if thread is not None:
            thread.join(10)
        self.report()
        if left is not None:
            logger.warning(
                "Step %d was not pushed to %s (%s): it is in %s, and %s pushes it.",
                left.step,
                self.repo_id,
                reason.rstrip("."),
                self.run,
                self._again(),
            )
        self._thread, self._state = None, _State()
        return left is None

    @contextmanager
    def closed_at_the_end(self) -> Iterator[None]:
        """Within this context, an error or a signal that ends the run waits a moment for what is pushed."""
        try:
            yield
        except BaseException:
            self.finish(_AFTER_A_SIGNAL)
            raise

    def _again(self) -> str:
        has_recipe = RunFolder(self.run).recipe.exists()
        return f"poa resume {self.run}" if has_recipe else "trainer.push_to_hub()"

    def _ask(self, push: _Push) -> None:
        with self._changed:
            if (former := self._state.waiting) is not None and self.args.hub_strategy == "all_checkpoints":
                push = replace(push, checkpoints=(*former.checkpoints, *push.checkpoints))
            self._state.waiting = push
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="push_to_hub", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        """Push what is asked for, one after the other; the thread does this."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._state.waiting is not None or self._state.is_closed)
                state, push = self._state, self._state.waiting
                if push is None:
                    return
                # the run may have deleted some of those that have waited long
                push = replace(push, checkpoints=tuple(path for path in push.checkpoints if path.is_dir()))
                state.current, state.waiting = push, None
            begun = time.monotonic()
            outcome = self._attempt(push)
            with self._changed:
                state.current = None
                pause = self._note(state, push, outcome, time.monotonic() - begun)
                self._changed.notify_all()
                self._pause(state, pause)
                if state.is_closed:
                    return

    def _pause(self, state: _State, seconds: float) -> None:
        """Wait before the next attempt; the end of the run does not wait long."""
        if seconds and not state.is_ending:
            self._changed.wait_for(lambda: state.is_ending, seconds)
        elif seconds:
            self._changed.wait_for(lambda: state.is_closed, min(seconds, _PAUSE_AT_END))

    def _note(self, state: _State, push: _Push, outcome: Outcome, seconds: float) -> float:
        """Take note of an outcome, and return the seconds to pause before the next attempt."""
        if outcome.refusal is None and outcome.failure is None:
            again = " again" if state.said is not None else ""
            volume, duration = format_bytes(outcome.num_bytes), format_duration(seconds)
            self._tell(logging.INFO, f"Step {push.step} pushed{again} to {self.address} ({volume} in {duration})")
            state.failures, state.said, state.failed, state.reason = 0, None, None, ""
            state.pushed_step = push.step
            return 0.0
        state.reason = str(outcome.failure or outcome.refusal)
        state.failures += 1
        if state.said is None and not state.is_closed:
            state.said = state.reason
            if outcome.failure is not None:
                what = f"{outcome.failure}; training goes on, and it is tried again"
            else:
                what = f"{state.reason.rstrip('.')}; training goes on"
            self._tell(logging.WARNING, f"Step {push.step} could not be pushed to {self.repo_id}: {what}.")
        if outcome.refusal is not None:
            state.failed = push
        elif state.waiting is None:
            state.waiting = push
        else:
            state.waiting = self._merged(push, state.waiting)
        return min(outcome.wait or min(2.0 ** (state.failures - 1), _LONGEST_PAUSE), _LONGEST_ASKED)

    def _merged(self, former: _Push, newer: _Push) -> _Push:
        """Return the newer push, with the checkpoints of the former where each of them is pushed."""
        if self.args.hub_strategy != "all_checkpoints":
            return newer
        return replace(newer, checkpoints=tuple(dict.fromkeys((*former.checkpoints, *newer.checkpoints))))

    def _attempt(self, push: _Push) -> Outcome:
        if self._open_request is not None:
            outcome = self._open()
            if outcome.refusal is not None or outcome.failure is not None:
                return outcome
        return self._do(
            {
                "work": "push",
                "run": str(self.run.absolute()),
                "model": str(push.model.absolute()),
                "checkpoints": {self._name(path, push): str(path.absolute()) for path in push.checkpoints},
                "step": push.step,
                "max_steps": self.args.max_steps,
                "sizes": self.sizes,
                "message": push.message,
            }
        )

    def _name(self, checkpoint: Path, push: _Push) -> str:
        """Return the name of a checkpoint's folder in the repository."""
        is_last = self.args.hub_strategy == "checkpoint" and checkpoint == push.checkpoints[-1]
        return LAST_CHECKPOINT if is_last else checkpoint.name

    def _open(self) -> Outcome:
        assert self._open_request is not None
        outcome = self._do(self._open_request)
        if outcome.refusal is None and outcome.failure is None:
            self.repo_id, self._open_request = outcome.repo_id, None
        return outcome

    def _do(self, request: dict) -> Outcome:
        """Do a job on the Hub, and return what became of it."""
        token = self.args.hub_token or get_token() or ""
        target = Target(constants.ENDPOINT, token, self.repo_id, self.args.hub_private_repo)
        try:
            self._job = job = Job(target, request)
            if self._state.is_closed:  # meanwhile
                job.end()
            return job.wait()
        except OSError as error:  # no process could be started
            return Outcome(failure=str(error))
        finally:
            self._job = None

    def _tell(self, level: int, text: str) -> None:
        self._state.messages.append((level, text))


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


def _bytes_of(push: _Push) -> int:
    """Return the bytes of what is pushed, as far as it is still there."""
    try:
        files = [path for folder in push.checkpoints or (push.model,) for path in folder.glob("*") if path.is_file()]
        return sum(path.stat().st_size for path in files)
    except OSError:
        return 0
