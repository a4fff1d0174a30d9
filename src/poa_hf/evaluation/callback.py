"""How good the teacher is while it trains: k-NN accuracy of a few sizes at intervals, and the best checkpoint by it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import TrainerControl, TrainerState

from ..data.processor import evaluation_processor
from ..ranges import plain
from ..sub_network import SubNetwork
from ..training.callbacks import EvaluationCallback

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..models.modeling_poa_pretraining import PoaForPreTraining
    from .splits import EvaluationData

logger = logging.getLogger(__name__)

# A PoaTrainer passes its PoaTrainingArguments, where transformers' callbacks declare TrainingArguments.
Arguments = Any


class KnnEvaluationCallback(EvaluationCallback):
    """Evaluates sizes of the teacher by weighted k-NN, every `every_steps` steps and at the end of training.

    Accuracies (0 to 1) go to the log as `knn_384x12` and so on, their mean as `knn_mean`, and the records to
    `evaluations.json` in the run's folder. The checkpoint with the best mean is saved and kept beyond
    `save_total_limit`; the trainer's state names it as `best_model_checkpoint`. Training computes the same, to the last
    bit, with and without this callback.

    Args:
        data: Labelled splits, from `open_splits`.
        every_steps: The number of steps between evaluations; None leaves it to the trainer's `eval_strategy`.
        sizes: Sizes or their names; by default the smallest, a middle and the full size.
        k: The number of neighbours that vote.
        batch_size: Images at a time, per process.
        num_workers: Processes that decode images, per process.

    Raises:
        ValueError: For fewer than one step between evaluations; and at the start of training, for sizes that do not
            exist, or fewer train images than `k`.

    Example:
        >>> from poa_hf.evaluation.splits import open_splits
        >>> data = open_splits("textures", max_train_images=60, max_test_images=20)
        >>> callback = KnnEvaluationCallback(data, every_steps=100, sizes=["small", "large"], k=10)

        Then pass `callbacks=[callback]` to `PoaTrainer`.
    """

    def __init__(
        self,
        data: EvaluationData,
        every_steps: int | None,
        sizes: Sequence[str | SubNetwork] | None = None,
        k: int = 20,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        if every_steps is not None and every_steps < 1:
            raise ValueError(f"every_steps is {every_steps}: give at least 1.")
        self.data, self.sizes = data, sizes
        self.every_steps, self.k = plain(every_steps), plain(k)
        self.batch_size, self.num_workers = plain(batch_size), plain(num_workers)
        self.size_names: list[str] = []
        self._has_measured = False

    def on_train_begin(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._prepare(kwargs["model"])

    def _prepare(self, model: PoaForPreTraining) -> None:
        """Check what is to be measured, once the model is known."""
        # imported here, as it takes half a second that only an evaluation should cost
        from .tasks import TaskOptions, check_tasks

        if self.data.train is None:
            raise ValueError("k-NN evaluation needs a train split: open the data with one.")
        self.options = TaskOptions(k=(self.k,))
        check_tasks(["knn"], self.options, len(self.data.train))
        space = model.config.backbone_config.space
        self.size_names = list(dict.fromkeys(str(space.resolve(size)) for size in self.sizes or space.spread))

    def on_step_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.every_steps is not None and state.global_step % self.every_steps == 0:
            control.should_evaluate = True

    def evaluate(self, args: Arguments, state: TrainerState, model: PreTrainedModel) -> dict[str, float]:
        elastic = cast("PoaForPreTraining", model)
        if not self.size_names:  # before the training
            self._prepare(elastic)
        accuracies = self._measure(args, state, elastic)
        return accuracies | {"knn_mean": sum(accuracies.values()) / len(accuracies)}

    def _measure(self, args: Arguments, state: TrainerState, model: PoaForPreTraining) -> dict[str, float]:
        """Save records of the current teacher in the run's folder, and return accuracies by their names in the log."""
        from ..runs.evaluations import save_evaluations
        from ..runs.layout import RunFolder
        from ..training.engines import whole_parameters
        from .data.sources import training_source
        from .evaluator import evaluate_sizes
        from .subject import Subject

        processor = evaluation_processor(args.global_crop_size, args.image_mean, args.image_std, args.image_range)
        run = RunFolder(Path(args.output_dir))
        subject = Subject(
            Path(args.output_dir).name, model.teacher, processor, state.global_step, trained_on=training_source(run)
        )
        with whole_parameters(model):
            records = evaluate_sizes(
                subject,
                self.data,
                self.size_names,
                ["knn"],
                self.options,
                self.batch_size,
                self.num_workers,
                args.bf16,
                quiet=self._has_measured,
            )
        self._has_measured = True
        if state.is_world_process_zero and Path(args.output_dir).is_dir():
            save_evaluations(run.evaluations, records)
        self.num_test_images = records[0].test_images
        return {f"knn_{record.size}": record.value for record in records}


