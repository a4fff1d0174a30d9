"""One optimizer step: batches through the model, gradients, AdamW, and the teacher's moving average."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from ..models.modeling_poa_pretraining import PoaForPreTraining, PoaForPreTrainingOutput
from ..objective.feature_matching import TeacherFeatures
from ..sub_network import SubNetwork
from . import engines
from .arguments import PoaTrainingArguments
from .flow import FlowCallback
from .monitoring import LogWindow, NonfiniteSteps
from .optimization import StepHyperparameters, hyperparameters_at, set_hyperparameters, step_unless
from .preparation import coloured_crops, seed_step
from .stopping import StopSignals


@dataclass
class OptimizerStep:
    """Makes the optimizer steps of a run.

    Attributes:
        args: The arguments of the run.
        accelerator: The accelerator of the run.
        model: The model.
        wrapped_model: The model as its engine wraps it.
        optimizer: The optimizer as Accelerate wraps it.
        compute_loss: Returns, from the wrapped model, its arguments and True, the loss and the model's output.
        teacher_features: Returns a foreign teacher's features of a batch.
        gram_teacher: Returns the Gram teacher's features of the patches of a batch.
        colour_all: See `augment`.
        flow: Says which steps are logged.
        nonfinite: Counts steps that are skipped.
        stop_signals: Shares among the processes that one of them was told to stop.
    """

    args: PoaTrainingArguments
    accelerator: Accelerator
    model: PoaForPreTraining
    wrapped_model: torch.nn.Module
    optimizer: AcceleratedOptimizer
    compute_loss: Callable[[torch.nn.Module, dict[str, Any], bool], Any]
    teacher_features: Callable[[dict[str, Any], Tensor], TeacherFeatures | None]
    gram_teacher: Callable[[dict[str, Any], Tensor], Tensor | None]
    colour_all: Callable[[Tensor, dict[str, Tensor]], Tensor] | None
    flow: FlowCallback
    nonfinite: NonfiniteSteps
    stop_signals: StopSignals

    def __call__(self, batches: Iterator[dict[str, Any]], step: int, window: LogWindow) -> None:
        """Make one optimizer step, or none if the loss or the gradient of any process is not finite.

        Args:
            batches: The batches of the loader.
            step: The steps so far.
            window: Collects what the next line of the log says.
        """
        args, started = self.args, time.perf_counter()
        rank, global_batch_size = self.accelerator.process_index, self.flow.global_batch_size
        values = hyperparameters_at(step, args, global_batch_size)
        set_hyperparameters(self.optimizer, values)
        seed_step(args.seed, step, rank)
        sub_networks = self._sub_networks(step)
        window.sub_networks, window.hyperparameters = sub_networks, values
        will_log = self.flow.logs_at(step + 1, args)
        losses, output = self._accumulate_gradients(batches, values, sub_networks, window, will_log)
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
        window.images += global_batch_size
        if will_log:
            window.add_statistics(output)
        window.step_seconds.append(time.perf_counter() - started)
        window.sizes.append(sub_networks)

    def _sub_networks(self, step: int) -> tuple[SubNetwork, ...]:
        """Return what this process trains besides the intact student at a step."""
        args = self.args
        if step < args.elastic_start_step or self.model.config.intact_weight == 1:
            return ()
        space = self.model.config.backbone_config.space
        rank = 0 if args.same_sub_network else self.accelerator.process_index
        return space.sub_networks_at(step, args.seed, rank, args.num_elastic_students)

    def _accumulate_gradients(
        self,
        batches: Iterator[dict[str, Any]],
        values: StepHyperparameters,
        sub_networks: tuple[SubNetwork, ...],
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
            with window.data_wait.waiting(self.accelerator.device):
                batch = next(batches)
            is_last = part + 1 == num_parts
            with nullcontext() if is_last else engines.accumulating(self.accelerator, self.wrapped_model):
                inputs = self._inputs(batch, values, sub_networks, will_log and is_last)
                with self.accelerator.autocast():
                    total, output = self.compute_loss(self.wrapped_model, inputs, True)
                self.accelerator.backward(total / num_parts)
            for name, value in {"loss": total.detach(), **(output.losses or {})}.items():
                losses[name] = losses.get(name, 0.0) + value / num_parts
        stop = total.new_full((), float(self.stop_signals.received > 0))
        *means, stop = self.accelerator.reduce(torch.stack([*losses.values(), stop]), "mean")
        self.stop_signals.share(stop)
        return dict(zip(losses, means, strict=True)), output

    def _inputs(
        self,
        batch: dict[str, Any],
        values: StepHyperparameters,
        sub_networks: tuple[SubNetwork, ...],
        return_statistics: bool,
    ) -> dict[str, Any]:
        """Colour a batch of the loader on the device, and return the arguments of the model."""
        device = self.accelerator.device
        crops = coloured_crops(batch, self.args, device, self.colour_all)
        masked_patches = batch["masks"].flatten().nonzero().squeeze(1)  # (M,) of 2B * patches
        return {
            "global_crops": crops["global"],
            "local_crops": crops["local"],
            "masks": batch["masks"].to(device, non_blocking=True),
            # one is given as itself, for subclasses of PoaTrainer that compute a loss of their own
            "sub_network": sub_networks[0] if len(sub_networks) == 1 else sub_networks,
            "teacher_temperature": values.teacher_temperature,
            "predict_masked_patches": values.predict_masked_patches,
            "return_statistics": return_statistics,
            "masked_patches": masked_patches.to(device, non_blocking=True),
            "freeze_backbone": values.freeze_backbone,
            "teacher_features": self.teacher_features(batch, crops["global"]),
            "pack_crops": self.args.pack_crops,
            "gram_features": self.gram_teacher(batch, crops["global"]),
        }
