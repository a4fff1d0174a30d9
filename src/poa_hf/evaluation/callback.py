"""How good the teacher is while it trains: k-NN of a few sizes every so many steps, and the best checkpoint by it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from ..data.processor import evaluation_processor
from ..elastic import SubNetwork

if TYPE_CHECKING:
    from .splits import EvaluationData

logger = logging.getLogger(__name__)


class KnnEvaluationCallback(TrainerCallback):
    """Evaluates sizes of the teacher by weighted k-NN every `every_steps` steps and at the end of a `PoaTrainer`'s run.

    Accuracies (0 to 1) go to the log as `knn_384x12` and their mean as `knn_mean`, the records to `evaluations.json` in
    the run's folder. The checkpoint with the best mean is saved and kept beyond `save_total_limit`; the trainer's state
    has it as `best_model_checkpoint`. Training itself is not changed by a bit.

    Args:
        data: labelled splits, from `open_splits`.
        sizes: a list of sizes; by default the smallest, a middle and the full one.
        k: neighbours that vote.

    Raises:
        ValueError: at the start of training, for sizes that don't exist or fewer train images than `k`.
    """

    def __init__(
        self,
        data: EvaluationData,
        every_steps: int,
        sizes: Sequence[str | SubNetwork] | None = None,
        k: int = 20,
        batch_size: int = 64,
        num_workers: int = 0,
    ):
        if every_steps < 1:
            raise ValueError(f"every_steps is {every_steps}: evaluate every step at most.")
        self.data, self.every_steps, self.sizes = data, every_steps, sizes
        self.k = k
        self.batch_size, self.num_workers = batch_size, num_workers
        self._fresh: dict[str, float] = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        # here, as they take half a second that only an evaluation should cost
        from .tasks import TaskOptions, check_tasks

        self.options = TaskOptions(k=(self.k,))
        check_tasks(["knn"], self.options, len(self.data.train))
        space = model.config.backbone_config.space
        self.sizes = list(dict.fromkeys(str(space.resolve(size)) for size in self.sizes or space.spread))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every_steps and state.global_step != state.max_steps:
            return
        self._fresh = self._measure(args, state, model)
        self._fresh["knn_mean"] = sum(self._fresh.values()) / len(self._fresh)
        if state.best_metric is None or self._fresh["knn_mean"] > state.best_metric:
            state.best_metric, state.best_global_step = self._fresh["knn_mean"], state.global_step
            control.should_save = True
        control.should_log = True

    def _measure(self, args, state, model) -> dict[str, float]:
        """Accuracies of the teacher as it is now, by their names in the log; the records go to the run's folder."""
        from ..runs.evaluations import save_evaluations
        from ..runs.layout import RunFolder
        from ..training.engines import whole_parameters
        from .evaluator import evaluate_sizes
        from .subject import Subject

        processor = evaluation_processor(args.global_crop_size, args.image_mean, args.image_std)
        subject = Subject(Path(args.output_dir).name, model.teacher, processor, state.global_step)
        with whole_parameters(model):
            records = evaluate_sizes(
                subject, self.data, self.sizes, ["knn"], self.options, self.batch_size, self.num_workers, args.bf16
            )
        if state.is_world_process_zero:
            save_evaluations(RunFolder(Path(args.output_dir)).evaluations, records)
        self.num_test_images = records[0].test_images
        return {f"knn_{record.size}": record.value for record in records}

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs |= self._fresh
        self._fresh = {}


class WarmStartGuard(KnnEvaluationCallback):
    """Also measures the model that the run starts with, and warns when the full size falls below it: a warm start is to
    add sizes to a pre-trained model, not to spoil it.

    It warns when the full size has lost more than `margin` beyond two standard errors of the difference, once for as
    long as that lasts, also across a resume. The accuracies of step 0 are in the trainer's `log_history`, in
    `evaluations.json`, and the full size's as `knn_start` in every line of the log with an evaluation.

    Args:
        margin: of the accuracy, from 0 to 1; by default a point.
    """

    def __init__(self, data, every_steps, sizes=None, k=20, batch_size=64, num_workers=0, margin: float = 0.01):
        super().__init__(data, every_steps, sizes, k, batch_size, num_workers)
        if not 0 <= margin < 1:
            raise ValueError(f"margin is {margin}: it must be at least 0 and below 1.")
        self.margin = margin

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        super().on_train_begin(args, state, control, model=model, **kwargs)
        full = str(model.config.backbone_config.space.full)
        self.sizes = list(dict.fromkeys([*self.sizes, full]))
        self.full, self.start, self.falling = f"knn_{full}", None, False
        if state.global_step == 0:
            values = self._measure(args, state, model)
            state.log_history.append(
                {"step": 0, **values, "knn_start": values[self.full], "test_images": self.num_test_images}
            )
        for line in state.log_history:
            if "knn_start" in line and line["step"] == 0:
                self.start, self.num_test_images = line["knn_start"], line["test_images"]
            elif self.full in line and self.start is not None:
                self.falling = self._has_fallen(line[self.full])
        if self.start is None and state.is_world_process_zero:
            logger.warning("The run began without being measured: nothing tells whether its full size falls.")

    def on_step_end(self, args, state, control, model=None, **kwargs):
        super().on_step_end(args, state, control, model=model, **kwargs)
        if not self._fresh or self.start is None:
            return
        now = self._fresh[self.full]
        self._fresh["knn_start"] = self.start
        falling = self._has_fallen(now)
        if falling and not self.falling and state.is_world_process_zero:
            logger.warning(
                "The full size has lost %.1f points of k-NN accuracy since its start (%.1f %% to %.1f %% at step %d; "
                "standard error of the difference %.1f): lower learning_rate, or raise freeze_backbone_steps, "
                "teacher_momentum or intact_weight.",
                100 * (self.start - now),
                100 * self.start,
                100 * now,
                state.global_step,
                100 * self._standard_error(now),
            )
        self.falling = falling

    def _has_fallen(self, now: float) -> bool:
        return self.start - now > self.margin + 2 * self._standard_error(now)

    def _standard_error(self, now: float) -> float:
        """Of the difference to the start, as if of other test images: they are the same, so it is rather less."""
        return (sum(p * (1 - p) for p in (self.start, now)) / self.num_test_images) ** 0.5
