"""How good the teacher is while it trains: k-NN of a few sizes every so many steps, and the best checkpoint by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from ..data.processor import evaluation_processor
from ..elastic import SubNetwork

if TYPE_CHECKING:
    from .splits import EvaluationData


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
        from ..training.engines import whole_parameters
        from .evaluate import evaluate_sizes
        from .records import FILE_NAME, save_evaluations
        from .subjects import Subject

        processor = evaluation_processor(args.global_crop_size, args.image_mean, args.image_std)
        subject = Subject(Path(args.output_dir).name, model.teacher, processor, state.global_step)
        with whole_parameters(model):
            records = evaluate_sizes(
                subject, self.data, self.sizes, ["knn"], self.options, self.batch_size, self.num_workers, args.bf16
            )
        if state.is_world_process_zero:
            save_evaluations(Path(args.output_dir) / FILE_NAME, records)
        self._fresh = {f"knn_{record.size}": record.value for record in records}
        self._fresh["knn_mean"] = sum(self._fresh.values()) / len(records)
        if state.best_metric is None or self._fresh["knn_mean"] > state.best_metric:
            state.best_metric, state.best_global_step = self._fresh["knn_mean"], state.global_step
            control.should_save = True
        control.should_log = True

    def on_log(self, args, state, control, logs=None, **kwargs):
        logs |= self._fresh
        self._fresh = {}