class WarmStartGuard(KnnEvaluationCallback):
    """Also evaluates the model that the run starts with, and warns when the full size becomes worse than that: a warm
    start is meant to add sizes to a pre-trained model, not to spoil it.

    It warns when the full size has lost more than `margin` plus two standard errors of the difference. It warns once
    for as long as that lasts, also across a resume. The accuracies of step 0 are in the trainer's `log_history` and in
    `evaluations.json`; that of the full size is also in every later line of the log with an evaluation, as `knn_start`.

    Args:
        data: See `KnnEvaluationCallback`, also for the arguments that follow.
        margin: Accuracy, from 0 to 1, that may be lost without a warning; by default one per cent.

    Raises:
        ValueError: For a margin that is negative or not below 1, and as `KnnEvaluationCallback` does.
    """

    def __init__(
        self,
        data: EvaluationData,
        every_steps: int | None,
        sizes: Sequence[str | SubNetwork] | None = None,
        k: int = 20,
        batch_size: int = 64,
        num_workers: int = 0,
        margin: float = 0.01,
    ) -> None:
        super().__init__(data, every_steps, sizes, k, batch_size, num_workers)
        if not 0 <= margin < 1:
            raise ValueError(f"margin is {margin}: it must be at least 0 and below 1.")
        self.margin: float = plain(margin)
        self.start: float | None = None  # the full size's accuracy at step 0, if it was measured
        self.falling = False

    def on_train_begin(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        model: PoaForPreTraining = kwargs["model"]
        full = str(model.config.backbone_config.space.full)
        self.size_names = list(dict.fromkeys([*self.size_names, full]))
        self.full, self.start, self.falling = f"knn_{full}", None, False
        if state.global_step == 0:
            values = self._measure(args, state, model)
            first_line = {"step": 0, **values, "knn_start": values[self.full], "test_images": self.num_test_images}
            state.log_history.append(first_line)
        for line in state.log_history:
            if "knn_start" in line and line["step"] == 0:
                self.start, self.num_test_images = line["knn_start"], int(line["test_images"])
            elif self.full in line and self.start is not None:
                self.falling = self._has_fallen(self.start, line[self.full])
        if self.start is None and state.is_world_process_zero:
            logger.warning(
                "The run was not evaluated at its start, so a loss of accuracy of its full size will not be noticed."
            )

    def evaluate(self, args: Arguments, state: TrainerState, model: PreTrainedModel) -> dict[str, float]:
        values = super().evaluate(args, state, model)
        if self.start is None:
            return values
        now = values[self.full]
        falling = self._has_fallen(self.start, now)
        if falling and not self.falling and state.is_world_process_zero:
            logger.warning(
                "The full size has lost %.1f points of k-NN accuracy since the start (%.1f %% to %.1f %% at step %d; "
                "standard error of the difference %.1f): lower learning_rate, or raise freeze_backbone_steps, "
                "teacher_momentum or intact_weight.",
                100 * (self.start - now),
                100 * self.start,
                100 * now,
                state.global_step,
                100 * self._standard_error(self.start, now),
            )
        self.falling = falling
        return values | {"knn_start": self.start}

    def _has_fallen(self, start: float, now: float) -> bool:
        return start - now > self.margin + 2 * self._standard_error(start, now)

    def _standard_error(self, start: float, now: float) -> float:
        """Return the standard error of the difference between two accuracies, treating their test sets as independent.

        This is conservative: both are measured on the same images, so the true error is smaller.
        """
        return (sum(p * (1 - p) for p in (start, now)) / self.num_test_images) ** 0.5
