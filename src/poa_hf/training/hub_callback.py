"""When a run in training is pushed to the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from ..runs.layout import RunFolder
from .hub_pushes import HubPushes
from .monitoring import NonfiniteSteps
from .stopping import StopSignals


class HubCallback(TrainerCallback):
    """Has each checkpoint pushed in the background, and the model at the end. The main process makes one.

    Args:
        pushes: The pushes of the run.
        nonfinite: The run's count of steps that were not finite, after which nothing is pushed.
        stop_signals: The signals that end the wait at the end.
    """

    def __init__(self, pushes: HubPushes, nonfinite: NonfiniteSteps, stop_signals: StopSignals):
        self.pushes, self.nonfinite, self.stop_signals = pushes, nonfinite, stop_signals

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Say what has been pushed since the last step."""
        self.pushes.report()

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for the checkpoint to be pushed; the last one is pushed with the model."""
        is_last = state.global_step == args.max_steps or control.should_training_stop
        if not is_last and not self.nonfinite.in_a_row:
            best = state.best_model_checkpoint if args.load_best_model_at_end else None
            checkpoint = RunFolder(Path(args.output_dir)).checkpoint(state.global_step)
            self.pushes.add(checkpoint, None if best is None else Path(best))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Push the model, and wait for what is not pushed yet, but not for ever."""
        self.pushes.push_model(state.global_step)
        self.pushes.finish(is_stopped=lambda: self.stop_signals.received)
