"""Checks of a run that need neither its data nor its model."""

from __future__ import annotations

import logging
from pathlib import Path

import psutil
import torch
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from transformers import AutoModel

from ..formatting import one_line, suggest
from ..models.configuration_poa import PoaConfig
from ..runs.checkpoints import find_checkpoint
from ..runs.compatibility import check_architecture
from ..slicing import without_storage
from .arguments import PoaTrainingArguments
from .hub_login import check_login

logger = logging.getLogger(__name__)


def check_run(config: PoaConfig, args: PoaTrainingArguments) -> None:
    """Refuse what cannot work before data is opened and a model is made.

    Raises:
        ValueError: For crops that do not fit the patches or the channels, an output folder that cannot be used, a
            checkpoint of another architecture, trackers that are not installed, an attention or packed crops that the
            model or the machine does not support, a precision of the launcher that does not fit the method, or a push
            to the Hub without what that takes.
    """
    args = args.with_launched_precision()
    _check_crops(config, args)
    _check_attention(config, args)
    if args.pack_crops and not config.backbone_config.packs_crops:
        raise ValueError(
            f"A {config.backbone_config.model_type} computes global and local crops in passes of their own: leave "
            "pack_crops out."
        )
    _check_students(config, args)
    _check_trackers(args.trackers)
    check_login(args)
    checkpoint = find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint, overwrite=True)
    if checkpoint is not None:
        check_architecture(config, checkpoint)


def check_weights_type(config: PoaConfig) -> None:
    """Refuse a configuration whose weights would be of half precision, in which they cannot be trained.

    Raises:
        ValueError: If it has such a `dtype`.
    """
    for name, part in (("model", config), ("model.backbone_config", config.backbone_config)):
        if isinstance(part.dtype, torch.dtype) and torch.finfo(part.dtype).bits < 32:
            raise ValueError(
                f"{name}.dtype is {str(part.dtype).removeprefix('torch.')}, but weights are trained in float32: leave "
                "it out, and give bf16 to compute in bfloat16."
            )


def _check_crops(config: PoaConfig, args: PoaTrainingArguments) -> None:
    backbone = config.backbone_config
    multiples = {"global_crop_size": backbone.crop_multiple}
    if args.num_local_crops:
        multiples["local_crop_size"] = backbone.patch_grid
    for name, multiple in multiples.items():
        if (size := getattr(args, name)) % multiple:
            nearest = sorted({max(multiple, size - size % multiple), size - size % multiple + multiple})
            raise ValueError(
                f"{name} {size} is not a multiple of {multiple} (pixels of a patch, masked square, or position "
                f"of the last feature map): use {' or '.join(map(str, nearest))}."
            )
    if args.global_crop_size < backbone.min_crop_size:
        raise ValueError(
            f"global_crop_size {args.global_crop_size} is too small for this model: use at least "
            f"{backbone.min_crop_size} (Swin: or a smaller window_size, which must fit the last feature map)."
        )
    channels = backbone.num_channels
    if args.num_channels != channels and not args.has_default_statistics:
        raise ValueError(
            f"image_mean and image_std have {args.num_channels} numbers each, and num_channels is {channels}: give one "
            "for each channel, or leave both out for the defaults."
        )


def _check_students(config: PoaConfig, args: PoaTrainingArguments) -> None:
    space = config.backbone_config.space
    trained = len({*space.trained} - {space.full})
    if args.num_elastic_students > max(trained, 1):
        number = {0: "no size is", 1: "only 1 size is"}.get(trained, f"only {trained} sizes are")
        raise ValueError(
            f"num_elastic_students is {args.num_elastic_students}, but {number} trained besides the full one: "
            f"{'give at most as many' if trained else 'leave it out'}."
        )
    if config.intact_weight == 1:
        for_sub_networks = {
            "num_elastic_students": args.num_elastic_students > 1,
            "elastic_teacher": config.elastic_teacher,
            "same_view_weight": config.same_view_weight != 1,
            "num_candidates": space.num_candidates is not None,
        }
        if without_use := [name for name, is_set in for_sub_networks.items() if is_set]:
            raise ValueError(
                f"intact_weight is 1, so no sub-network is trained and {' and '.join(without_use)} would change "
                "nothing: leave out the one or the other."
            )


