"""What a trainer prepares: the model's settings, the batches, the seed of a step, and the crops on the device."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import TrainerState

from ..data.augmentation import augment
from ..data.crop_arguments import usual_statistics
from ..data.loader import PretrainingLoader
from ..data.statistics import measure_statistics
from ..models.activation_checkpointing import enable_activation_checkpointing
from ..models.configuration_poa import PoaConfig
from ..models.modeling_poa_pretraining import PoaForPreTraining
from .arguments import PoaTrainingArguments
from .checkpointing import on_main
from .checks import warn_of_resized_embeddings
from .flow import FlowCallback

logger = logging.getLogger(__name__)


def configure(model: PoaForPreTraining, args: PoaTrainingArguments, is_main: bool) -> None:
    """Prepare the model for training as the arguments say; the main process warns of what may be a mistake."""
    if is_main:
        warn_of_resized_embeddings(model.config, args)
        if args.num_channels != 3:
            logger.info(
                "The images have %d channel%s: saturation, hue, grey and solarisation are left out, as they are "
                "defined for RGB; brightness, contrast, blur and flips stay.",
                args.num_channels,
                "s" * (args.num_channels > 1),
            )
    if args.attn_implementation:
        for backbone in (model.student, model.teacher):  # sub-networks take the student's
            backbone.set_attn_implementation(args.attn_implementation)
    if args.gradient_checkpointing:
        enable_activation_checkpointing(model.student)
    model.train()


def with_statistics(
    args: PoaTrainingArguments, config: PoaConfig, dataset: Any, accelerator: Accelerator
) -> PoaTrainingArguments:
    """Return the arguments with a mean and standard deviation for each of the model's channels.

    What is given stays. By default they are ImageNet's for RGB and grey images; for any other number of channels the
    main process measures them on images of the dataset.

    Raises:
        ValueError: On all processes, if they cannot be measured.
    """
    channels = config.backbone_config.num_channels
    if channels == args.num_channels:
        return args
    if channels == 1:
        mean, std = usual_statistics(1)
    else:
        mean, std = on_main(accelerator, lambda: measure_statistics(dataset, channels, args, args.image_column))
        if accelerator.is_main_process:
            texts = [" ".join(map(str, values)) for values in (mean, std)]
            logger.info("Measured on the images: --image_mean %s --image_std %s.", *texts)
    return dataclasses.replace(args, image_mean=mean, image_std=std)


def training_loader(
    dataset: Any, config: PoaConfig, args: PoaTrainingArguments, accelerator: Accelerator
) -> PretrainingLoader:
    """Return the loader of this process's batches.

    Raises:
        ValueError: For data that cannot be read.
    """
    # cut at the size that the Gram teacher sees; `coloured_crops` makes them smaller for the students
    crops = (
        args if args.gram_teacher_size is None else dataclasses.replace(args, global_crop_size=args.gram_teacher_size)
    )
    return PretrainingLoader(
        dataset,
        crops,
        batch_size=args.per_device_train_batch_size,
        mask_grid=(args.global_crop_size // config.backbone_config.patch_grid,) * 2,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=args.dataloader_num_workers,
        seed=args.seed,
        image_column=args.image_column,
        warn_of_bad_rows=False,  # once for all processes (`skipped_images`)
    )


def new_state(args: PoaTrainingArguments, accelerator: Accelerator, flow: FlowCallback) -> TrainerState:
    """Return the state of a run at step 0, with what transformers' callbacks read in it."""
    return TrainerState(
        max_steps=args.max_steps,
        num_train_epochs=math.ceil(flow.epochs(args.max_steps) or 0),
        logging_steps=args.logging_steps,
        save_steps=args.save_steps,
        train_batch_size=args.per_device_train_batch_size,
        is_world_process_zero=accelerator.is_main_process,
        is_local_process_zero=accelerator.is_local_main_process,
    )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed the global generator, from which stochastic depth draws, for a step of a process."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


def coloured_crops(
    batch: dict[str, Any],
    args: PoaTrainingArguments,
    device: torch.device,
    colour_all: Callable[[Tensor, dict[str, Tensor]], Tensor] | None = None,
) -> dict[str, Tensor]:
    """Move the global and local crops of a batch to the device, and colour and normalise them there.

    Args:
        batch: A batch of the loader.
        args: The arguments of the run.
        device: The device of the run.
        colour_all: See `augment`.
    """
    crops = {}
    for kind in ("global", "local"):
        pixels = batch[f"{kind}_crops"].to(device, non_blocking=True)  # uint8 (2B, C, g, g) or (V * B, C, l, l)
        if kind == "global" and args.gram_teacher_size is not None:
            pixels = _resized(pixels, args.global_crop_size)
        # the parameters stay on the CPU, where they say which crops an operation is for
        crops[kind] = augment(pixels, batch[f"{kind}_augmentation"], args.image_mean, args.image_std, colour_all)
    return crops


def _resized(pixels: Tensor, side: int) -> Tensor:
    """Return crops, uint8 (N, C, H, W), at another size."""
    resized = interpolate(pixels.float(), size=(side, side), mode="bicubic", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)
