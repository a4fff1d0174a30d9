"""The arguments of pre-training, named as in `transformers.TrainingArguments` where the meaning is the same."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..data.crop_arguments import CropArguments
from ..ranges import COUNT, NOT_NEGATIVE, POSITIVE, SEED, SHARE, SHARE_BELOW_1, WHOLE, Range
from .stock_arguments import StockArguments, argument


@dataclass
class PoaTrainingArguments(StockArguments, CropArguments):
    """Everything about a run except the model and the dataset.

    The defaults are the published recipe for ViT (arXiv 2408.01031), where an epoch has 800 steps of 1600 images.

    Raises:
        ValueError: For a value outside its range.

    Example:
        >>> args = PoaTrainingArguments(max_steps=1000, warmup_steps=100, local_crop_size=64)
        >>> args.learning_rate, args.num_local_crops
        (0.004, 8)
        >>> PoaTrainingArguments(max_steps=0)
        Traceback (most recent call last):
        ...
        ValueError: max_steps is 0: give a whole number of at least 1.
    """

    ranges: ClassVar[dict[str, Range]] = {
        **CropArguments.ranges,
        **StockArguments.ranges,
        "max_steps": COUNT,
        "per_device_train_batch_size": COUNT,
        "gradient_accumulation_steps": COUNT,
        "logging_steps": COUNT,
        "save_steps": COUNT,
        "max_nonfinite_steps": COUNT,
        "save_total_limit": COUNT,
        "foreign_teacher_size": COUNT,
        "gram_teacher_size": COUNT,
        "learning_rate": POSITIVE,
        "teacher_temperature": POSITIVE,
        "final_teacher_temperature": POSITIVE,
        "max_grad_norm": POSITIVE,
        "adam_epsilon": POSITIVE,
        "layerwise_decay": POSITIVE,
        "warmup_steps": WHOLE,
        "dataloader_num_workers": WHOLE,
        "freeze_last_layer_steps": WHOLE,
        "freeze_backbone_steps": WHOLE,
        "elastic_start_step": WHOLE,
        "num_elastic_students": COUNT,
        "masked_prediction_start_step": WHOLE,
        "teacher_temperature_warmup_steps": WHOLE,
        "min_learning_rate": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
        "final_weight_decay": NOT_NEGATIVE,
        "patch_embed_lr_mult": NOT_NEGATIVE,
        "teacher_momentum": SHARE,
        "final_teacher_momentum": SHARE,
        "adam_beta1": SHARE_BELOW_1,
        "adam_beta2": SHARE_BELOW_1,
        "schedule_stretch": Range(0, 1, above=True),
        "seed": SEED,
    }

    # Run
    output_dir: str = argument("runs/poa", "Folder for checkpoints, logs and the final model.")
    overwrite_output_dir: bool = argument(False, "Whether to delete another run in output_dir first.")
    resume_from_checkpoint: str | None = argument(
        None,
        "Checkpoint to resume from: its path, or `true` (or no value) for the last one in output_dir. The run starts "
        "anew if not given.",
        bare="true",
    )
    seed: int = argument(0, "Seed of everything random. All that is random in a step follows from it and the step.")
    bf16: bool = argument(
        False,
        "Whether to compute in bfloat16 by autocast; parameters stay float32. `mixed_precision: bf16` of accelerate "
        "launch sets it too.",
    )
    gradient_checkpointing: bool = argument(
        False, "Whether to recompute activations in the backward pass, which saves memory and costs time."
    )
    compile: str = argument(
        "auto",
        "Whether the blocks of teacher and students are compiled, each kind of block once for all sizes: `blocks`, "
        "`off`, or `auto`, which compiles them on CUDA devices that can.",
    )
    pack_crops: bool = argument(
        False,
        "Whether a student computes its global and local crops in one pass, which launches fewer kernels and takes "
        "more memory; for ViTs with learned positions.",
    )
    torch_compile: bool = argument(False, "Deprecated: use compile.")
    attn_implementation: str | None = argument(
        None,
        "Attention implementation of transformers, such as sdpa, eager or flash_attention_2, for teacher and students; "
        "sdpa if not given.",
    )
    same_sub_network: bool = argument(
        False, "Whether all processes train the same sub-network at a step, instead of one each."
    )
    num_elastic_students: int = argument(
        1,
        "Sub-networks that a process trains at a step at most, which share the elastic student's part of the loss. Of "
        "several, one is the smallest size, and the others are drawn, each once.",
    )
    elastic_start_step: int = argument(
        0, "First step in which sub-networks are trained; before it, the intact student has all of the loss."
    )
    reduce_dtype: str | None = argument(
        None,
        "Type in which gradients are averaged over processes: `bfloat16` halves what is sent. That of the gradients, "
        "float32, if not given.",
    )

    # Steps
    max_steps: int = argument(276_800, "Number of optimizer steps.")
    per_device_train_batch_size: int = argument(50, "Images per process and forward pass.")
    gradient_accumulation_steps: int = argument(1, "Forward passes per optimizer step, whose gradients are averaged.")

    # Optimizer and schedules
    learning_rate: float = argument(
        4e-3, "Peak learning rate for 1024 images per step; it grows with the square root of their number."
    )
    min_learning_rate: float = argument(2e-5, "Learning rate at the end of its cosine.")
    warmup_steps: int = argument(8_000, "Steps of the learning rate's linear warm-up (10 epochs).")
    weight_decay: float = argument(0.04, "Weight decay at the start of its cosine.")
    final_weight_decay: float = argument(0.4, "Weight decay at the end of its cosine.")
    adam_beta1: float = argument(0.9, "AdamW's decay rate of the gradients' mean.")
    adam_beta2: float = argument(0.999, "AdamW's decay rate of the squared gradients' mean.")
    adam_epsilon: float = argument(1e-8, "AdamW's epsilon.")
    max_grad_norm: float = argument(
        1.5, "Norm to which gradients are clipped, those of the backbone and those of the heads each."
    )
    layerwise_decay: float = argument(0.9, "Factor of the learning rate for each block below the last.")
    patch_embed_lr_mult: float = argument(0.2, "Further factor of the learning rate for the patch embedding.")
    freeze_last_layer_steps: int = argument(800, "First steps, in which the prototypes are not trained (1 epoch).")
    freeze_backbone_steps: int = argument(
        0,
        "First steps, in which only the heads are trained, for backbones that are pre-trained; the backbone's learning "
        "rate is then warmed up too.",
    )
    schedule_stretch: float = argument(
        0.78, "Part of their cosines that the schedules run through: they are planned for max_steps divided by this."
    )

    # Teacher
    teacher_momentum: float = argument(0.992, "Momentum of the teacher's moving average at the start of its cosine.")
    final_teacher_momentum: float = argument(0.9999, "Momentum of the teacher at the end of its cosine.")
    teacher_temperature: float = argument(0.04, "Softmax temperature of the teacher at the start of its warm-up.")
    final_teacher_temperature: float = argument(0.07, "Softmax temperature of the teacher after its warm-up.")
    teacher_temperature_warmup_steps: int = argument(24_000, "Steps of the temperature's linear warm-up (30 epochs).")
    masked_prediction_start_step: int = argument(
        24_000, "First step in which patches are masked and predicted (epoch 30)."
    )

    # Foreign teacher
    foreign_teacher_loss: str = argument(
        "features",
        "How the students learn from a foreign teacher: `features` matches its features through a linear projection, "
        "`prototypes` the assignments to prototypes of heads on its features.",
    )
    foreign_teacher_metric: str = argument(
        "cosine", "How features are compared with a foreign teacher's: `cosine`, or `smooth_l1` on standardised ones."
    )
    foreign_teacher_patches: bool = argument(
        True, "Whether the foreign teacher's features of patches are matched, and not only those of images."
    )
    cache_teacher: bool = argument(
        False,
        "Whether the foreign teacher sees each image once, before training, whole and as it is; its image features "
        "are kept in the run's folder.",
    )
    foreign_teacher_size: int | None = argument(
        None, "Side in pixels of the images that the foreign teacher sees; what it was made for if not given."
    )

    # Gram teacher
    gram_teacher_size: int | None = argument(
        None,
        "Side in pixels of the crops that the Gram teacher sees, at least global_crop_size: global crops are then cut "
        "at this size, without changes of colour for it. Not given: the students' crops.",
    )

    # Data
    image_column: str | None = argument(None, "Column with the images; found by its type or name if not given.")
    dataloader_num_workers: int = argument(4, "Worker processes that decode and crop, per training process.")

    # Log and checkpoints
    logging_steps: int = argument(10, "Steps between lines of metrics.jsonl.")
    save_steps: int = argument(1_000, "Steps between checkpoints.")
    save_total_limit: int | None = argument(
        2, "Number of checkpoints to keep, in addition to that of the best evaluation; null keeps all."
    )
    report_to: str = argument(
        "none",
        "Accelerate's trackers, by name and separated by commas, such as tensorboard or wandb; none for none.",
        several=True,
    )
    log_image_ids: bool = argument(False, "Whether to write the ids of each step's images to image_ids-PROCESS.jsonl.")
    disable_tqdm: bool = argument(False, "Whether to hide the progress bar, which is shown on terminals only.")
    quiet: bool = argument(False, "Whether to print nothing but warnings: no facts, no lines of the log, no bar.")
    log_level: str | None = argument(
        None,
        "Least level of the messages of this library that are shown: debug, info, warning or error. If not given, as "
        "the program has set it; info for `poa pretrain`, warning with quiet.",
    )
    measure_peak: bool = argument(
        False,
        "Whether to measure the device's rate of matrix products at the start, which `mfu` in the log then refers to, "
        "instead of taking the maker's.",
    )
    profile_steps: str | None = argument(
        None,
        "Steps to profile, FIRST:LAST, such as 20:25. A trace for chrome://tracing and a table of kernels are written "
        "to the folder `profile` of the run.",
    )
    max_nonfinite_steps: int = argument(
        10, "Steps in a row with a loss or gradient that is not finite after which the run stops."
    )

    def __post_init__(self) -> None:
        if self.report_to is None or isinstance(self.report_to, list | tuple):  # as transformers takes it
            self.report_to = ",".join(map(str, self.report_to or ())) or "none"
        super().__post_init__()
        if not self.output_dir:
            raise ValueError("output_dir is empty: name a folder for the run.")
        self.output_dir = str(Path(self.output_dir).expanduser())
        self.hub_strategy = str(getattr(self.hub_strategy, "value", self.hub_strategy))  # or transformers' HubStrategy
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) is not None and value not in choices:
                raise ValueError(f"{name} is {value!r}: choose one of {', '.join(choices)}.")
        if self.torch_compile:
            warnings.warn("torch_compile is deprecated: use compile='blocks'.", DeprecationWarning, stacklevel=3)
            self.compile = "blocks"
        if self.profile_steps is not None and self.profiled_steps is None:
            raise ValueError(
                f"profile_steps is {self.profile_steps!r}: give the first and the last step, such as 20:25."
            )

    def with_launched_precision(self) -> PoaTrainingArguments:
        """Return these arguments with `bf16` if the launcher, such as `accelerate launch`, asks for it.

        Raises:
            ValueError: If it asks for float16 or float8, which do not fit the method.
        """
        if self.bf16:
            return self
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if precision not in ("no", "bf16"):
            raise ValueError(
                f"The launcher's mixed_precision {precision} is not supported, as the sharp targets of small "
                "temperatures overflow in it: use bf16."
            )
        return dataclasses.replace(self, bf16=True) if precision == "bf16" else self

    @property
    def trackers(self) -> list[str]:
        """The names in `report_to`, as a list."""
        return [name.strip() for name in self.report_to.split(",") if name.strip() not in ("", "none")]

    @property
    def profiled_steps(self) -> range | None:
        """The steps that `profile_steps` names, counted from 1; None if there are none."""
        match = re.fullmatch(r"([1-9][0-9]{0,17}):([1-9][0-9]{0,17})", self.profile_steps or "")
        steps = range(int(match[1]), int(match[2]) + 1) if match else range(0)
        return steps if steps else None


CHOICES = {
    "logging_strategy": ("steps", "epoch", "no"),
    "save_strategy": ("steps", "epoch", "best", "no"),
    "eval_strategy": ("steps", "epoch", "no"),
    "hub_strategy": ("every_save", "checkpoint", "all_checkpoints", "end"),
    "compile": ("auto", "blocks", "off"),
    "reduce_dtype": ("bfloat16",),
    "log_level": ("debug", "info", "warning", "error"),
    "foreign_teacher_loss": ("features", "prototypes"),
    "foreign_teacher_metric": ("cosine", "smooth_l1"),
}
