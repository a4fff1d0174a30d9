"""The log of a run: lines of metrics.jsonl, trackers, and warnings in words."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import TrainerState

from ..runs.atomic import write_json
from ..runs.json_lines import JsonLines
from ..runs.layout import RunFolder
from .arguments import PoaTrainingArguments
from .flow import FlowCallback
from .monitoring import LogWindow, NonfiniteSteps, log_warnings
from .speed import SpeedLog

logger = logging.getLogger(__name__)


class RunLog:
    """Writes the log of a run. All processes make one and call its methods together; the main one writes.

    Args:
        args: The arguments of the run, which are written to its folder.
        accelerator: The accelerator of the run, which has the trackers.
        state: The step at which the run starts or is resumed, after which lines are dropped, and its log until then,
            from which lines that a crash has cut are written again.
    """

    def __init__(self, args: PoaTrainingArguments, accelerator: Accelerator, state: TrainerState):
        self.args, self.accelerator, self.first_step = args, accelerator, state.global_step
        self.is_main = accelerator.is_main_process
        self.warnings: set[str] = set()
        run = RunFolder(Path(args.output_dir))
        if self.is_main:
            write_json(run.training_arguments, args.without_secrets())
        accelerator.wait_for_everyone()
        self.metrics = JsonLines(run.metrics, self.first_step, self.is_main, state.log_history)
        if args.trackers:
            accelerator.init_trackers(args.project, args.to_sanitized_dict(), _named(args))

    def write(self, logs: dict[str, Any]) -> None:
        """Write a line, and log a warning if it shows that something is wrong."""
        if self.is_main:
            self.metrics.write(logs)
            self._warn(logs)
        self.accelerator.log({k: v for k, v in logs.items() if not isinstance(v, str)}, step=logs["step"])

    def finish(self) -> None:
        """Let the trackers write what they have not written yet."""
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _warn(self, logs: dict[str, Any]) -> None:
        """Log each warning once, for as long as its reason lasts."""
        # the time of the first line includes the start of the workers
        is_first = logs["step"] <= self.first_step + self.args.logging_steps
        warnings = log_warnings(logs, self.args.per_device_train_batch_size, ignore_data_wait=is_first)
        for warning in warnings - self.warnings:
            logger.warning(warning)
        self.warnings = warnings


def log_values(
    state: TrainerState,
    flow: FlowCallback,
    window: LogWindow,
    found: dict[str, float],
    nonfinite: NonfiniteSteps,
    speed: SpeedLog | None,
) -> dict[str, Any]:
    """Return what a line of the log says of the steps since the last line, and note the passes over the data.

    Args:
        state: The state of the run.
        flow: What knows the passes over the data.
        window: What has happened since the last line.
        found: What was measured and counted besides.
        nonfinite: The counts of steps that were not finite.
        speed: What measures the speed; None on other processes than the main one.
    """
    values: dict[str, Any] = {"step": state.global_step}
    if (epoch := flow.epochs(state.global_step)) is not None:
        values["epoch"] = state.epoch = epoch
    values |= window.summary() | found
    nonfinite.settle()
    values["nonfinite_steps"] = nonfinite.count
    return values if speed is None else values | speed.values(window.step_seconds, window.sizes)


def _named(args: PoaTrainingArguments) -> dict[str, dict[str, Any]]:
    """Return the run's name, as each tracker takes it that has names of runs."""
    names = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}
    return {tracker: {names[tracker]: args.name_of_run} for tracker in args.trackers if tracker in names}


def progress_bar(args: PoaTrainingArguments, state: TrainerState) -> tqdm:
    """Return the bar of the run's steps, which the main process shows on a terminal."""
    disabled = True if args.disable_tqdm or args.quiet or not state.is_world_process_zero else None
    return tqdm(total=args.max_steps, initial=state.global_step, unit="step", disable=disabled)


def show_progress(progress: tqdm, logs: dict[str, Any]) -> None:
    """Show the main values of a line of the log behind the progress bar."""
    progress.set_postfix(
        loss=f"{logs.get('loss', float('nan')):.3f}",
        images_s=f"{logs['images_per_second']:.0f}",
        data_wait=f"{logs['data_wait']:.0%}",
        refresh=False,
    )
