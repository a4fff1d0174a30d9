"""Calling stock `transformers.TrainerCallback`s from the training loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState


class EvaluationCallback(TrainerCallback):
    """A callback that measures the model: when it sets `control.should_evaluate`, and when asked to."""

    def evaluate(self, args: Any, state: TrainerState, model: PreTrainedModel) -> dict[str, float]:
        """Measure the model; all processes call this together.

        Args:
            args: The arguments of the run.
            state: The state of the run, whose `global_step` the model is of.
            model: The model.

        Returns:
            Values by their names in the log; those of the main process count. A higher one is better.
        """
        raise NotImplementedError


class CallbackList:
    """Calls callbacks in order, with the keyword arguments that `transformers.Trainer` gives them.

    Args:
        callbacks: Instances, or classes that are instantiated without arguments.
        context: Passed to every call: `model`, `optimizer`, `train_dataloader`.
    """

    def __init__(self, callbacks: Iterable[TrainerCallback | type[TrainerCallback]], **context: Any):
        self.callbacks = [callback() if isinstance(callback, type) else callback for callback in callbacks]
        unused = {"processing_class": None, "lr_scheduler": None, "eval_dataloader": None}
        self.context = unused | context

    @property
    def are_measuring(self) -> bool:
        """Whether any of them measures the model."""
        return any(isinstance(callback, EvaluationCallback) for callback in self.callbacks)

    def add(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Add a callback, or a class of one, behind the others."""
        self.callbacks.append(callback() if isinstance(callback, type) else callback)

    def remove(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Take a callback away, or the first one of a class, if it is there."""
        for each in self.callbacks:
            if each is callback or type(each) is callback:
                self.callbacks.remove(each)
                return

    def evaluate(self, args: Any, state: TrainerState) -> dict[str, float]:
        """Return what all callbacks that measure the model find."""
        found: dict[str, float] = {}
        for callback in self.callbacks:
            if isinstance(callback, EvaluationCallback):
                found |= callback.evaluate(args, state, self.context["model"])
        return found

    def call(self, event: str, args: Any, state: Any, control: TrainerControl, **values: Any) -> TrainerControl:
        """Call one event, such as `on_step_end`, of every callback.

        Args:
            event: Name of a method of `TrainerCallback`.
            args: The arguments of the run.
            state: The `TrainerState`.
            control: What the callbacks may change.
            values: What the event passes in addition, such as `logs`.

        Returns:
            The last control that a callback returned; `control` itself if none returned one.
        """
        for callback in self.callbacks:
            control = getattr(callback, event)(args, state, control, **self.context, **values) or control
        return control
