"""What a run saves, and how it is restored.

A checkpoint holds (`runs.layout` has the names of the files):

- the model (teacher, student and heads) as a folder for `from_pretrained`, with its image processor and `compute.json`;
- the optimizer's state, in the form of the engine (`engine_states`);
- the step, the log history and the best evaluation, as a `TrainerState`;
- the batch size and the counts of steps that were not finite;
- each process's position in the data;
- the checksums of all these files.

After the last step, the model is also written to the output folder.
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.optim import Optimizer
from transformers import TrainerState

from ..data.loader import PretrainingLoader
from ..data.processor import evaluation_processor
from ..formatting import one_line
from ..models.complete import load_complete
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..runs.atomic import unfinished_folder, written_folder
from ..runs.checkpoints import MAX_SHARD_SIZE, find_checkpoint, prune, replace_model
from ..runs.checksums import write_checksums
from ..runs.compatibility import check_architecture, check_same_teacher
from ..runs.json_files import read_object
from ..runs.layout import COUNTS, OPTIMIZER_STATE, TRAINER_STATE, RunFolder, data_state, data_states
from ..runs.lock import locked_run
from ..runs.soundness import read_counts, read_trainer_state
from ..runs.training_time import ComputeLog
from ..runs.writing import WriteError
from . import engine_states
from .arguments import PoaTrainingArguments
from .monitoring import NonfiniteSteps

logger = logging.getLogger(__name__)

T = TypeVar("T")
_RESTORED_STATE = ("global_step", "log_history", "best_metric", "best_global_step", "best_model_checkpoint")


@contextmanager
def run_locked(accelerator: Accelerator, output_dir: Path) -> Iterator[None]:
    """Hold the folder of a run while it trains. The main process takes the lock; all learn of a refusal.

    Raises:
        ValueError: On all processes, if another run holds the folder, or it cannot be written to.
    """
    with ExitStack() as lock:
        on_main(accelerator, lambda: lock.enter_context(locked_run(output_dir)))
        yield


def on_main(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """Call a function on the main process, and give its result to all.

    Raises:
        ValueError: On all processes, if the function raises one.
        WriteError: On all processes, if the function cannot write.
    """
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome[0] = function()
        except (ValueError, WriteError) as error:
            outcome[1] = (WriteError if isinstance(error, WriteError) else ValueError)(str(error))
    result, refusal = broadcast_object_list(outcome)
    if refusal is not None:
        raise refusal
    return result


class Checkpointer:
    """Saves and restores a run. All processes call each method together.

    Args:
        args: The arguments of the run.
        accelerator: The accelerator of the run.
        model: The model, without the engine's wrapper.
        optimizer: The optimizer as Accelerate wraps it.
        loader: The data, whose position is saved.
        state: Step, log history and best evaluation of the run.
        nonfinite: The counts of steps that were not finite.
        global_batch_size: Images per optimizer step, of all processes.
        in_use: Returns the checkpoints that must not be deleted, as they are being pushed.
    """

    def __init__(
        self,
        args: PoaTrainingArguments,
        accelerator: Accelerator,
        model: PoaForPreTraining,
        optimizer: Optimizer,
        loader: PretrainingLoader,
        state: TrainerState,
        nonfinite: NonfiniteSteps,
        global_batch_size: int,
        in_use: Callable[[], Container[Path]] = frozenset,
    ):
        self.in_use = in_use
        self.args, self.accelerator, self.model, self.optimizer = args, accelerator, model, optimizer
        self.loader, self.state, self.nonfinite = loader, state, nonfinite
        self.global_batch_size = global_batch_size
        self.output_dir = Path(args.output_dir)
        self.is_main = accelerator.is_main_process
        # of the data, where the loader has read a batch that no step has taken yet
        self.position: dict[str, Any] | None = None
        self.training_time = ComputeLog(accelerator.device, accelerator.num_processes, global_batch_size)

    def save(self) -> None:
        """Write a checkpoint of the current step, and delete the oldest ones beyond `save_total_limit`."""
        state = self.state
        target = RunFolder(self.output_dir).checkpoint(state.global_step)
        self.nonfinite.settle()
        if state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(target)
        with written_folder(target, self.is_main, self.accelerator.wait_for_everyone) as folder:
            engine_states.save_state(self.accelerator, self.model, self.optimizer, folder, self._write_model)
            position = self.loader.state_dict() if self.position is None else self.position
            data_state(folder, self.accelerator.process_index).write_text(json.dumps(position))
            if self.is_main:
                counts = {
                    "global_batch_size": self.global_batch_size,
                    "nonfinite_steps": self.nonfinite.count,
                    "in_a_row": self.nonfinite.in_a_row,
                }
                (folder / COUNTS).write_text(json.dumps(counts))
                state.save_to_json(str(folder / TRAINER_STATE))
            self.accelerator.wait_for_everyone()
            if self.is_main:
                write_checksums(folder)
        if self.is_main:
            self.prune()

    def prune(self) -> None:
        """Delete the oldest checkpoints beyond `save_total_limit`; only the main process calls this."""
        prune(self.output_dir, self.args.save_total_limit, self.state.best_global_step, self.in_use())

    def find(self, resume: bool | str | None) -> Path | None:
        """Find the checkpoint to resume from, as `find_checkpoint` does. The main process verifies it for all.

        Raises:
            ValueError: On all processes, if there is no such checkpoint.
        """
        args = self.args
        return on_main(
            self.accelerator, lambda: find_checkpoint(self.output_dir, resume, args.overwrite_output_dir, thorough=True)
        )

    def restore(self, resume: bool | str | None) -> Path | None:
        """Find the checkpoint to resume from and restore the run from it, saying so; None if the run starts anew.

        Raises:
            ValueError: On all processes, if there is no such checkpoint, or it does not fit this run.
        """
        checkpoint = self.find(resume)
        if checkpoint is not None:
            self.load(checkpoint)
            if self.is_main:
                step, last = self.state.global_step, self.args.max_steps
                logger.info("Resuming from %s, at step %d of %d.", checkpoint, step, last)
        elif resume and self.is_main:
            logger.warning("%s has no checkpoint yet: starting from step 0.", self.output_dir)
        return checkpoint

    def load(self, checkpoint: Path) -> None:
        """Restore the run from a checkpoint.

        Raises:
            ValueError: If the checkpoint has another architecture or foreign teacher, or does not fit the run's batch
                size, `max_steps`, data or engine.
        """
        check_architecture(self.model.config, checkpoint)
        check_same_teacher(self.model.config, checkpoint)
        counts = read_counts(checkpoint)
        if counts["global_batch_size"] != self.global_batch_size:
            before, now = len(data_states(checkpoint)), self.accelerator.num_processes
            processes = "" if before == now else f" on {before} process{'es' if before > 1 else ''} and {now} now"
            raise ValueError(
                f"{checkpoint} belongs to a run with {counts['global_batch_size']} images a step, this one has "
                f"{self.global_batch_size}{processes}: keep processes * per_device_train_batch_size * "
                "gradient_accumulation_steps."
            )
        saved = read_trainer_state(checkpoint)
        if saved.global_step > self.args.max_steps:
            raise ValueError(
                f"{checkpoint} lies after max_steps {self.args.max_steps}: raise it, or name an earlier checkpoint."
            )
        self._load_state(checkpoint)
        self.training_time.resume(checkpoint)
        self._load_position(checkpoint)
        for name in _RESTORED_STATE:
            setattr(self.state, name, getattr(saved, name))
        if saved.best_model_checkpoint is not None:  # the run may lie elsewhere now
            self.state.best_model_checkpoint = str(self.output_dir / Path(saved.best_model_checkpoint).name)
        self.nonfinite.count, self.nonfinite.in_a_row = counts["nonfinite_steps"], counts["in_a_row"]

    def load_best(self) -> None:
        """Put the best evaluation's weights into the model, and those of its optimizer, if it is not the last one."""
        best = on_main(self.accelerator, self._earlier_best)
        if best is None:
            return
        self._load_state(best)
        if self.is_main:
            logger.info("The model that is kept is that of step %d, the best.", self.state.best_global_step)

    def save_model(self, folder: Path) -> None:
        """Write the model into a folder, replacing one that is there."""
        wait_for_everyone = self.accelerator.wait_for_everyone
        with unfinished_folder(folder / "model", self.is_main, wait_for_everyone) as new:
            self._write_model(new)
            if self.is_main:
                write_checksums(new)
        if self.is_main:
            replace_model(folder, new)
        wait_for_everyone()

    def _earlier_best(self) -> Path | None:
        """Return the checkpoint of the best evaluation; None if there is none, it is gone, or it is the last step's."""
        state = self.state
        if state.best_model_checkpoint is None or state.best_global_step == state.global_step:
            return None
        best = Path(state.best_model_checkpoint)
        if best.is_dir():
            return best
        logger.warning("%s, the best checkpoint, is gone: the model that is kept is the last step's.", best)
        return None

    def _load_state(self, checkpoint: Path) -> None:
        """Restore model and optimizer, whose files may come from anywhere."""
        try:
            engine_states.load_state(self.accelerator, self.model, self.optimizer, checkpoint, self._read_model)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, pickle.UnpicklingError) as error:
            if str(checkpoint) in str(error):
                raise
            raise ValueError(
                f"{checkpoint}/{OPTIMIZER_STATE} does not hold the state of this optimizer ({one_line(error, 100)}): "
                "resume from another checkpoint."
            ) from error
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(
                        f"{checkpoint}/{OPTIMIZER_STATE} does not fit the model (an {name} has the shape "
                        f"{tuple(value.shape)} instead of {tuple(parameter.shape)}): resume from another checkpoint."
                    )

    def _load_position(self, checkpoint: Path) -> None:
        try:
            self.loader.load_state_dict([read_object(path) for path in data_states(checkpoint)])
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"The data states of {checkpoint} are not those of a run ({type(error).__name__}: "
                f"{one_line(error, 100)}): resume from another checkpoint."
            ) from error

    def _write_model(self, folder: Path) -> None:
        args, state_dict = self.args, engine_states.whole_state_dict(self.model)
        if self.is_main:
            self.model.save_pretrained(folder, state_dict=state_dict, max_shard_size=MAX_SHARD_SIZE)
            statistics = args.image_mean, args.image_std, args.image_range
            evaluation_processor(args.global_crop_size, *statistics).save_pretrained(folder)
            self.training_time.write(folder, self.state.global_step)

    def _read_model(self, folder: Path) -> None:
        saved = load_complete(folder)
        engine_states.load_whole_state_dict(self.model, saved.state_dict())
        self.model.config.units_ordered_on = saved.config.units_ordered_on
