"""The thread that pushes: one push at a time, the newest next, and each failure said once and tried again."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..formatting import format_bytes, format_duration
from ..runs.push_job import Outcome

LONGEST_PAUSE = 60.0  # seconds between two attempts, unless the Hub asks for more
LONGEST_ASKED = 900.0  # seconds that the Hub may ask for
PAUSE_AT_END = 5.0  # seconds between two attempts after the last step
GRACE = 60.0  # seconds that the end of a run waits for a Hub that fails or is silent
SLOW = 1e6  # bytes per second of an upload that the end of a run waits for


@dataclass(frozen=True)
class Push:
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
    def num_bytes(self) -> int:
        """The bytes of its files, as far as they are still there."""
        try:
            files = [path for folder in self.checkpoints or (self.model,) for path in folder.glob("*")]
            return sum(path.stat().st_size for path in files if path.is_file())
        except OSError:
            return 0


@dataclass
class PushState:
    """What the thread and the training share.

    Args:
        waiting: The next push.
        current: The push that is being made.
        failed: The last push that was refused, so that it is not tried again.
        pushed: The checkpoints that were pushed.
        reason: Why the last attempt failed.
        failures: How many attempts have failed in a row.
        is_told: Whether this was said.
        is_ending: Whether the run has ended, and waits.
        is_closed: Whether nothing more is to be pushed.
        messages: What has happened and was not said yet, with the levels of logging.
    """

    waiting: Push | None = None
    current: Push | None = None
    failed: Push | None = None
    pushed: set[Path] = field(default_factory=set)
    reason: str = ""
    failures: int = 0
    is_told: bool = False
    is_ending: bool = False
    is_closed: bool = False
    messages: deque[tuple[int, str]] = field(default_factory=deque)

    @property
    def left(self) -> Push | None:
        """The newest push that was not made."""
        return self.waiting or self.current or self.failed


class PushThread:
    """Makes pushes in the background.

    Args:
        attempt: Tries to make a push, and returns what became of it.
        keeps_all: Whether the checkpoints of a push that is left out for a newer one are pushed with that.
        place: Returns the address that is pushed to.
    """

    def __init__(self, attempt: Callable[[Push], Outcome], keeps_all: bool, place: Callable[[], str]):
        self._attempt, self._keeps_all, self._place = attempt, keeps_all, place
        self.state = PushState()
        self._changed = threading.Condition()  # guards the state
        self._thread: threading.Thread | None = None

    def ask(self, push: Push) -> None:
        """Ask for a push, in place of one that still waits."""
        with self._changed:
            self.state.waiting = self._merged(self.state.waiting, push)
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="push_to_hub", daemon=True)
            self._thread.start()

    def in_use(self) -> set[Path]:
        """Return the folders that are pushed or wait for it."""
        with self._changed:
            pushes = [push for push in (self.state.current, self.state.waiting) if push is not None]
            return {folder for push in pushes for folder in (push.model, *push.checkpoints)}

    def wait(self, seconds: float, patience: float | None) -> Push | None:
        """Wait a moment for the end of all pushes.

        Args:
            seconds: The seconds since the run has ended.
            patience: The seconds to wait; by default as long as a slow upload takes, or a while if the Hub fails.

        Returns:
            The push that is waited for; None if there is none, or it is not to be waited for any longer.
        """
        with self._changed:
            self.state.is_ending = True
            self._changed.notify_all()
            push = self.state.current or self.state.waiting
            if push is None:
                return None
            allowed = GRACE + (0 if self.state.failures else push.num_bytes / SLOW)
            if seconds > (allowed if patience is None else patience):
                return None
            self._changed.wait(0.1)
            return push

    def close(self, end_attempt: Callable[[], None]) -> PushState:
        """End the thread, also while it pushes, and return the state that it leaves.

        Args:
            end_attempt: Ends the attempt that is being made, if there is one.
        """
        with self._changed:
            state = self.state
            state.is_closed = True
            self._changed.notify_all()
        end_attempt()
        if self._thread is not None:
            self._thread.join(10)
        with self._changed:
            self._thread, self.state = None, PushState(pushed=state.pushed)
        return state

    def _work(self) -> None:
        """Make pushes, one after the other."""
        state = self.state
        while True:
            with self._changed:
                self._changed.wait_for(lambda: state.waiting is not None or state.is_closed)
                if state.is_closed or state.waiting is None:
                    return
                # the run may have deleted some of those that have waited long
                there = tuple(path for path in state.waiting.checkpoints if path.is_dir())
                state.current, state.waiting = replace(state.waiting, checkpoints=there), None
                push = state.current
            begun = time.monotonic()
            outcome = self._attempt(push)
            with self._changed:
                state.current = None
                pause = self._note(state, push, outcome, time.monotonic() - begun)
                self._changed.notify_all()
                if pause and not state.is_ending:
                    self._changed.wait_for(lambda: state.is_ending, pause)
                elif pause:
                    self._changed.wait_for(lambda: state.is_closed, min(pause, PAUSE_AT_END))

    def _note(self, state: PushState, push: Push, outcome: Outcome, seconds: float) -> float:
        """Take note of an outcome, and return the seconds to pause before the next attempt."""
        if outcome.is_done:
            again = " again" if state.is_told else ""
            volume, duration = format_bytes(outcome.num_bytes), format_duration(seconds)
            state.messages.append(
                (logging.INFO, f"Step {push.step} pushed{again} to {self._place()} ({volume} in {duration})")
            )
            state.failures, state.is_told, state.failed, state.reason = 0, False, None, ""
            state.pushed.update(push.checkpoints)
            return 0.0
        state.failures += 1
        if not state.is_closed:
            state.reason = str(outcome.failure or outcome.refusal).rstrip(".")
            if not state.is_told:
                then = "; training goes on" + (", and it is tried again" if outcome.failure is not None else "")
                text = f"Step {push.step} could not be pushed to {self._place()}: {state.reason}{then}."
                state.messages.append((logging.WARNING, text))
                state.is_told = True
        if outcome.refusal is not None:
            state.failed = push
        elif state.waiting is None:
            state.waiting = push
        else:
            state.waiting = self._merged(push, state.waiting)
        return min(outcome.wait or min(2.0 ** (state.failures - 1), LONGEST_PAUSE), LONGEST_ASKED)

    def _merged(self, former: Push | None, newer: Push) -> Push:
        """Return the newer push, with the checkpoints of the former where each of them is pushed."""
        if former is None or not self._keeps_all:
            return newer
        return replace(newer, checkpoints=tuple(dict.fromkeys((*former.checkpoints, *newer.checkpoints))))
