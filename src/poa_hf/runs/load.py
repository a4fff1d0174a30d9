"""Load a run's latest model and image processor, from its folder or from the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from transformers import BitImageProcessorPil as ImageProcessor

from ..formatting import listed
from ..locations import may_be_on_hub
from ..models.complete import load_complete
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..models.saved import load_saved_processor
from .checkpoints import checkpoints_with_model, step_of
from .hub import download_supernet
from .json_files import read_object
from .layout import CHECKSUMS, CONFIG, METRICS, PROCESSOR, TRAINER_STATE
from .soundness import model_damage
from .training_time import read_compute


def resolve_run(run: str | Path) -> Path:
    """Find the folder with the latest model of a run: the run's own once it has ended, else its last checkpoint.

    Args:
        run: The output_dir of a run, one of its checkpoints, or the folder of any saved `PoaForPreTraining`. If there
            is no such folder, the Hub id of a supernet, which is downloaded: `namespace/name`, or
            `namespace/name@revision` for another revision than the main branch.

    Raises:
        ValueError: If there is no model.
    """
    folder = Path(run).expanduser()
    if not folder.is_dir():
        if may_be_on_hub(run):
            return download_supernet(str(run))
        raise ValueError(f"{run} does not exist: give the output_dir of a run or one of its checkpoints.")
    for candidate in (folder, *reversed(checkpoints_with_model(folder))):
        if (candidate / CONFIG).exists():
            return candidate
    inside = sorted(each.name for each in folder.iterdir() if (each / METRICS).exists() or (each / CONFIG).exists())
    if inside and not (folder / METRICS).exists():
        raise ValueError(
            f"{run} holds several runs: give one of them, such as {folder / inside[0]} ({listed(inside)})."
        )
    raise ValueError(f"{run} holds no model yet: wait for the run's first checkpoint (save_steps).")


def load_run(run: str | Path) -> PoaForPreTraining:
    """Load the latest model of a run, in evaluation mode.

    Args:
        run: As for `resolve_run`.

    Raises:
        ValueError: If there is no model, or it is not complete or not as it was written.

    Example:
        >>> from poa_hf import PoaConfig, PoaForPreTraining, PoaViTConfig
        >>> backbone = PoaViTConfig(
        ...     hidden_size=32, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=16,
        ...     min_num_hidden_layers=1, image_size=32, patch_size=8,
        ... )
        >>> PoaForPreTraining(PoaConfig(backbone_config=backbone, num_prototypes=[16])).save_pretrained("run")
        >>> model = load_run("run")
        >>> model.teacher.extract("16x1").num_parameters()
        6736
    """
    folder = resolve_run(run)
    check_model(folder)
    return load_complete(folder)


def check_model(folder: Path) -> None:
    """Check that a model's files are complete and, if there are checksums, as they were written.

    Raises:
        ValueError: If not, with the file.
    """
    if damage := model_damage(folder):
        raise ValueError(
            f"The model in {folder} is damaged ({damage}): restore the file from a copy, or give a sound checkpoint "
            f"(poa check shows which are); if the change was meant, delete {CHECKSUMS}."
        )


def run_processor(run: str | Path) -> ImageProcessor | None:
    """Load the image processor that a run has saved beside its model; None if there is none."""
    folder = resolve_run(run)
    if not (folder / PROCESSOR).exists():
        return None
    return cast(ImageProcessor, load_saved_processor(folder))


def model_step(folder: Path) -> int | None:
    """The step of the model in the folder of a checkpoint or of a run that has ended; None if it is not recorded."""
    state = folder / TRAINER_STATE
    if state.exists():
        step = read_object(state).get("global_step")
        return step if isinstance(step, int) else None
    if (compute := read_compute(folder)) and compute.parts:
        return compute.step
    saved = checkpoints_with_model(folder)
    return step_of(saved[-1]) if saved else None
