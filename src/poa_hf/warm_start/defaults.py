"""The defaults that `--init_from` adds to a recipe, and the start of a run that has it."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..locations import shown_name
from ..models.configuration_poa import PoaConfig
from ..models.from_fields import own_fields
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..training.arguments import PoaTrainingArguments
from .config import adapted_normalisation, backbone_fields
from .load import init_from
from .source import Source

logger = logging.getLogger(__name__)

# The published schedule at a tenth of its steps and learning rates: most of what it learns is there at the start.
_SCHEDULE: dict[str, Any] = {
    "max_steps": 27_680,
    "learning_rate": 4e-4,
    "min_learning_rate": 2e-6,
    "warmup_steps": 800,
    "freeze_last_layer_steps": 80,
    "teacher_temperature_warmup_steps": 2_400,
    "masked_prediction_start_step": 2_400,
}


def with_source(model: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Complete the `model` section of a recipe from a source: the backbone, and of a run everything else, too.

    Args:
        model: Fields of `PoaConfig` that the recipe sets, with `backbone_config`.
        source: The model to start from.

    Raises:
        ValueError: If a field of the backbone contradicts the source.
    """
    defaults = own_fields(source.run_config) if source.run_config is not None else {}
    return {**defaults, **model, "backbone_config": backbone_fields(source, model["backbone_config"])}


def recorded_name(source_name: str, source: Source, checkpoint: Path | None) -> str:
    """Return the name of the source that the model's configuration records.

    Args:
        source_name: Folder, file or Hub id that the recipe names.
        source: The model to start from; when resuming, the checkpoint.
        checkpoint: The checkpoint that the run resumes from, if any.

    Raises:
        ValueError: If the checkpoint's run was initialised from a different model.
    """
    if checkpoint is None:
        return source.name
    recorded = source.run_config.warm_started_from if source.run_config is not None else None
    if recorded is None or recorded not in (source_name, shown_name(source_name)):
        start = f"started from {recorded}" if recorded else "did not start from another model"
        raise ValueError(
            f"{checkpoint} belongs to a run that {start}, and would resume without reading {source_name}: leave out "
            "--init_from, or give another output_dir."
        )
    return recorded


def changed_arguments(
    config: PoaConfig, source: Source, training: PoaTrainingArguments, explicit: Collection[str]
) -> dict[str, Any]:
    """Return the training arguments that a warm start changes.

    These are the schedules, the normalisation of images, crop sizes that fit the patches, and the steps that train the
    heads only.

    Args:
        config: Configuration of the model, which starts from `source`.
        source: The model to start from.
        training: Arguments of the run.
        explicit: Names of the arguments that the user set; they are not changed.
    """
    statistics = adapted_normalisation(source, config.backbone_config.num_channels)
    defaults = {**_SCHEDULE, **statistics, **_crop_sizes(config, training, explicit)}
    changed = {name: value for name, value in defaults.items() if name not in explicit}
    if "freeze_backbone_steps" not in explicit:
        steps = {"max_steps": training.max_steps, "warmup_steps": training.warmup_steps, **changed}
        # the heads warm up first, then the backbone
        changed["freeze_backbone_steps"] = min(steps["warmup_steps"], steps["max_steps"] // 10)
    return changed


def warn_of_high_learning_rate(learning_rate: float) -> None:
    """Warn where the learning rate of a recipe for a start from nothing would undo what the source has learnt."""
    usual = _SCHEDULE["learning_rate"]
    if learning_rate > usual and _is_first_process():
        logger.warning(
            "The recipe's learning rate, %g, is for a start from nothing, and the source would lose much of what it "
            "has learnt: give --learning_rate %g, or leave --config out, so that the whole schedule fits.",
            learning_rate,
            usual,
        )


def _crop_sizes(config: PoaConfig, training: PoaTrainingArguments, explicit: Collection[str]) -> dict[str, int]:
    """Global crops of at most the source's image size and local ones in proportion, both of whole patches."""
    backbone = config.backbone_config
    sizes = {}
    global_size = training.global_crop_size
    if "global_crop_size" not in explicit:
        multiple = backbone.crop_multiple
        global_size = max(backbone.min_crop_size, min(global_size, backbone.image_size) // multiple * multiple)
        sizes["global_crop_size"] = global_size
    local_size = min(1, global_size / 224) * training.local_crop_size
    sizes["local_crop_size"] = max(1, round(local_size / backbone.patch_grid)) * backbone.patch_grid
    return sizes


def start_run(
    model: PoaForPreTraining,
    source: str,
    checkpoint: Path | None,
    training: PoaTrainingArguments,
    eval_steps: int | None = None,
) -> None:
    """Initialise a model from `source`, unless the run resumes from a checkpoint, and log what was done.

    Args:
        model: The model to initialise, in place.
        source: Folder, file or Hub id, as `init_from` takes it.
        checkpoint: The checkpoint that the run resumes from, whose weights replace those of the source.
        training: Arguments of the run, whose schedule is logged.
        eval_steps: Steps between evaluations; without them, the log recommends some.
    """
    if checkpoint is None:
        start = init_from(model, source, training.image_mean, training.image_std)
        lines = [str(start), _space(model), _schedule(training, eval_steps)]
    else:
        lines = [f"Resuming from {checkpoint}; {source} was not read again."]
    if _is_first_process():
        for line in lines:
            logger.info(line)


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


def _space(model: PoaForPreTraining) -> str:
    space = model.config.backbone_config.space
    depths = ["-".join(map(str, depths)) for depths in (space.depths[0], space.depths[-1])]
    steps = f" in steps of {space.widths[1] - space.widths[0]}" if len(space.widths) > 1 else ""
    named = ", ".join(f"{name} {size}" for name, size in space.named.items())
    return (
        f"The space: {len(space)} sizes, widths {space.widths[0]} to {space.widths[-1]}{steps}, depths {depths[0]} to "
        f"{depths[-1]} ({named}); min_* and *_step under model.backbone_config change it."
    )


def _schedule(args: PoaTrainingArguments, eval_steps: int | None) -> str:
    advice = "" if eval_steps else "; --eval_steps N would watch the full size's k-NN"
    heads_first = f", the first {args.freeze_backbone_steps} for the heads only" if args.freeze_backbone_steps else ""
    return (
        f"{args.max_steps} steps at a learning rate of {args.learning_rate:g} (for 1024 images){heads_first}; crops "
        f"of {args.global_crop_size} and {args.local_crop_size} pixels{advice}."
    )
