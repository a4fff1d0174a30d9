"""What a run says on standard output: facts at its start, lines of the log, evaluations, and what to do next."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import psutil
import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState

from ..data.loader import PretrainingLoader
from ..formatting import format_bytes, format_duration, listed
from .arguments import PoaTrainingArguments
from .optimization import peak_learning_rate

if TYPE_CHECKING:
    from ..models.configuration_poa import PoaConfig
    from ..models.modeling_poa_pretraining import PoaForPreTraining

# A PoaTrainer passes its PoaTrainingArguments, where transformers' callbacks declare TrainingArguments.
Arguments = Any
# What the terms of the loss are called in a line: the mean over the heads of those whose names start with a key.
_TERMS = {"dino": "dino_", "ibot": "ibot_", "distill": "distill_", "koleo": "koleo_", "features": "feature_"}
_TERMS |= {"gram": "gram_"}
_KNN = "knn_"
_BYTES_PER_WEIGHT = 16  # weight, gradient and AdamW's two averages, in float32


class ConsoleCallback(TrainerCallback):
    """Says on standard output how a run is going.

    A `PoaTrainer` adds one by itself, unless `quiet` is set. Only the main process speaks. Lines pass a progress bar
    without breaking it.

    Args:
        data: What the images are called, such as the name of a dataset.
        labelled: Whether the run's own images have labels, so that `poa evaluate` needs no others.
    """

    def __init__(self, data: str | None = None, labelled: bool = False):
        self.data, self.labelled = data, labelled

    def on_train_begin(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._began, self._first_step = time.perf_counter(), state.global_step
        self._last_evaluation: dict[str, float] = {}
        if not state.is_world_process_zero:
            return
        facts = start_facts(kwargs["model"], kwargs["train_dataloader"], args, state, self.data)
        width = max(map(len, facts))
        say("\n".join(f"{name:<{width}}  {text}" for name, text in facts.items()) + "\n")

    def on_log(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        logs, step = kwargs["logs"], state.global_step
        seconds = (time.perf_counter() - self._began) / max(1, step - self._first_step)
        say(log_line(logs, args.max_steps, seconds * (args.max_steps - step), memory_in_use(logs)))
        if evaluation := {name: value for name, value in logs.items() if name.startswith(_KNN)}:
            is_best = bool(self._last_evaluation) and state.best_global_step == step
            say(evaluation_table(evaluation, step, self._last_evaluation, is_best))
            self._last_evaluation = evaluation

    def on_train_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder, duration = args.output_dir, format_duration(time.perf_counter() - self._began)
        images = "" if self.labelled else " --dataset_name DATASET"
        best = f"; the best checkpoint by k-NN is {state.best_model_checkpoint}" if state.best_model_checkpoint else ""
        say(
            f"Step {state.global_step} written to {folder} after {duration}{best}\n"
            f"next: poa report {folder}\n"
            f"      poa evaluate {folder}{images}\n"
            f"      poa extract {folder} --size {kwargs['model'].config.backbone_config.space.smallest} --output FOLDER"
        )


def say(text: str) -> None:
    """Print lines on standard output, above the progress bar if there is one."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def start_facts(
    model: PoaForPreTraining,
    loader: PretrainingLoader,
    args: PoaTrainingArguments,
    state: TrainerState,
    data: str | None = None,
) -> dict[str, str]:
    """Return what a run says at its start, by short names.

    Args:
        model: The model.
        loader: The loader of the images.
        args: The arguments.
        state: The trainer's state, which knows the step that the run is at.
        data: What the images are called.
    """
    backbone = model.config.backbone_config
    space = backbone.space
    processes, batch = loader.world_size, loader.batch_size * loader.world_size * args.gradient_accumulation_steps
    student, heads = (sum(p.numel() for p in part.parameters()) for part in (model.student, model.student_head))
    number = loader.num_images
    images = f"{number:,} images" if number is not None else f"a stream of {loader.num_files:,} files"
    epochs = f", {_short(batch * args.max_steps / number)} epochs" if number is not None else ""
    made_of = [f"{args.per_device_train_batch_size} an accumulation"] * (args.gradient_accumulation_steps > 1)
    made_of += [f"{processes} processes"] * (processes > 1)
    memory = _BYTES_PER_WEIGHT * (student + heads) + 4 * (student + heads)  # the teacher's weights
    crops = f"2 of {args.global_crop_size} and {args.num_local_crops} of {args.local_crop_size} pixels an image"
    trained = "" if space.num_candidates is None else f", of which {space.num_candidates} are trained"
    if untrained := [name for name, size in space.named.items() if size not in space.candidates]:
        trained += f", {' and '.join(untrained)} not among them"
    start = f"step {state.global_step}, where a checkpoint ends" if state.global_step else "step 0"
    return {
        "model": f"{backbone.model_type}, {len(space)} sizes from {space.smallest} to {space.full}{trained}; student "
        f"{student:,} parameters, its heads {heads:,}",
        **_foreign_teacher(model.config.distillation),
        **_gram_teacher(model.config),
        "images": f"{data}: {images}" if data else images,
        "crops": crops,
        "device": f"{device_name(model.device)}, {processes} process{'es' * (processes > 1)}, "
        f"{'bfloat16' if args.bf16 else 'float32'}, blocks {'' if model.compiles_blocks else 'not '}compiled",
        "memory": f"{format_bytes(memory)} a process for weights, gradients and AdamW; activations come on top",
        "steps": f"{args.max_steps:,} of {batch:,} images" + (f" ({listed(made_of)})" if made_of else "") + epochs,
        "rate": f"{peak_learning_rate(args, batch):.2e} after {args.warmup_steps:,} steps of warm-up "
        f"({args.learning_rate:.2e} for 1024 images a step)",
        "folder": f"{args.output_dir}; a line every {args.logging_steps:,} steps, a checkpoint every "
        f"{args.save_steps:,}",
        **({"hub": f"pushed to {args.hub_model_id}, {args.hub_strategy}"} if args.push_to_hub else {}),
        "start": start,
    }


