"""What can be refused before data is opened and a model made."""

from pathlib import Path

from accelerate.tracking import get_available_trackers

from ..models.configuration_poa import PoaConfig
from .arguments import PoaTrainingArguments
from .checkpoints import check_architecture, find_checkpoint


def check_run(config: PoaConfig, args: PoaTrainingArguments) -> None:
    """All that can be refused before data and model are made.

    Raises:
        ValueError: For crops that do not fit the patches, an output folder that cannot be one, a checkpoint of another
            architecture, trackers that are not installed.
    """
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
    if backbone.num_channels != 3:
        raise ValueError(f"num_channels is {backbone.num_channels}, and the crops are RGB: use 3.")
    _check_trackers(args.trackers)
    checkpoint = find_checkpoint(Path(args.output_dir), args.resume_from_checkpoint, overwrite=True)
    if checkpoint is not None:
        check_architecture(config, checkpoint)


def _check_trackers(names: list[str]) -> None:
    available = [str(tracker) for tracker in get_available_trackers()]
    for name in names:
        if name not in available:
            raise ValueError(f"report_to {name!r} is not installed or not a tracker; available: {available or 'none'}.")
