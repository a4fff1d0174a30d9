"""When a run logs, saves and evaluates, and which evaluation is the best."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from .arguments import PoaTrainingArguments

# A PoaTrainer passes its PoaTrainingArguments, where transformers' callbacks declare TrainingArguments.
Arguments = Any


class FlowCallback(TrainerCallback):
    """Asks for lines of the log, checkpoints and evaluations as the arguments' strategies say.

    Args:
        num_images: Images of the data; None if not known.
        global_batch_size: Images per step, of all processes.
    """

    def __init__(self, num_images: int | None, global_batch_size: int):
        self.num_images, self.global_batch_size = num_images, global_batch_size

    def epochs(self, step: int) -> float | None:
        """Return the passes over the data until the end of a step; None if its size is not known."""
        return None if self.num_images is None else step * self.global_batch_size / self.num_images

    def ends_epoch(self, step: int) -> bool:
        """Whether a pass over the data ends within a step."""
        before, after = self.epochs(step - 1), self.epochs(step)
        return before is not None and after is not None and int(after) > int(before)

    def is_due(self, step: int, strategy: str, every: int) -> bool:
        """Whether a strategy, `steps` or `epoch`, asks for something at a step."""
        return step % every == 0 if strategy == "steps" else strategy == "epoch" and self.ends_epoch(step)

    def logs_at(self, step: int, args: PoaTrainingArguments) -> bool:
        """Whether a line is to be logged at a step."""
        return self.is_due(step, args.logging_strategy, args.logging_steps) or step == args.max_steps

    def on_step_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        control.should_log |= self.logs_at(step, args)
        control.should_save |= self.is_due(step, args.save_strategy, args.save_steps)
        ends = args.eval_strategy == "epoch" and self.ends_epoch(step)
        control.should_evaluate |= ends or (args.eval_strategy != "no" and step == args.max_steps)


def check_strategies(args: PoaTrainingArguments, num_images: int | None, is_evaluated: bool) -> None:
    """Refuse strategies that the run cannot follow.

    Args:
        args: The arguments of the run.
        num_images: Images of the data; None if not known.
        is_evaluated: Whether the run is evaluated while it trains.

    Raises:
        ValueError: For epochs of data whose size is not known, or the best of no evaluations.
    """
    for name in ("logging_strategy", "save_strategy", "eval_strategy"):
        if getattr(args, name) == "epoch" and num_images is None:
            raise ValueError(
                f"{name} is 'epoch', but a stream does not know how many images it has: give num_train_images as "
                "well, or use 'steps'."
            )
    for name, wanted in (("load_best_model_at_end", True), ("save_strategy", "best")):
        if getattr(args, name) == wanted and not is_evaluated:
            raise ValueError(
                f"{name} is {wanted!r}, but the run is not evaluated: give eval_steps, or a KnnEvaluationCallback."
            )


def keep_best(values: dict[str, float], args: PoaTrainingArguments, state: TrainerState) -> bool:
    """Take note of an evaluation if it is the best so far, and return whether it is; one that is not finite never is.

    Args:
        values: What was measured, by the names in the log.
        args: The arguments, which name the metric.
        state: The state of the run.

    Raises:
        ValueError: If the metric was not measured, but the arguments name another one than the default or ask for the
            best.
    """
    name = args.metric_for_best_model.removeprefix("eval_")
    value = values.get(name)
    if value is None:
        is_named = name != type(args).metric_for_best_model
        if is_named or args.load_best_model_at_end or args.save_strategy == "best":
            raise ValueError(
                f"metric_for_best_model is {args.metric_for_best_model!r}, which was not measured: choose one of "
                f"{', '.join(values)}."
            )
        return False
    if not math.isfinite(value) or state.best_metric is not None and value <= state.best_metric:
        return False
    state.best_metric, state.best_global_step = value, state.global_step
    return True