def _foreign_teacher(distillation: Mapping[str, Any] | None) -> dict[str, str]:
    """Return which frozen model the students learn from, and how, if there is one."""
    if distillation is None:
        return {}
    what = "image and patch features" if distillation["patch_features"] else "image features"
    of = ", each image once and whole" if distillation["whole_images"] else ""
    return {"teacher": f"{distillation['teacher']}, frozen; {distillation['loss']} from its {what}{of}"}


def _gram_teacher(config: PoaConfig) -> dict[str, str]:
    """Return which model the students' patches are anchored to, and how strongly, if there is one."""
    if not config.gram_weight:
        return {}
    name = (config.gram_teacher or {}).get("teacher") or "the teacher at step 0"
    return {"gram": f"weight {config.gram_weight:g}, to {name}, frozen"}


def log_line(logs: Mapping[str, Any], max_steps: int, seconds_left: float, memory: float) -> str:
    """Return a line of the log in short.

    Args:
        logs: The values of the line.
        max_steps: The steps of the run.
        seconds_left: The time that the run is expected to take from here.
        memory: The bytes that the run uses.

    Example:
        >>> log_line({"step": 20, "loss": 9.5, "dino_global_crops_loss_0": 1.0, "dino_local_crops_loss_0": 3.0,
        ...           "learning_rate": 0.001, "images_per_second": 120.0, "data_wait": 0.01}, 100, 61, 2e9)
        'step  20/100  loss 9.500 (dino 4.00)  lr 1.0e-03  120 images/s  wait 1%  left 1 min  2 GB'
    """
    width = len(str(max_steps))
    parts = [f"step {logs['step']:>{width}}/{max_steps}"]
    if logs.get("epoch", 0) >= 0.005:
        parts.append(f"epoch {logs['epoch']:.2f}")
    terms = " ".join(f"{name} {value:.2f}" for name, value in _terms(logs).items())
    loss = f"{logs['loss']:.3f}" if "loss" in logs else "none, as all steps were skipped"
    parts.append(f"loss {loss}" + (f" ({terms})" if terms else ""))
    parts += [f"lr {logs['learning_rate']:.1e}", f"{logs['images_per_second']:.0f} images/s"]
    parts.append(f"wait {logs['data_wait']:.0%}")
    parts += [f"left {format_duration(seconds_left)}", format_bytes(memory)]
    return "  ".join(parts)


def evaluation_table(values: Mapping[str, float], step: int, before: Mapping[str, float], is_best: bool) -> str:
    """Return a small table of the k-NN accuracies of a line of the log.

    Args:
        values: Accuracies from 0 to 1, by their names in the log, such as `knn_384x12` and `knn_mean`.
        step: The step that was evaluated.
        before: The values of the last evaluation; empty if there was none.
        is_best: Whether their mean is the best so far.

    Example:
        >>> print(evaluation_table({"knn_32x2": 0.5, "knn_mean": 0.5}, 100, {"knn_32x2": 0.45, "knn_mean": 0.45}, True))
        k-NN accuracy at step 100, the best so far
                    32x2   mean
                    50.0   50.0 %
            change  +5.0   +5.0
    """
    names = [name.removeprefix(_KNN) for name in values]
    widths = [max(6, len(name) + 2) for name in names]
    rows = [("", names), ("", [f"{100 * value:.1f}" for value in values.values()])]
    if values.keys() == before.keys():
        rows.append(("change", [f"{100 * (value - before[name]):+.1f}" for name, value in values.items()]))
    lines = [
        f"    {title:<6}" + "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))
        for title, texts in rows
    ]
    lines[1] += " %"
    return "\n".join([f"k-NN accuracy at step {step}" + ", the best so far" * is_best, *lines])


def memory_in_use(logs: Mapping[str, Any]) -> float:
    """Return the most bytes of tensors on the GPU, or, without one, the bytes of this process."""
    if "peak_memory_gb" in logs:
        return 1e9 * float(logs["peak_memory_gb"])
    return float(psutil.Process().memory_info().rss)


def device_name(device: torch.device) -> str:
    """Return what a device is called, with the threads that are used of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"CPU with {threads} thread{'s' * (threads > 1)}"
    return device.type.upper()


def _terms(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return the terms of the loss in short, each the mean over the heads."""
    terms = {}
    for short, start in _TERMS.items():
        values = {name: value for name, value in logs.items() if name.startswith(start) and "loss" in name}
        heads = {name.rpartition("_")[2] for name in values}
        if values:
            terms[short] = sum(values.values()) / len(heads)
    return terms


def _short(value: float) -> str:
    """Return a positive number with three digits, small ones as `below 0.01`."""
    return "below 0.01" if value < 0.01 else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"
