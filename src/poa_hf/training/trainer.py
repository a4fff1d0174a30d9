"""The training loop, on Accelerate.

A step takes a batch of crops from `data.loader`, colours them on the device (`data.augment`), calls the model for the
loss (`models.modeling_poa_pretraining`), and moves the student by AdamW (`optimization`) and the teacher by its moving
average. Around it: `preparation` of model and batches, `engines` for several processes, `checkpointing` for what is
saved, `monitoring` and `run_log` for what is logged, `stopping` for early ends, and `callbacks` of users.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from ..models.foreign_teacher import ForeignTeacher
from ..models.modeling_poa_pretraining import PoaForPreTraining, PoaForPreTrainingOutput
from ..models.moving_average import refuse_rounded_weights
from ..runs.checkpoints import start_folder
from ..runs.json_lines import JsonLines
from ..runs.layout import RunFolder
from . import checks, engines, gram
from .arguments import PoaTrainingArguments
from .callbacks import CallbackList
from .checkpointing import Checkpointer, on_main, run_locked
from .compilation import block_compiler, compiled_colours
from .console import ConsoleCallback, say
from .distillation import teacher_features
from .flow import FlowCallback, check_strategies, keep_best
from .hub_callback import HubCallback
from .hub_pushes import HubPushes
from .monitoring import LogWindow, NonfiniteSteps
from .preparation import configure, new_state, training_loader, with_statistics
from .profiling import StepProfiler
from .run_log import RunLog, log_values, progress_bar, show_progress
from .skipped_images import SkippedImages
from .speed import SpeedLog
from .step import OptimizerStep
from .stopping import StopSignals, TrainingDivergedError, TrainingInterrupted, said_how_to_go_on, stop_if_diverged

__all__ = ["PoaTrainer", "TrainingDivergedError", "TrainingInterrupted"]


class PoaTrainer:
    """Pre-trains a `PoaForPreTraining` on images.

    Every random choice is a function of the seed, the step and the process (sub-network, stochastic depth) or of the
    image's place in the global batch (crops, colours, masks). So a resumed run repeats an uninterrupted one exactly,
    and the number of processes changes neither crops nor masks.

    Args:
        model: The model, which is trained in place.
        args: The arguments of the run.
        train_dataset: A `datasets.Dataset` or `IterableDataset` with an image column, or any indexable collection of
            images. Labels are not read.
        callbacks: Stock `transformers.TrainerCallback`s. A `ConsoleCallback` is added if there is none, unless the
            arguments say `quiet`.
        foreign_teacher: A model that the students learn from in place of their moving average, which is frozen: any
            model with features of images. `ForeignTeacher` says what it takes as input, where no image processor was
            saved beside it.
        gram_teacher: A frozen model to whose similarities of patches the students are anchored, for a configuration
            with a `gram_weight`; by default the run's own teacher at step 0.

    Raises:
        ValueError: For arguments that do not fit the model, the data or the output folder, before any work.

    Example:
        >>> import tempfile
        >>> from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainingArguments, PoaViTConfig
        >>> from poa_hf.data import open_dataset
        >>> backbone = PoaViTConfig(
        ...     hidden_size=32, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=16, image_size=32,
        ...     patch_size=8,
        ... )
        >>> config = PoaConfig(
        ...     backbone_config=backbone, head_hidden_size=16, head_bottleneck_size=8, num_prototypes=[16]
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     args = PoaTrainingArguments(
        ...         output_dir=folder, max_steps=2, per_device_train_batch_size=4, global_crop_size=32,
        ...         local_crop_size=16, num_local_crops=2, dataloader_num_workers=0, quiet=True,
        ...     )
        ...     trainer = PoaTrainer(PoaForPreTraining(config), args, train_dataset=open_dataset("textures"))
        ...     state = trainer.train()
        >>> state.global_step, sorted(name for name in state.log_history[-1] if name.startswith("dino"))
        (2, ['dino_global_crops_loss_0', 'dino_local_crops_loss_0'])
    """

    def __init__(
        self,
        model: PoaForPreTraining,
        args: PoaTrainingArguments,
        train_dataset: Any,
        callbacks: Sequence[TrainerCallback] = (),
        foreign_teacher: ForeignTeacher | PreTrainedModel | None = None,
        gram_teacher: ForeignTeacher | PreTrainedModel | None = None,
    ):
        self.output_dir = Path(args.output_dir)
        if args.log_level is not None:
            logging.getLogger("poa_hf").setLevel(args.log_level.upper())
        refuse_rounded_weights(model)
        args = args.with_launched_precision()
        checks.check_run(model.config, args)
        self.accelerator = engines.new_accelerator(args)
        self.args = args = with_statistics(args, model.config, train_dataset, self.accelerator)
        self.is_main = self.accelerator.is_main_process
        self.rank = self.accelerator.process_index
        num_processes = self.accelerator.num_processes
        self.global_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_processes
        self.loader = training_loader(train_dataset, model.config, args, self.accelerator)
        num_images = self.loader.num_images or args.num_train_images
        self.args = args = args.with_steps(num_images, self.global_batch_size)
        checks.check_elastic_teacher(model.config, args, num_processes)
        self.flow = FlowCallback(num_images, self.global_batch_size)
        if self.is_main:
            checks.warn_of_few_images(self.loader.num_images, self.global_batch_size)
            checks.warn_of_missing_processes(num_processes)
            checks.warn_of_untrained_sizes(model.config, args)
        self.teacher_features = teacher_features(model, args, foreign_teacher, train_dataset, self.accelerator)
        self.gram_teacher = gram.gram_teacher(model, args, gram_teacher, self.accelerator)
        configure(model, args, self.is_main)
        self.wrapped_model, self.optimizer = engines.prepare(self.accelerator, model, args)
        self.model: PoaForPreTraining = self.accelerator.unwrap_model(self.wrapped_model)
        compiler = block_compiler(self.model, args, self.accelerator.device)
        self.model.compile_blocks(compiler)
        self.speed: SpeedLog | None = None
        if self.is_main:
            frozen = (self.teacher_features, self.gram_teacher)
            self.speed = SpeedLog(model.config, args, self.accelerator.device, compiler, frozen)
        self.state = new_state(args, self.accelerator, self.flow)
        self.control = TrainerControl()
        if not args.quiet and not any(isinstance(callback, ConsoleCallback) for callback in callbacks):
            callbacks = [*callbacks, ConsoleCallback()]
        self.callbacks = CallbackList(
            [self.flow, *callbacks], model=self.model, optimizer=self.optimizer, train_dataloader=self.loader
        )
        self._measured: dict[str, float] = {}  # by the last evaluation, for the next line of the log
        self.nonfinite = NonfiniteSteps(self.is_main)
        self.stop_signals = StopSignals(self.accelerator)
        self.optimizer_step = OptimizerStep(
            args=args,
            accelerator=self.accelerator,
            model=self.model,
            wrapped_model=self.wrapped_model,
            optimizer=self.optimizer,
            compute_loss=self.compute_loss,
            teacher_features=self.teacher_features,
            gram_teacher=self.gram_teacher,
            colour_all=compiled_colours(compiler, self.accelerator.device),
            flow=self.flow,
            nonfinite=self.nonfinite,
            stop_signals=self.stop_signals,
        )
        run = (self.model, self.optimizer, self.loader, self.state, self.nonfinite)
        self.pushes = HubPushes(args, self.model.config, say) if args.push_to_hub and self.is_main else None
        if self.pushes is not None:
            self.callbacks.add(HubCallback(self.pushes, self.nonfinite, self.stop_signals))
        in_use = self.pushes.in_use if self.pushes is not None else frozenset
        self.checkpointer = Checkpointer(args, self.accelerator, *run, self.global_batch_size, in_use)
        self.image_ids = JsonLines(RunFolder(self.output_dir).image_ids(self.rank), 0, enabled=False)

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainerState:
        """Train up to `max_steps`, and save the model in `output_dir` for `from_pretrained`.

        SIGINT (Ctrl-C), SIGTERM and SIGUSR1 end the run after a step, which is saved as a checkpoint; a second signal
        ends the process at once.

        Args:
            resume_from_checkpoint: True for the last complete checkpoint in `output_dir` (or the start, if there is
                none yet), or the path of a checkpoint. None means what the arguments say.

        Returns:
            The state of the run: its step and `log_history`.

        Raises:
            ValueError: If the folder holds another run or is in use by one, or a checkpoint does not fit this one.
            TrainingDivergedError: If the loss was not finite for `max_nonfinite_steps` steps in a row.
            TrainingInterrupted: After a signal, once the checkpoint is saved; a `SystemExit`.
            WriteError: If the disk is full, an `OSError`.
        """
        with (
            run_locked(self.accelerator, self.output_dir),
            said_how_to_go_on(self.output_dir, self.accelerator.num_processes),
            self.stop_signals.listening(),
            self.pushes.closed_at_the_end() if self.pushes is not None else nullcontext(),
        ):
            return self._train(resume_from_checkpoint)

    def _train(self, resume_from_checkpoint: bool | str | None) -> TrainerState:
        args, state = self.args, self.state
        batches = self._start(args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint)
        self.control.should_training_stop = False
        check_strategies(args, self.flow.num_images, self.callbacks.are_measuring)
        self._call("on_train_begin")
        self.wrapped_model.train()
        self.checkpointer.training_time.start(state.global_step)
        window = LogWindow()
        profiled = args.profiled_steps if self.is_main else None
        profiler = StepProfiler(profiled, RunFolder(self.output_dir).profile, self.accelerator.device)
        with progress_bar(args, state) as progress, logging_redirect_tqdm():
            while state.global_step < args.max_steps and not self.control.should_training_stop:
                self._begin_step()
                profiler.before(state.global_step + 1)
                self.optimizer_step(batches, state.global_step, window)
                state.global_step += 1
                progress.update()
                self._call("on_step_end")
                if self.control.should_evaluate and self.callbacks.are_measuring:
                    self._evaluate()
                if self.flow.ends_epoch(state.global_step):
                    self._call("on_epoch_end")
                stopped = self.stop_signals.agreed() and not self._is_last
                profiler.after(state.global_step, self._is_last or stopped)
                if self.control.should_log or self._is_last or stopped:
                    self._log(window, progress)
                    window = LogWindow()
                if self.control.should_save or self._is_last or stopped:  # a callback may stop the run as it logs
                    self.skipped_images.report()  # a run resumed from here does not meet them once more
                    self.checkpointer.save()
                    self.control.should_save = False
                    self._call("on_save")
                stop_if_diverged(self.nonfinite, args, self.accelerator.num_processes)
                if stopped:
                    progress.close()
                    self.log.finish()
                    raise self.stop_signals.interruption(self.output_dir, state)
            profiler.after(state.global_step, is_last=True)
            self.nonfinite.settle()
            stop_if_diverged(self.nonfinite, args, self.accelerator.num_processes)
        if args.load_best_model_at_end:
            self.checkpointer.load_best()
        self.save_model()
        self._call("on_train_end")
        if self.pushes is not None:
            self.checkpointer.prune()  # those that were kept to be pushed
        self.log.finish()
        return state

    def save_model(self, folder: str | Path | None = None) -> None:
        """Write teacher, student and heads, and the image processor, for `from_pretrained`.

        Args:
            folder: Where to write; `output_dir` if not given.
        """
        self.checkpointer.save_model(Path(folder or self.output_dir).expanduser())

    def save_state(self) -> None:
        """Write a checkpoint of the current step, from which `train` can resume."""
        self.checkpointer.save()

    def push_to_hub(self, commit_message: str = "End of training", blocking: bool = True) -> str:
        """Save the model in `output_dir` and push it to the Hub, with the run's records and what `hub_strategy` says.

        Works with and without `push_to_hub` in the arguments. All processes call this together; the main one pushes.

        Args:
            commit_message: The title of the commit.
            blocking: Whether to wait until it is pushed; otherwise it is pushed in the background.

        Returns:
            The address of the repository.

        Raises:
            ValueError: On all processes, if it must not be pushed there, or the Hub does not take it.
        """
        self.save_model()

        def push() -> str:
            self._open_repository(resumes=True)
            pushes = cast("HubPushes", self.pushes)
            pushes.push_model(self.state.global_step, commit_message)
            if blocking and not pushes.finish():
                raise ValueError(f"The model was not pushed to {pushes.address}: call push_to_hub again later.")
            return pushes.address

        return on_main(self.accelerator, push)

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Add a callback, or a class of one that is made without arguments, behind those that are there."""
        self.callbacks.add(callback)

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Take a callback away, or the first one of a class, such as `ConsoleCallback`."""
        self.callbacks.remove(callback)

    def evaluate(self) -> dict[str, float]:
        """Measure the teacher as it is, with the callbacks that evaluate, such as `KnnEvaluationCallback`.

        Returns:
            Values by their names in the log with `eval_` in front, such as `eval_knn_384x12` and `eval_knn_mean`.

        Raises:
            ValueError: If there is no such callback.
        """
        if not self.callbacks.are_measuring:
            raise ValueError("Nothing says how to evaluate: give the trainer a KnnEvaluationCallback.")
        # what follows is decided by the same values on all processes, such as whether to save a checkpoint
        (values,) = broadcast_object_list([self.callbacks.evaluate(self.args, self.state)])
        metrics = {f"eval_{name}": value for name, value in values.items()}
        self._call("on_evaluate", metrics=metrics)
        return metrics

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool = False
    ) -> Tensor | tuple[Tensor, PoaForPreTrainingOutput]:
        """Return the loss of a batch, a scalar that is differentiated; subclasses may compute another one.

        Args:
            model: The model, as it is wrapped for several processes.
            inputs: The arguments of `PoaForPreTraining.forward`, among them `global_crops` (2B, C, H, W),
                `local_crops` (V * B, C, h, w), `masks` (2B, patches) and `sub_network`.
            return_outputs: Whether to return the model's output too, whose terms are logged.
        """
        output = model(**inputs)
        # optional in the class, as in every ModelOutput, but always set
        loss = cast("Tensor", output.loss)
        return (loss, output) if return_outputs else loss

    @property
    def _is_last(self) -> bool:
        return self.state.global_step == self.args.max_steps or self.control.should_training_stop

    def _begin_step(self) -> None:
        self.control.should_log = self.control.should_save = self.control.should_evaluate = False
        step = self.state.global_step
        if step == 0 or self.flow.ends_epoch(step):
            self._call("on_epoch_begin")
        self._call("on_step_begin")

    def _evaluate(self) -> None:
        """Evaluate for the next line of the log, and save a checkpoint if it is the best so far."""
        self._measured = {name.removeprefix("eval_"): value for name, value in self.evaluate().items()}
        self.control.should_save |= keep_best(self._measured, self.args, self.state)
        self.control.should_log = True

    def _start(self, resume: bool | str | None) -> Iterator[dict[str, Any]]:
        """Restore the checkpoint to resume from, if any, make the folder ready, and return the batches."""
        args = self.args
        checkpoint = self.checkpointer.restore(resume)
        self.gram_teacher.check(checkpoint)
        if args.push_to_hub:
            args.hub_model_id = on_main(self.accelerator, lambda: self._open_repository(checkpoint is not None))
        # The first batch comes before anything in the folder changes: data that cannot be read leaves it as it was.
        batches = iter(self.loader)
        if self.state.global_step < args.max_steps:
            self.checkpointer.position = self.loader.state_dict()
            batches = itertools.chain([next(batches)], batches)
        self.accelerator.wait_for_everyone()
        if self.is_main:
            start_folder(self.output_dir, checkpoint, args.overwrite_output_dir)
        self.accelerator.wait_for_everyone()
        self.teacher_features.start()
        self.gram_teacher.start()
        self.log = RunLog(args, self.accelerator, self.state)
        run = RunFolder(self.output_dir)
        self.skipped_images = SkippedImages(self.accelerator, run.skipped_images, self.state.global_step)
        self.image_ids = JsonLines(run.image_ids(self.rank), self.state.global_step, enabled=args.log_image_ids)
        return self._noted(batches)

    def _noted(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield batches, and take note of the ids of their images and of what was skipped."""
        for batch in batches:
            self.checkpointer.position = None
            step = self.state.global_step + 1
            self.skipped_images.add(batch, step)
            self.image_ids.write({"step": step, "image_ids": batch["image_ids"]})
            yield batch

    def _open_repository(self, resumes: bool) -> str:
        """Make the repository of the run ready, and return its name."""
        self.pushes = self.pushes or HubPushes(self.args, self.model.config, say)
        return self.pushes.open(resumes, self.state.global_step)

    def _call(self, event: str, **values: Any) -> None:
        self.control = self.callbacks.call(event, self.args, self.state, self.control, **values)

    def _log(self, window: LogWindow, progress: tqdm) -> None:
        """Write a line of the log, with what the callbacks add to it."""
        found = self._measured | self.skipped_images.report()
        logs = log_values(self.state, self.flow, window, found, self.nonfinite, self.speed)
        self._measured = {}
        # trackers take numbers only
        texts = {name: logs.pop(name) for name in list(logs) if isinstance(logs[name], str)}
        self.control.should_log = False
        self._call("on_log", logs=logs)
        logs |= texts | {"time": datetime.now(UTC).isoformat(timespec="seconds")}
        self.log.write(logs)
        self.state.log_history.append(logs)
        show_progress(progress, logs)
