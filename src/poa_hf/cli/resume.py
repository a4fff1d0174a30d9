"""`poa resume`: go on with a run that was stopped, as its recipe says."""

from __future__ import annotations

from pathlib import Path

from .overrides import split_model_overrides
from .pretrain import run_recipe
from .recipe import read_recipe, recipe_parser

_GIVEN_BY_THE_RUN = ("output_dir", "resume_from_checkpoint", "overwrite_output_dir")


def resume(argv: list[str]) -> None:
    """Run `poa resume RUN [--key value ...]`."""
    arguments, overrides = split_model_overrides(argv)
    options = vars(recipe_parser("poa resume", of_run=True).parse_args(arguments))
    run = Path(options.pop("run")).expanduser()
    for name in _GIVEN_BY_THE_RUN:
        if name in options:
            raise ValueError(f"--{name} is given by the run that poa resume goes on with: leave it out.")
    folder, checkpoint = _found(run)
    given = {"config": str(folder / "config.yaml"), "output_dir": str(folder), "resume_from_checkpoint": checkpoint}
    run_recipe(read_recipe(options | given, overrides))


def _found(run: Path) -> tuple[Path, str]:
    """Return the folder of a run and the checkpoint to resume from, `true` for the last sound one.

    Raises:
        ValueError: If there is no run, or it cannot be resumed from its folder alone.
    """
    from ..runs.checkpoints import checkpoint_folders
    from ..runs.layout import RunFolder, is_checkpoint_name

    if not run.is_dir():
        raise ValueError(f"{run} does not exist or is not a folder: give the folder of a run.")
    folder, checkpoint = (run.parent, str(run)) if is_checkpoint_name(run.absolute().name) else (run, "true")
    if not checkpoint_folders(folder):
        raise ValueError(
            f"{folder} has no checkpoint to resume from: give the folder of a run, or start one by poa pretrain."
        )
    if not RunFolder(folder).recipe.is_file():
        raise ValueError(
            f"{folder} has no recipe (config.yaml), as it was not started by poa pretrain: run its script again, with "
            "train(resume_from_checkpoint=True)."
        )
    return folder, checkpoint
