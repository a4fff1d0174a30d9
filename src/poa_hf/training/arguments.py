"""Arguments of pre-training; names as in `transformers.TrainingArguments` where the meaning is the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from ..data.crop_arguments import CropArguments


def _argument(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class PoaTrainingArguments(CropArguments):
    """Everything about a run except the model and the dataset. The defaults are the published recipe for ViT
    (arXiv 2408.01031; an epoch there is 800 steps of 1600 images)."""

    # Run
    output_dir: str = _argument("runs/poa", "Folder of checkpoints, metrics and the final model.")
    overwrite_output_dir: bool = _argument(False, "Delete another run in output_dir first.")
    resume_from_checkpoint: str | None = _argument(
        None, "Continue: `true` (or no value) from the last checkpoint in output_dir, or the path of a checkpoint."
    )
    seed: int = _argument(0, "Seed of everything random; a step depends on nothing but it and its number.")
    bf16: bool = _argument(False, "Compute in bfloat16 (autocast); parameters stay float32.")
    gradient_checkpointing: bool = _argument(False, "Recompute activations in the backward pass to save memory.")
    torch_compile: bool = _argument(False, "Compile teacher and intact student, whose shapes never change.")
    attn_implementation: str | None = _argument(
        None, "Attention of transformers in all three branches: sdpa, eager, flash_attention_2, ...; sdpa if not given."
    )
    same_sub_network: bool = _argument(False, "All processes train the same sub-network at a step.")

    # Steps
    max_steps: int = _argument(276_800, "Optimizer steps.")
    per_device_train_batch_size: int = _argument(50, "Images per process and forward pass.")
    gradient_accumulation_steps: int = _argument(1, "Forward passes per optimizer step.")

    # Optimizer and schedules
    learning_rate: float = _argument(4e-3, "Peak for a global batch of 1024 images; grows with its square root.")
    min_learning_rate: float = _argument(2e-5, "End of the cosine.")
    warmup_steps: int = _argument(8_000, "Steps of linear warm-up (10 epochs).")
    weight_decay: float = _argument(0.04, "Start of its cosine.")
    final_weight_decay: float = _argument(0.4, "End of its cosine.")
    adam_beta1: float = _argument(0.9, "AdamW's first beta.")
    adam_beta2: float = _argument(0.999, "AdamW's second beta.")
    adam_epsilon: float = _argument(1e-8, "AdamW's epsilon.")
    max_grad_norm: float = _argument(1.5, "Gradient norm, of backbone and heads each, above which it is clipped.")
    layerwise_decay: float = _argument(0.9, "Factor of the learning rate per block below the last.")
    patch_embed_lr_mult: float = _argument(0.2, "Factor of the learning rate of the patch embedding.")
    freeze_last_layer_steps: int = _argument(800, "First steps, in which prototypes do not move (1 epoch).")
    freeze_backbone_steps: int = _argument(
        0, "First steps, in which only the heads train; then the backbone's rate warms up. For pre-trained backbones."
    )
    schedule_stretch: float = _argument(0.78, "Cosines are planned for max_steps divided by this, and cut off.")

    # Teacher
    teacher_momentum: float = _argument(0.992, "Start of its cosine.")
    final_teacher_momentum: float = _argument(0.9999, "End of its cosine.")
    teacher_temperature: float = _argument(0.04, "Start of its linear warm-up.")
    final_teacher_temperature: float = _argument(0.07, "End of its warm-up, kept from there on.")
    teacher_temperature_warmup_steps: int = _argument(24_000, "Steps of that warm-up (30 epochs).")
    masked_prediction_start_step: int = _argument(24_000, "First step that predicts masked patches (epoch 30).")

    # Data
    image_column: str | None = _argument(None, "Column with the images; found by its type if not given.")
    dataloader_num_workers: int = _argument(4, "Processes that decode and crop, per training process.")

    # Log and checkpoints
    logging_steps: int = _argument(10, "Steps between lines of metrics.jsonl.")
    save_steps: int = _argument(1_000, "Steps between checkpoints.")
    save_total_limit: int | None = _argument(2, "Checkpoints to keep; older ones are deleted.")
    report_to: str = _argument("none", "Accelerate trackers by name, separated by commas: tensorboard, wandb, ...")
    log_image_ids: bool = _argument(False, "Write the ids of each step's images to image_ids-<process>.jsonl.")
    disable_tqdm: bool = _argument(False, "No progress bar.")
    max_nonfinite_steps: int = _argument(10, "Stop after this many steps in a row without a finite loss.")

    def __post_init__(self):
        super().__post_init__()
        if not self.output_dir:
            raise ValueError("output_dir is empty: name a folder for the run.")
        self.output_dir = str(Path(self.output_dir).expanduser())
        for name in ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps",
                     "save_steps", "max_nonfinite_steps"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1.")
        for name in ("learning_rate", "teacher_temperature", "final_teacher_temperature", "max_grad_norm",
                     "adam_epsilon", "layerwise_decay"):  # fmt: skip
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive.")
        for name in ("warmup_steps", "dataloader_num_workers", "seed", "freeze_last_layer_steps", "min_learning_rate",
                     "freeze_backbone_steps",
                     "masked_prediction_start_step", "teacher_temperature_warmup_steps", "weight_decay",
                     "final_weight_decay", "patch_embed_lr_mult"):  # fmt: skip
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 0 or more.")
        for name in ("teacher_momentum", "final_teacher_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must lie between 0 and 1.")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must lie between 0 and 1, and be less than 1.")
        if not 0 < self.schedule_stretch <= 1:
            raise ValueError(f"schedule_stretch is {self.schedule_stretch}: it must lie between 0 and 1.")
        if self.save_total_limit is not None and self.save_total_limit < 1:
            raise ValueError(
                f"save_total_limit is {self.save_total_limit}: keep at least 1 checkpoint, or write null for all."
            )

    @property
    def trackers(self) -> list[str]:
        return [name.strip() for name in self.report_to.split(",") if name.strip() not in ("", "none")]
