"""Reading what a run has come to: its model and image processor."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoImageProcessor
from transformers import BitImageProcessorPil as ImageProcessor

from ..models.modeling_poa_pretraining import PoaForPreTraining, load_complete
from .checkpoints import checkpoints_with_model, step_of
from .hub import download_supernet, may_be_on_hub
from .layout import CONFIG, PROCESSOR, TRAINER_STATE
from .training_time import read_compute


def resolve_run(run: str | Path) -> Path:
    """The folder with the model of a run: the run's own once it has ended, else its last checkpoint.

    Also takes the folder of any saved `PoaForPreTraining`, or the Hub id of one, which is downloaded; a folder of that
    name comes first, and `namespace/name@revision` is another than the main branch. ValueError if there is none.
    """
    if not Path(run).is_dir() and may_be_on_hub(run):
        return download_supernet(str(run))
    run = Path(run)
    if not run.is_dir():
        raise ValueError(f"{run} does not exist: give the output_dir of a run or one of its checkpoints.")
    for folder in (run, *reversed(checkpoints_with_model(run))):
        if (folder / CONFIG).exists():
            return folder
    raise ValueError(f"{run} holds no model yet: wait for the run's first checkpoint (save_steps).")


def load_run(run: str | Path) -> PoaForPreTraining:
    """The model of a run or saved folder, in evaluation mode. ValueError if it is not there or not whole."""
    return load_complete(resolve_run(run))


def run_processor(run: str | Path) -> ImageProcessor | None:
    """The image processor that a run saved beside its model."""
    folder = resolve_run(run)
    return AutoImageProcessor.from_pretrained(folder) if (folder / PROCESSOR).exists() else None


def model_step(folder: Path) -> int | None:
    """The step of the model in a checkpoint, or in the folder of a run that has ended; None if nothing tells."""
    state = folder / TRAINER_STATE
    if state.exists():
        return json.loads(state.read_text()).get("global_step")
    if (compute := read_compute(folder)) and compute.parts:
        return compute.step
    found = checkpoints_with_model(folder)
    return step_of(found[-1]) if found else None
