"""Calling stock `transformers.TrainerCallback`s from the training loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers import TrainerCallback, TrainerControl


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
