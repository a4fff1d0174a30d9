"""What `--init_from` makes of a recipe: whatever is not given follows from the source."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..models.configuration_poa import PoaConfig
from ..training.arguments import PoaTrainingArguments
from .config import Source, backbone_fields, normalisation, shown_name

if TYPE_CHECKING:
    from ..models.modeling_poa_pretraining import PoaForPreTraining

logger = logging.getLogger(__name__)

# The published run at a tenth of its steps and learning rates: what it ends with is there at the start.
_DEFAULTS = {
    "max_steps": 27_680,
    "learning_rate": 4e-4,
    "min_learning_rate": 2e-6,
    "warmup_steps": 800,
    "freeze_last_layer_steps": 80,
    "teacher_temperature_warmup_steps": 2_400,
    "masked_prediction_start_step": 2_400,
}


def with_source(model: dict, source: Source) -> dict:
    """The fields of a `PoaConfig` with the source's where none are given: the backbone's; of a run also the others.

    Raises:
        ValueError: If a field of the backbone contradicts the source.
    """
    own = {}
    if source.run_config is not None:
        names = {field.name for field in dataclasses.fields(PoaConfig)} - {"backbone_config", "warm_started_from"}
        own = {name: value for name, value in source.run_config.to_diff_dict().items() if name in names}
        own = {
            name: value for name, value in own.items() if name not in ("transformers_version", "architectures", "dtype")
        }
    return {**own, **model, "backbone_config": backbone_fields(source, model["backbone_config"])}


def recorded_name(init_from: str, source: Source, checkpoint: Path | None) -> str:
    """What the model's configuration says it started from.

    Raises:
        ValueError: If the run of a checkpoint that is gone on from started from something else.
    """
    if checkpoint is None:
        return source.name
    path = Path(init_from).expanduser()
    recorded = source.run_config and source.run_config.warm_started_from
    if recorded is None or recorded not in (init_from, shown_name(path)):
        start = f"started from {recorded}" if recorded else "did not start from another model"
        raise ValueError(
            f"{checkpoint} is of a run that {start}, and would go on without reading {init_from}: leave out "
            "--init_from, or give another output_dir."
        )
    return recorded


def changed_arguments(config: PoaConfig, source: Source, training: PoaTrainingArguments, given: set[str]) -> dict:
    """The training arguments that a warm start changes, none of them among those that are given: schedules, image
    normalisation, crops that fit the patches, and the steps of the heads alone."""
    backbone = config.backbone_config
    found = {**_DEFAULTS, **normalisation(source)}
    size = training.global_crop_size
    if "global_crop_size" not in given:
        unit = backbone.crop_multiple
        size = max(backbone.min_crop_size, min(size, backbone.image_size) // unit * unit)
        found["global_crop_size"] = size
    local = min(1, size / 224) * training.local_crop_size
    found["local_crop_size"] = max(1, round(local / backbone.patch_grid)) * backbone.patch_grid
    changed = {name: value for name, value in found.items() if name not in given}
    if "freeze_backbone_steps" not in given:
        steps = {"max_steps": training.max_steps, "warmup_steps": training.warmup_steps, **changed}
        # the heads' own warm-up, after which the backbone's begins
        changed["freeze_backbone_steps"] = min(steps["warmup_steps"], steps["max_steps"] // 10)
    return changed


def begin(
    model: PoaForPreTraining,
    init_from: str,
    checkpoint: Path | None,
    training: PoaTrainingArguments,
    eval_steps: int | None = None,
) -> None:
    """Initialise a model from `init_from`, unless the run resumes from a checkpoint, and log what was done.

    Args:
        model: The model to initialise, in place.
        init_from: Folder or Hub id of the source.
        checkpoint: The checkpoint that the run resumes from, whose weights replace the source's.
        training: Arguments of the run, whose schedule is logged.
        eval_steps: Steps between evaluations; without them, they are recommended.
    """
    from .load import init_from as initialise

    lines = [f"Resuming from {checkpoint}; {init_from} was not read again."]
    if checkpoint is None:
        lines = [str(initialise(model, init_from)), _space(model), _schedule(training, eval_steps)]
    if int(os.environ.get("RANK", 0)) == 0:
        for line in lines:
            logger.info(line)


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
    guard = "" if eval_steps else "; --eval_steps N would watch the full size's k-NN"
    return (
        f"{args.max_steps} steps at a learning rate of {args.learning_rate:g} (for 1024 images), the first "
        f"{args.freeze_backbone_steps} of the heads alone; crops of {args.global_crop_size} and {args.local_crop_size} "
        f"pixels{guard}."
    )
