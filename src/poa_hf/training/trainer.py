"""The training loop, on Accelerate.

A step takes a batch of crops from `data.loader`, colours them on the device (`data.augment`), calls the model for the
loss (`models.modeling_poa_pretraining`), and moves the student by AdamW (`optimization`) and the teacher by its moving
average. Around it: `preparation` of model and batches, `engines` for several processes, `checkpointing` for what is
saved, `monitoring` and `run_log` for what is logged, `stopping` for early ends, and `callbacks` of users.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from ..elastic import SubNetwork
from ..models.foreign_teacher import ForeignTeacher
from ..models.modeling_poa_pretraining import PoaForPreTraining, PoaForPreTrainingOutput
from ..runs.checkpoints import start_folder
from ..runs.json_lines import JsonLines
from ..runs.layout import RunFolder
from . import engines
from .arguments import PoaTrainingArguments
from .callbacks import CallbackList
from .checkpointing import Checkpointer, run_locked
from .checks import check_run, warn_of_few_images, warn_of_missing_processes
from .compilation import block_compiler, compiled_colours
from .console import ConsoleCallback
from .distillation import teacher_features
from .monitoring import LogWindow, NonfiniteSteps
from .optimization import StepHyperparameters, hyperparameters_at, set_hyperparameters, step_unless
from .preparation import coloured_crops, configure, seed_step, training_loader, with_statistics
from .profiling import StepProfiler
from .run_log import RunLog, progress_bar, show_progress
from .skipped_images import SkippedImages
from .speed import SpeedLog
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
    ):
        self.output_dir = Path(args.output_dir)
        if args.log_level is not None:
            logging.getLogger("poa_hf").setLevel(args.log_level.upper())
        check_run(model.config, args)
        self.accelerator = engines.new_accelerator(args)
        self.args = args = with_statistics(args, model.config, train_dataset, self.accelerator)
        self.is_main = self.accelerator.is_main_process
        self.rank = self.accelerator.process_index
        num_processes = self.accelerator.num_processes
        self.global_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps * num_processes
        self.loader = training_loader(train_dataset, model.config, args, self.accelerator)
        if self.is_main:
            warn_of_few_images(self.loader.num_images, self.global_batch_size)
            warn_of_missing_processes(num_processes)
        self.teacher_features = teacher_features(model, args, foreign_teacher, train_dataset, self.accelerator)
        configure(model, args, self.is_main)
        self.wrapped_model, self.optimizer = engines.prepare(self.accelerator, model, args)
        self.model: PoaForPreTraining = self.accelerator.unwrap_model(self.wrapped_model)
        compiler = block_compiler(self.model, args, self.accelerator.device)
        self.model.compile_blocks(compiler)
        self.colour_all = compiled_colours(compiler, self.accelerator.device)
        self.speed = SpeedLog(model.config, args, self.accelerator.device, compiler) if self.is_main else None
        self.state = TrainerState(max_steps=args.max_steps, is_world_process_zero=self.is_main)
        self.state.is_local_process_zero = self.accelerator.is_local_main_process
        self.control = TrainerControl()
        if not args.quiet and not any(isinstance(callback, ConsoleCallback) for callback in callbacks):
            callbacks = [*callbacks, ConsoleCallback()]
        self.callbacks = CallbackList(
            callbacks, model=self.model, optimizer=self.optimizer, train_dataloader=self.loader
        )
        self.nonfinite = NonfiniteSteps(self.is_main)
        self.stop_signals = StopSignals(self.accelerator)
        run = (self.model, self.optimizer, self.loader, self.state, self.nonfinite)
        self.checkpointer = Checkpointer(args, self.accelerator, *run, self.global_batch_size)
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
        ):
            return self._train(resume_from_checkpoint)

    def _train(self, resume_from_checkpoint: bool | str | None) -> TrainerState:
        args, state = self.args, self.state
        batches = self._start(args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint)
        self.control.should_training_stop = False
        self._call("on_train_begin")
        self.wrapped_model.train()
        self.checkpointer.training_time.start(state.global_step)
        window = LogWindow()
        profiled = args.profiled_steps if self.is_main else None
        profiler = StepProfiler(profiled, RunFolder(self.output_dir).profile, self.accelerator.device)
        with progress_bar(args, state) as progress, logging_redirect_tqdm():
            while state.global_step < args.max_steps and not self.control.should_training_stop:
                self.control.should_log = self.control.should_save = self.control.should_evaluate = False
                self._call("on_step_begin")
                profiler.before(state.global_step + 1)
                self._step(batches, window)
                state.global_step += 1
                progress.update()
                self._call("on_step_end")
                is_last = state.global_step == args.max_steps or self.control.should_training_stop
                stopped = self.stop_signals.agreed() and not is_last
                profiler.after(state.global_step, is_last or stopped)
                if state.global_step % args.logging_steps == 0 or is_last or stopped or self.control.should_log:
                    self._log(window, progress)
                    window = LogWindow()
                if state.global_step % args.save_steps == 0 or is_last or stopped or self.control.should_save:
                    self.skipped_images.report()  # a run resumed from here does not meet them once more
                    self.checkpointer.save()
                    self.control.should_save = False
                    self._call("on_save")
                stop_if_diverged(self.nonfinite, args, self.accelerator.num_processes)
                if stopped:
                    progress.close()
                    self.log.finish()
                    raise self.stop_signals.interruption(self.output_dir, state)
            self.nonfinite.settle()
            stop_if_diverged(self.nonfinite, args, self.accelerator.num_processes)
        self.save_model()
        self._call("on_train_end")
        self.log.finish()
        return state

    def save_model(self, folder: str | Path | None = None) -> None:
        """Write teacher, student and heads, and the image processor, for `from_pretrained`.

        Args:
            folder: Where to write; `output_dir` if not given.
        """
        self.checkpointer.save_model(Path(folder or self.output_dir))

    def _start(self, resume: bool | str | None) -> Iterator[dict[str, Any]]:
        """Restore the checkpoint to resume from, if any, make the folder ready, and return the batches."""
        args = self.args
        checkpoint = self.checkpointer.restore(resume)
        # The first batch comes before anything in the folder changes: data that cannot be read leaves it as it was.
        batches = iter(self.loader)
        if self.state.global_step < args.max_steps:
            batches = itertools.chain([next(batches)], batches)
        self.accelerator.wait_for_everyone()
        if self.is_main:
            start_folder(self.output_dir, checkpoint, args.overwrite_output_dir)
        self.accelerator.wait_for_everyone()
        self.teacher_features.start()
        self.log = RunLog(args, self.accelerator, self.state.global_step)
        run = RunFolder(self.output_dir)
        self.skipped_images = SkippedImages(self.accelerator, run.skipped_images, self.state.global_step)
        self.image_ids = JsonLines(run.image_ids(self.rank), self.state.global_step, enabled=args.log_image_ids)
        return batches

    def _step(self, batches: Iterator[dict[str, Any]], window: LogWindow) -> None:
        """Make one optimizer step, or none if the loss or the gradient of any process is not finite."""
        args, step, started = self.args, self.state.global_step, time.perf_counter()
        values = hyperparameters_at(step, args, self.global_batch_size)
        set_hyperparameters(self.optimizer, values)
        seed_step(args.seed, step, self.rank)
        space = self.model.config.backbone_config.space
        sub_network = space.sub_network_at(step, args.seed, 0 if args.same_sub_network else self.rank)
        window.sub_network, window.hyperparameters = sub_network, values
        will_log = (step + 1) % args.logging_steps == 0 or step + 1 == args.max_steps
        losses, output = self._accumulate_gradients(batches, values, sub_network, window, will_log)
        losses["grad_norm"] = engines.clip_grad_norm(self.accelerator, self.model.learning, args.max_grad_norm)
        if values.freeze_backbone:
            # AdamW must not see gradients of 0: its count of steps would run ahead of its moments
            self.model.student.zero_grad()
        # The flag is the same on all processes, as losses and gradients are reduced. The host does not wait for it.
        skip = ~torch.isfinite(losses["loss"] + losses["grad_norm"])
        step_unless(skip, self.optimizer)
        self.model.update_teacher(values.teacher_momentum, skip, heads_only=values.freeze_backbone)
        window.add(losses, skip)
        self.nonfinite.add(step + 1, skip)
        self.optimizer.zero_grad()
        window.images += self.global_batch_size
        if will_log:
            window.add_statistics(output)
        window.step_seconds.append(time.perf_counter() - started)
        window.sizes.append(sub_network)

    def _accumulate_gradients(
        self,
        batches: Iterator[dict[str, Any]],
        values: StepHyperparameters,
        sub_network: SubNetwork,
        window: LogWindow,
        will_log: bool,
    ) -> tuple[dict[str, Tensor], PoaForPreTrainingOutput]:
        """Run forward and backward passes of all parts of a step.

        Returns:
            The losses, means over the parts and the processes, and the output of the last forward pass.
        """
        num_parts = self.args.gradient_accumulation_steps
        losses: dict[str, Tensor] = {}
        for part in range(num_parts):
            waiting_since = time.perf_counter()
            batch = next(batches)
            window.data_wait += time.perf_counter() - waiting_since
            self.skipped_images.add(batch, self.state.global_step + 1)
            self.image_ids.write({"step": self.state.global_step + 1, "image_ids": batch["image_ids"]})
            is_last = part + 1 == num_parts
            with nullcontext() if is_last else engines.accumulating(self.accelerator, self.wrapped_model):
                output = self._forward(batch, values, sub_network, will_log and is_last)
                # optional in the class, as in every ModelOutput, but always set
                total, terms = cast("Tensor", output.loss), cast("dict[str, Tensor]", output.losses)
                self.accelerator.backward(total / num_parts)
            for name, value in {"loss": total.detach(), **terms}.items():
                losses[name] = losses.get(name, 0.0) + value / num_parts
        stop = total.new_full((), float(self.stop_signals.received > 0))
        *means, stop = self.accelerator.reduce(torch.stack([*losses.values(), stop]), "mean")
        self.stop_signals.share(stop)
        return dict(zip(losses, means, strict=True)), output

    def _forward(
        self,
        batch: dict[str, Any],
        values: StepHyperparameters,
        sub_network: SubNetwork,
        return_statistics: bool,
    ) -> PoaForPreTrainingOutput:
        """Colour a batch of the loader on the device, and compute its loss."""
        device = self.accelerator.device
        crops = coloured_crops(batch, self.args, device, self.colour_all)
        masked_patches = batch["masks"].flatten().nonzero().squeeze(1)  # (M,) of 2B * patches
        with self.accelerator.autocast():
            return self.wrapped_model(
                crops["global"],
                crops["local"],
                batch["masks"].to(device, non_blocking=True),
                sub_network,
                values.teacher_temperature,
                predict_masked_patches=values.predict_masked_patches,
                return_statistics=return_statistics,
                masked_patches=masked_patches.to(device, non_blocking=True),
                freeze_backbone=values.freeze_backbone,
                teacher_features=self.teacher_features(batch, crops["global"]),
                pack_crops=self.args.pack_crops,
            )

    def _call(self, event: str, **values: Any) -> None:
        self.control = self.callbacks.call(event, self.args, self.state, self.control, **values)

    def _position(self) -> dict[str, Any]:
        """Return the epoch, if the size of the data is known, and the time, for a line of the log."""
        epoch = {}
        if self.loader.num_images is not None:
            self.state.epoch = self.state.global_step * self.global_batch_size / self.loader.num_images
            epoch = {"epoch": self.state.epoch}
        return epoch | {"time": datetime.now(UTC).isoformat(timespec="seconds")}

    def _log(self, window: LogWindow, progress: tqdm) -> None:
        """Write a line of the log, with what the callbacks add to it."""
        logs: dict[str, Any] = {"step": self.state.global_step, **self._position(), **window.summary()}
        logs |= self.skipped_images.report()
        self.nonfinite.settle()
        logs["nonfinite_steps"] = self.nonfinite.count
        if self.speed is not None:
            logs |= self.speed.values(window.step_seconds, window.sizes)
        self.control.should_log = False
        self._call("on_log", logs=logs)
        self.log.write(logs)
        self.state.log_history.append(logs)
        show_progress(progress, logs)
