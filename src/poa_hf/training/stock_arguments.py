"""What `transformers.TrainingArguments` has that stock callbacks and users of `Trainer` look for in arguments."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..ranges import COUNT, POSITIVE, SHARE_BELOW_1, Range

if TYPE_CHECKING:  # importing these takes longer than a command's help may
    import torch
    from accelerate import PartialState
    from transformers.training_args import ParallelMode


def argument(default: Any, help: str, **metadata: Any) -> Any:
    """A field with a help text.

    `several=True` marks a list of names as text, separated by commas; `bare` is the value of an option without one;
    `secret=True` keeps the value out of `repr`.
    """
    return field(default=default, repr=not metadata.get("secret"), metadata={"help": help, **metadata})


@dataclass
class StockArguments:
    """Arguments with the names and meanings of `transformers.TrainingArguments`, and its methods."""

    ranges: ClassVar[dict[str, Range]] = {
        "num_train_epochs": POSITIVE,
        "num_train_images": COUNT,
        "warmup_ratio": SHARE_BELOW_1,
    }

    # Epochs
    num_train_epochs: float | None = argument(
        None, "Passes over the data, in place of max_steps; a part of a pass is rounded up to whole steps."
    )
    num_train_images: int | None = argument(
        None, "Number of images in the data, for epochs of a stream, which does not know it."
    )
    warmup_ratio: float | None = argument(None, "Warm-up as a share of all steps, in place of warmup_steps.")

    # Strategies
    logging_strategy: str = argument(
        "steps",
        "When lines are logged: `steps` is every logging_steps, `epoch` each pass over the data, `no` only the end.",
    )
    save_strategy: str = argument(
        "steps",
        "When checkpoints are saved: `steps` is every save_steps, `epoch` each pass over the data, `best` and `no` "
        "only those always saved: the best evaluation's and the last.",
    )
    eval_strategy: str = argument(
        "steps",
        "When sizes are evaluated: `steps` is every eval_steps, `epoch` each pass over the data, `no` is never.",
    )
    load_best_model_at_end: bool = argument(
        False, "Whether the model that is left at the end is that of the best evaluation instead of the last step's."
    )
    metric_for_best_model: str = argument(
        "knn_mean",
        "Which value decides the best evaluation: knn_mean, the mean of the evaluated sizes, or that of one of them.",
    )

    # Names
    run_name: str | None = argument(None, "Name of the run in trackers; that of its folder if not given.")
    project: str = argument("poa_hf", "Name of the project in trackers.")

    # Hub
    push_to_hub: bool = argument(
        False, "Whether to push the run to the Hub in the background, each time that a checkpoint is saved."
    )
    hub_model_id: str | None = argument(
        None, "Repository to push to: me/my-run, or my-run in your own namespace; the name of output_dir if not given."
    )
    hub_strategy: str = argument(
        "every_save",
        "What is pushed: the model at `every_save` or at the `end` only; `checkpoint` also the last checkpoint, from "
        "which poa resume goes on elsewhere, `all_checkpoints` each of them.",
    )
    hub_private_repo: bool | None = argument(
        None, "Whether a repository that is created is private; public unless the organisation decides otherwise."
    )
    hub_token: str | None = argument(
        None, "Token that may write there, which is written nowhere; that of `hf auth login` or HF_TOKEN.", secret=True
    )

    # what callbacks of transformers ask for and has one answer here
    greater_is_better: ClassVar[bool] = True
    logging_first_step: ClassVar[bool] = False
    eval_delay: ClassVar[int] = 0
    do_train: ClassVar[bool] = True
    deepspeed: ClassVar[None] = None
    trackio_space_id: ClassVar[None] = None
    trackio_bucket_id: ClassVar[None] = None
    trackio_static_space_id: ClassVar[bool] = False

    def with_steps(self, num_images: int | None, global_batch_size: int) -> Any:
        """Return these arguments with epochs and the warm-up's share turned into steps.

        Args:
            num_images: Images of the data; None if not known.
            global_batch_size: Images per step, of all processes.

        Raises:
            ValueError: For epochs of data whose size is not known.
        """
        changes: dict[str, Any] = {}
        steps: int = self.max_steps  # type: ignore[attr-defined]  # a field of the class that has this one as its base
        num_images = num_images or self.num_train_images
        if self.num_train_epochs is not None:
            if num_images is None:
                raise ValueError(
                    f"num_train_epochs is {self.num_train_epochs:g}, but a stream does not know how many images it "
                    "has: give num_train_images as well, or max_steps instead."
                )
            steps = changes["max_steps"] = max(1, math.ceil(self.num_train_epochs * num_images / global_batch_size))
        if self.warmup_ratio is not None:
            changes["warmup_steps"] = math.ceil(self.warmup_ratio * steps)
        return dataclasses.replace(self, **changes) if changes else self

    @property
    def name_of_run(self) -> str:
        """The run's name in trackers."""
        return self.run_name or Path(self.output_dir).resolve().name  # type: ignore[attr-defined]

    @property
    def do_eval(self) -> bool:
        """Whether the run is evaluated while it trains."""
        return self.eval_strategy != "no"

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return _processes().num_processes

    @property
    def process_index(self) -> int:
        """The number of this process."""
        return _processes().process_index

    @property
    def local_process_index(self) -> int:
        """The number of this process on its machine."""
        return _processes().local_process_index

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return _processes().device

    @property
    def n_gpu(self) -> int:
        """The number of GPUs of this process."""
        return int(self.device.type == "cuda")

    @property
    def parallel_mode(self) -> ParallelMode:
        """How processes share the work."""
        from transformers.training_args import ParallelMode

        return ParallelMode.DISTRIBUTED if self.world_size > 1 else ParallelMode.NOT_PARALLEL

    @property
    def train_batch_size(self) -> int:
        """Images per process and forward pass."""
        return int(self.per_device_train_batch_size)  # type: ignore[attr-defined]

    @property
    def logging_dir(self) -> str:
        """The folder of TensorBoard's files."""
        return str(Path(self.output_dir, "runs"))  # type: ignore[attr-defined]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields by name, as JSON can hold them, without secrets."""
        values = self.without_secrets()
        for each in dataclasses.fields(self):
            if each.name not in values:
                values[each.name] = f"<{each.name.upper()}>" if getattr(self, each.name) else None
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def without_secrets(self) -> dict[str, Any]:
        """Return all fields by name but those that are secret, such as tokens."""
        secrets = {each.name for each in dataclasses.fields(self) if each.metadata.get("secret")}
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name not in secrets}

    def to_json_string(self) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """Return the fields as numbers and text only, as trackers take hyperparameters."""
        return {n: v if isinstance(v, bool | int | float | str) else str(v) for n, v in self.to_dict().items()}


def _processes() -> PartialState:
    from accelerate import PartialState

    return PartialState()