def check_elastic_teacher(config: PoaConfig, args: PoaTrainingArguments, num_processes: int) -> None:
    """Refuse an elastic teacher where processes would balance targets of different sizes together.

    Raises:
        ValueError: If several processes train a sub-network of their own each.
    """
    if config.elastic_teacher and num_processes > 1 and not args.same_sub_network:
        raise ValueError(
            f"elastic_teacher balances the targets of one size over all {num_processes} processes, so they must train "
            "the same: add --same_sub_network."
        )


def _check_attention(config: PoaConfig, args: PoaTrainingArguments) -> None:
    name, backbone = args.attn_implementation, config.backbone_config
    if name is None:
        return
    if not backbone.has_attention:
        raise ValueError(f"A {backbone.model_type} has no attention to choose: leave attn_implementation out.")
    with without_storage():
        smallest = AutoModel.from_config(backbone.plain_config(backbone.space.smallest), trust_remote_code=False)
    try:
        smallest.set_attn_implementation(name)
    except (ValueError, ImportError, OSError) as error:
        reason = one_line(error).partition(". ")[0]
        raise ValueError(
            f"attn_implementation {name!r} does not work for {backbone.model_type} on this machine ({reason}): leave "
            "it out for the default, or use sdpa or eager."
        ) from error
    # all implementations of flash attention have it in their names, kernels of the Hub included
    if "flash" in name and not args.bf16:
        raise ValueError(f"attn_implementation {name!r} computes in half precision only: add --bf16, or leave it out.")


def _check_trackers(names: list[str]) -> None:
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name in available:
            continue
        if name in LoggerType.list() and name != "all":  # packages are called as Accelerate calls the trackers
            raise ValueError(f"report_to {name!r} is not installed: pip install {name}.")
        known = [each for each in LoggerType.list() if each != "all"]
        raise ValueError(f"report_to {name!r} is not a tracker: {suggest(name, known)}")


def warn_of_untrained_sizes(config: PoaConfig, args: PoaTrainingArguments) -> None:
    """Warn if the run ends before sub-networks begin to be trained."""
    if config.intact_weight < 1 and args.elastic_start_step >= args.max_steps:
        logger.warning(
            "No sub-network is trained: elastic_start_step is %d, and the run ends at step %d.",
            args.elastic_start_step,
            args.max_steps,
        )


def warn_of_few_images(num_images: int | None, global_batch_size: int) -> None:
    """Warn if a step takes more images than there are, so that it meets some of them twice."""
    if num_images is not None and num_images < global_batch_size:
        logger.warning(
            "The data has %d images, but a step takes %d, so that it meets images more than once: lower "
            "per_device_train_batch_size, or check that these are all images.",
            num_images,
            global_batch_size,
        )


def warn_of_missing_processes(num_processes: int) -> None:
    """Warn if `accelerate launch --num_processes N` started fewer processes, as it does on CPUs without saying so."""
    try:
        # the launcher runs the script in a child, or in its own process
        launchers = [process.cmdline() for process in (psutil.Process(), *psutil.Process().parents()[:2])]
    except psutil.Error:
        return
    asked = max((_processes_asked_for(command) for command in launchers), default=1)
    if asked > num_processes == 1:
        logger.warning(
            "accelerate was asked for %d processes and started one: on CPUs use torchrun --nproc_per_node %d -m "
            "poa_hf pretrain ... instead.",
            asked,
            asked,
        )


def _processes_asked_for(command: list[str]) -> int:
    """Return the number that a command line of `accelerate launch` gives as `--num_processes`; 1 for others."""
    if not any(Path(word).name in ("accelerate", "accelerate-launch", "launch.py") for word in command[:3]):
        return 1
    pairs = zip(command, [*command[1:], ""], strict=True)
    values = [name.partition("=")[2] or value for name, value in pairs
              if name.partition("=")[0] in ("--num_processes", "--num-processes")]  # fmt: skip
    return int(values[0]) if values and values[0].isdigit() else 1


def warn_of_resized_embeddings(config: PoaConfig, args: PoaTrainingArguments) -> None:
    """Warn if position embeddings are resized at each step, unless the model started from a pre-trained one.

    Such a model keeps the grid of the one that it started from, and so its function at every size.
    """
    backbone = config.backbone_config
    is_resized = backbone.has_position_embeddings and backbone.image_size != args.global_crop_size
    if is_resized and config.warm_started_from is None:
        logger.warning(
            "The model's image_size %s is not global_crop_size %d: its position embeddings are resized at each step; "
            "give both the same value unless this is meant.",
            backbone.image_size,
            args.global_crop_size,
        )
