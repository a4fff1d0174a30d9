"""The training loop, on Accelerate."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from ..data.augmentation import augment
from ..data.loader import PretrainingLoader
from ..data.processor import evaluation_processor
from ..models.modeling_poa_pretraining import PoaForPreTraining, load_complete
from ..runs.atomic import unfinished_folder, write_json, written_folder
from ..runs.checkpoints import (
    MAX_SHARD_SIZE,
    check_architecture,
    find_checkpoint,
    prune,
    replace_model,
    start_folder,
)
from ..runs.json_lines import JsonLines
from ..runs.layout import COUNTS, TRAINER_STATE, RunFolder, data_state, data_states
from ..runs.training_time import ComputeLog
from . import engines
from .arguments import PoaTrainingArguments
from .checks import check_run
from .monitoring import collapse_warning, feature_statistics
from .nonfinite import NonfiniteSteps
from .optimization import StepHyperparameters, hyperparameters_at, set_hyperparameters, step_unless
from .runlog import Window

logger = logging.getLogger(__name__)


class TrainingDivergedError(RuntimeError):
    """The loss was not finite for too many steps in a row."""


class PoaTrainer:
    """Pre-trains a `PoaForPreTraining` on images.

    Every random choice is a function of the seed, the step and the process (sub-network, stochastic depth) or of the
    image's place in the global batch (crops, colours, masks). So a resumed run repeats an uninterrupted one exactly,
    and the number of processes changes neither crops nor masks.

    Args:
        train_dataset: A `datasets.Dataset` or `IterableDataset` with an image column, or any indexable collection of
            images. Labels are not read.
        callbacks: Stock `transformers.TrainerCallback`s.

    Raises:
        ValueError: For arguments that do not fit the model, the data or the output folder, before any work.
    """

    def __init__(
        self,
        model: PoaForPreTraining,
        args: PoaTrainingArguments,
        train_dataset,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        self.args = args
        self.output_dir = Path(args.output_dir)
        check_run(model.config, args)
        self.accelerator = engines.new_accelerator(args)
        self.is_main = self.accelerator.is_main_process
        resizes = any("position_embeddings" in name for name, _ in model.student.named_parameters())
        # a warm start keeps its source's grid, and so its function at every size
        meant = model.config.warm_started_from is not None
        if self.is_main and resizes and not meant and model.config.backbone_config.image_size != args.global_crop_size:
            logger.warning(
                "The model's image_size %s is not global_crop_size %d: its position embeddings are resized at each "
                "step; set both alike unless this is meant.",
                model.config.backbone_config.image_size,
                args.global_crop_size,
            )
        self.rank = self.accelerator.process_index
        self.global_batch_size = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
        )
        self.compute = ComputeLog(self.accelerator.device, self.accelerator.num_processes, self.global_batch_size)
        self.loader = PretrainingLoader(
            train_dataset,
            args,
            batch_size=args.per_device_train_batch_size,
            mask_grid=(args.global_crop_size // model.config.backbone_config.patch_grid,) * 2,
            rank=self.rank,
            world_size=self.accelerator.num_processes,
            num_workers=args.dataloader_num_workers,
            seed=args.seed,
            image_column=args.image_column,
        )
        if args.attn_implementation:
            for backbone in (model.student, model.teacher):  # sub-networks go by the student's
                backbone.set_attn_implementation(args.attn_implementation)
        if args.gradient_checkpointing:
            model.student.activation_checkpointing_enable()
        if args.torch_compile:
            model.compile_full_size()
        model.train()
        self.wrapped_model, self.optimizer = engines.prepare(self.accelerator, model, args)
        self.model: PoaForPreTraining = self.accelerator.unwrap_model(self.wrapped_model)
        self.accelerator.register_save_state_pre_hook(self._save_model_hook)
        self.accelerator.register_load_state_pre_hook(self._load_model_hook)
        self.state = TrainerState(max_steps=args.max_steps, is_world_process_zero=self.is_main)
        self.state.is_local_process_zero = self.accelerator.is_local_main_process
        self.control = TrainerControl()
        self.callbacks = CallbackHandler([_OwnFlow(), *callbacks], self.model, None, self.optimizer, None)
        self.callbacks.train_dataloader = self.loader
        self.nonfinite = NonfiniteSteps(self.is_main)
        self.skipped_images = 0

    # -- the loop

    def train(self, resume_from_checkpoint: bool | str | None = None) -> TrainerState:
        """Run to `max_steps`; the trained model is then in `output_dir`, loadable by `from_pretrained`.

        Args:
            resume_from_checkpoint: True for the last complete checkpoint in `output_dir` (from the start when there is
                none yet), or a path. None takes it from the arguments.

        Raises:
            ValueError: If the folder holds another run, or a checkpoint has another architecture.
            TrainingDivergedError: If the loss was not finite for `max_nonfinite_steps` steps in a row.
        """
        args, state = self.args, self.state
        resume = args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        checkpoint = find_checkpoint(self.output_dir, resume, args.overwrite_output_dir)
        if checkpoint is not None:
            check_architecture(self.model.config, checkpoint)
            self._load(checkpoint)
        elif resume and self.is_main:
            logger.warning("%s has no checkpoint yet: starting from step 0.", self.output_dir)
        # The first batch comes before anything in the folder changes: data that cannot be read leaves it as it was.
        batches = iter(self.loader)
        if state.global_step < args.max_steps:
            batches = itertools.chain([next(batches)], batches)
        self.accelerator.wait_for_everyone()
        if self.is_main:
            start_folder(self.output_dir, checkpoint, args.overwrite_output_dir)
        self.accelerator.wait_for_everyone()
        self._start_logs()
        self.control = self.callbacks.on_train_begin(args, state, self.control)
        self.wrapped_model.train()
        self.compute.start(state.global_step)
        window = Window()
        with tqdm(
            total=args.max_steps, initial=state.global_step, unit="step", disable=args.disable_tqdm or not self.is_main
        ) as progress:
            while state.global_step < args.max_steps and not self.control.should_training_stop:
                self.control = self.callbacks.on_step_begin(args, state, self.control)
                self._step(batches, window)
                state.global_step += 1
                progress.update()
                self.control = self.callbacks.on_step_end(args, state, self.control)
                last = state.global_step == args.max_steps or self.control.should_training_stop
                if state.global_step % args.logging_steps == 0 or last or self.control.should_log:
                    self._log(window, progress)
                    window = Window()
                if state.global_step % args.save_steps == 0 or last or self.control.should_save:
                    self._save()
                self.control.should_log = self.control.should_save = False
                self._stop_if_diverged()
            self.nonfinite.settle()
            self._stop_if_diverged()
        self.save_model()
        self.control = self.callbacks.on_train_end(args, state, self.control)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        return state

    def _step(self, batches, window: Window) -> None:
        """One optimizer step, or none when any process has a loss or gradient that is not finite."""
        args, step = self.args, self.state.global_step
        values = hyperparameters_at(step, args, self.global_batch_size)
        set_hyperparameters(self.optimizer, values)
        # stochastic depth draws from the global generator
        torch.manual_seed(int(np.random.SeedSequence([args.seed, step, self.rank]).generate_state(1)[0]))
        space = self.model.config.backbone_config.space
        window.sub_network = space.sub_network_at(step, args.seed, 0 if args.same_sub_network else self.rank)
        window.values = values
        will_log = (step + 1) % args.logging_steps == 0 or step + 1 == args.max_steps
        losses: dict[str, Tensor] = defaultdict(float)
        for part in range(args.gradient_accumulation_steps):
            waiting_since = time.perf_counter()
            batch = next(batches)
            window.data_wait += time.perf_counter() - waiting_since
            self.skipped_images += batch["skipped"]
            self.image_ids.write({"step": step + 1, "image_ids": batch["image_ids"]})
            is_last = part + 1 == args.gradient_accumulation_steps
            with nullcontext() if is_last else engines.accumulating(self.accelerator, self.wrapped_model):
                output = self._forward(batch, values, window.sub_network, will_log and is_last)
                self.accelerator.backward(output.loss / args.gradient_accumulation_steps)
            for name, loss in {"loss": output.loss.detach(), **output.losses}.items():
                losses[name] = losses[name] + loss / args.gradient_accumulation_steps
        losses = dict(zip(losses, self.accelerator.reduce(torch.stack(list(losses.values())), "mean"), strict=True))
        modules = self.model.student, self.model.student_head
        losses["grad_norm"] = engines.clip_grad_norm(self.accelerator, modules, args.max_grad_norm)
        if values.freeze_backbone:
            # AdamW must not see its zeros: its moments would be behind its count of steps when the backbone sets off
            self.model.student.zero_grad()
        # Both are the same on all processes: losses are reduced, gradients too. The host does not wait for the flag.
        skip = ~torch.isfinite(losses["loss"] + losses["grad_norm"])
        step_unless(skip, self.optimizer)
        self.model.update_teacher(values.teacher_momentum, skip, heads_only=values.freeze_backbone)
        window.add(losses, skip)
        self.nonfinite.add(step + 1, skip)
        self.optimizer.zero_grad()
        window.images += self.global_batch_size
        if will_log:
            window.statistics = {name: value.item() for name, value in output.statistics.items()}
            if torch.isfinite(output.teacher_features).all():
                window.statistics |= feature_statistics(output.teacher_features)

    def _stop_if_diverged(self) -> None:
        if self.nonfinite.in_a_row >= self.args.max_nonfinite_steps:
            raise TrainingDivergedError(
                f"The loss was not finite for {self.nonfinite.in_a_row} steps in a row, up to step "
                f"{self.nonfinite.last_step}: lower learning_rate and resume from a checkpoint before that."
            )

    def _forward(self, batch: dict, values: StepHyperparameters, sub_network, return_statistics: bool):
        device = self.accelerator.device
        crops = {}
        for kind in ("global", "local"):
            pixels = batch[f"{kind}_crops"].to(device, non_blocking=True)
            # the parameters stay on the CPU, where they say which crops an operation is for
            parameters = batch[f"{kind}_augmentation"]
            crops[kind] = augment(pixels, parameters, self.args.image_mean, self.args.image_std)
        masked_patches = batch["masks"].flatten().nonzero().squeeze(1)
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
            )

    # -- logs

    def _log(self, window: Window, progress: tqdm) -> None:
        logs = {"step": self.state.global_step, **window.means()}
        logs |= window.statistics
        logs |= dataclasses.asdict(window.values) | {"sub_network": str(window.sub_network)}
        elapsed = time.perf_counter() - window.started
        logs["images_per_second"] = window.images / elapsed
        logs["data_wait"] = window.data_wait / elapsed
        counts = torch.tensor([self.skipped_images], device=self.accelerator.device)
        logs["skipped_images"] = int(self.accelerator.reduce(counts, "sum"))
        self.nonfinite.settle()
        logs["nonfinite_steps"] = self.nonfinite.count
        # first, so that a callback may add to the line
        self.control = self.callbacks.on_log(self.args, self.state, self.control, logs)
        if self.is_main:
            self.metrics.write(logs)
            self._warn(logs)
        progress.set_postfix(
            loss=f"{logs.get('loss', float('nan')):.3f}",
            images_s=f"{logs['images_per_second']:.0f}",
            data_wait=f"{logs['data_wait']:.0%}",
            refresh=False,
        )
        self.accelerator.log({k: v for k, v in logs.items() if not isinstance(v, str)}, step=self.state.global_step)
        self.state.log_history.append(logs)

    def _warn(self, logs: dict) -> None:
        """Say in words what is wrong, once for as long as it lasts."""
        warnings = set()
        # of a handful of images the spread says nothing
        if self.args.per_device_train_batch_size >= 8 and "feature_spread" in logs:
            warnings.add(collapse_warning(logs))
        # the first line's time has the start of the workers in it
        if logs["data_wait"] > 0.2 and logs["step"] > self.first_step + self.args.logging_steps:
            warnings.add("More than a fifth of the time goes into waiting for data: raise dataloader_num_workers.")
        for warning in warnings - self.warnings - {None}:
            logger.warning(warning)
        self.warnings = warnings

    def _start_logs(self) -> None:
        args, run = self.args, RunFolder(self.output_dir)
        self.first_step, self.warnings = self.state.global_step, set()
        if self.is_main:
            write_json(run.training_arguments, dataclasses.asdict(args))
        self.accelerator.wait_for_everyone()
        self.metrics = JsonLines(run.metrics, self.state.global_step, self.is_main)
        self.image_ids = JsonLines(run.image_ids(self.rank), self.state.global_step, args.log_image_ids)
        if args.trackers:
            plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in vars(args).items()}
            self.accelerator.init_trackers("poa_hf", config=plain)

    # -- checkpoints

    def save_model(self, folder: str | Path | None = None) -> None:
        """Write teacher, student and heads, and the image processor, for `from_pretrained`."""
        folder = Path(folder or self.output_dir)
        wait = self.accelerator.wait_for_everyone
        with unfinished_folder(folder / "model", self.is_main, wait) as new:
            self._save_pretrained(new)
        if self.is_main:
            replace_model(folder, new)
        wait()

    def _save_pretrained(self, folder: Path) -> None:
        args, state_dict = self.args, engines.whole_state_dict(self.model)
        if self.is_main:
            self.model.save_pretrained(folder, state_dict=state_dict, max_shard_size=MAX_SHARD_SIZE)
            evaluation_processor(args.global_crop_size, args.image_mean, args.image_std).save_pretrained(folder)
            self.compute.write(folder, self.state.global_step)

    def _save_model_hook(self, models, weights, folder: str) -> None:
        weights.clear()  # Accelerate would write them a second time
        self._save_pretrained(Path(folder))

    def _load_model_hook(self, models, folder: str) -> None:
        models.clear()
        engines.load_whole_state_dict(self.model, load_complete(folder).state_dict())

    def _save(self) -> None:
        target = RunFolder(self.output_dir).checkpoint(self.state.global_step)
        self.nonfinite.settle()
        with written_folder(target, self.is_main, self.accelerator.wait_for_everyone) as folder:
            engines.save_state(self.accelerator, self.model, self.optimizer, folder)
            data_state(folder, self.rank).write_text(json.dumps(self.loader.state_dict()))
            if self.is_main:
                counts = {
                    "global_batch_size": self.global_batch_size,
                    "nonfinite_steps": self.nonfinite.count,
                    "in_a_row": self.nonfinite.in_a_row,
                }
                (folder / COUNTS).write_text(json.dumps(counts))
                if self.state.best_global_step == self.state.global_step:
                    self.state.best_model_checkpoint = str(target)
                self.state.save_to_json(str(folder / TRAINER_STATE))
        if self.is_main:
            prune(self.output_dir, self.args.save_total_limit, self.state.best_global_step)
        self.control = self.callbacks.on_save(self.args, self.state, self.control)

    def _load(self, checkpoint: Path) -> None:
        counts = json.loads((checkpoint / COUNTS).read_text())
        if counts["global_batch_size"] != self.global_batch_size:
            raise ValueError(
                f"{checkpoint} is of a run with {counts['global_batch_size']} images a step, this one has "
                f"{self.global_batch_size}: keep processes * per_device_train_batch_size * gradient_accumulation_steps."
            )
        saved = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
        if saved.global_step > self.args.max_steps:
            raise ValueError(
                f"{checkpoint} lies after max_steps {self.args.max_steps}: raise it, or name an earlier checkpoint."
            )
        engines.load_state(self.accelerator, self.model, self.optimizer, checkpoint)
        self.compute.resume(checkpoint)
        self.loader.load_state_dict([json.loads(path.read_text()) for path in data_states(checkpoint)])
        for name in ("global_step", "log_history", "best_metric", "best_global_step", "best_model_checkpoint"):
            setattr(self.state, name, getattr(saved, name))
        self.nonfinite.count, self.nonfinite.in_a_row = counts["nonfinite_steps"], counts["in_a_row"]


class _OwnFlow(DefaultFlowCallback):
    """Stands in for the stock flow, which the handler insists on: here the loop itself says when to log and save."""

    def on_step_end(self, args, state, control, **kwargs):
        return control
