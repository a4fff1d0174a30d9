"""Ending a run before its last step: by a signal, after which a checkpoint is saved, or because it has diverged.

SIGINT (Ctrl-C), SIGTERM and SIGUSR1 (which schedulers send as a warning) let the step end and a checkpoint be saved.
The flag that one was received travels with the reduced losses, so that all processes stop after the same step.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import TrainerState

from ..runs.checkpoints import before_nonfinite_steps, checkpoints
from ..runs.layout import RunFolder
from ..runs.writing import WriteError
from .arguments import PoaTrainingArguments
from .monitoring import LateFlags, NonfiniteSteps

logger = logging.getLogger(__name__)

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
# A launcher passes a signal on to processes that may have received it themselves, from the terminal or the scheduler.
_PASSED_ON_WITHIN = 5  # seconds


class TrainingDivergedError(RuntimeError):
    """The loss was not finite for too many steps in a row."""


class TrainingInterrupted(SystemExit):
    """A signal has ended the run, after a checkpoint was saved.

    A script that does not catch it ends with the status 128 + the signal's number, without a traceback.

    Args:
        message: One sentence with how to go on.
        number: The signal's number.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = signal.Signals(number)
        self.code = 128 + number


class StopSignals:
    """Notes the signals that ask a run to stop. All processes make one and call its methods together.

    Args:
        accelerator: The accelerator of the run.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        self.alone = accelerator.num_processes == 1
        self.received = 0
        self._since = 0.0
        self._launched = not self.alone or "TORCHELASTIC_RUN_ID" in os.environ
        self._flags = LateFlags()
        self._agreed = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this context, the first signal asks the run to stop and a second one ends the process at once.

        The former handlers are restored at the end. Signals that are ignored, as Ctrl-C is in a shell's background,
        stay so. Outside of the main thread nothing changes, as Python allows no handlers there.
        """
        self.received, self._agreed = 0, False
        former = {}
        if threading.current_thread() is threading.main_thread():
            former = {each: signal.getsignal(each) for each in _SIGNALS}
            former = {each: handler for each, handler in former.items() if handler not in (None, signal.SIG_IGN)}
        for each in former:
            signal.signal(each, self._receive)
        try:
            yield
        finally:
            for each, handler in former.items():
                signal.signal(each, handler)

    def share(self, mean_flag: Tensor) -> None:
        """Take note of the mean over the processes of whether each has received a signal, a scalar on the device."""
        if not self.alone:
            self._flags.add(0, mean_flag > 0)
            self._agreed |= any(flag for _, flag in self._flags.read())

    def agreed(self) -> bool:
        """Return whether the run is to stop after this step; the same on all processes."""
        return bool(self.received) if self.alone else self._agreed

    def interruption(self, output_dir: Path, state: TrainerState) -> TrainingInterrupted:
        """Return the exception to raise once the checkpoint is saved; the main process has logged it."""
        numbers = gather_object([self.received])
        number = max(numbers)
        command = resume_command(output_dir, len(numbers))
        interruption = TrainingInterrupted(
            f"Stopped by {signal.Signals(number).name} after step {state.global_step} of {state.max_steps}, which is "
            f"saved: go on with {command}.",
            number,
        )
        if self._accelerator.is_main_process:
            logger.warning("%s", interruption)
        # a launcher ends the other processes as soon as one of them has ended
        self._accelerator.wait_for_everyone()
        return interruption

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._since = number, time.monotonic()
            if not self._launched:
                # a second one then ends the process even while it waits in a library
                for each in _SIGNALS:
                    if signal.getsignal(each) == self._receive:
                        signal.signal(each, signal.SIG_DFL)
                name = signal.Signals(number).name
                # not by the logger, which may be writing at this moment
                notice = f"\n{name}: saving a checkpoint after this step; a second signal ends at once.\n"
                with suppress(OSError):  # a closed terminal
                    os.write(2, notice.encode())
        elif time.monotonic() - self._since > _PASSED_ON_WITHIN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def resume_command(output_dir: Path, num_processes: int = 1, options: str = "") -> str:
    """Return what to write to go on with a run, in a shell or, if it has no recipe, in its script."""
    if not RunFolder(output_dir).recipe.exists():
        return "train(resume_from_checkpoint=True)"
    launcher = f"torchrun --nproc-per-node {num_processes} -m poa_hf" if num_processes > 1 else "poa"
    return f"{launcher} resume {shlex.quote(str(output_dir))}{options}"


@contextmanager
def said_how_to_go_on(output_dir: Path, num_processes: int) -> Iterator[None]:
    """Within this context, errors of writing are raised with the command to go on."""
    try:
        yield
    except WriteError as error:
        if not checkpoints(output_dir):
            raise
        command = resume_command(output_dir, num_processes)
        raise WriteError(f"{str(error).rstrip('.')}, and go on with {command}.") from error


def stop_if_diverged(nonfinite: NonfiniteSteps, args: PoaTrainingArguments, num_processes: int) -> None:
    """Raise an error if the loss was not finite for too many steps in a row.

    Raises:
        TrainingDivergedError: With the checkpoint from before these steps.
    """
    if nonfinite.in_a_row < args.max_nonfinite_steps:
        return
    output_dir, learning_rate = Path(args.output_dir), args.learning_rate
    what = f"The loss was not finite for {nonfinite.in_a_row} steps in a row, up to step {nonfinite.last_step}"
    checkpoint = before_nonfinite_steps(output_dir)
    if checkpoint is None:
        raise TrainingDivergedError(
            f"{what}, and no checkpoint is from before them: start anew with a lower learning_rate than "
            f"{learning_rate:g}, or a longer warm-up."
        )
    command = resume_command(output_dir, num_processes, f" --learning_rate {learning_rate / 2:g}")
    raise TrainingDivergedError(
        f"{what}: lower learning_rate from {learning_rate:g} and resume from {checkpoint}, the last checkpoint before "
        f"them ({command})."
    )
