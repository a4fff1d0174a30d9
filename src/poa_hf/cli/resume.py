"""`poa resume`: go on with a run that was stopped, here or on another machine, as its recipe says."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..locations import may_be_on_hub, named_path, split_revision
from ..yaml_files import read_mapping
from .overrides import split_model_overrides
from .pretrain import run_recipe
from .recipe import read_recipe, recipe_parser

_SILENCE = 120  # seconds without an answer of the Hub after which a request fails
_SOURCES = ("dataset_name", "eval_dataset_name", "foreign_teacher", "gram_teacher")
_GIVEN_BY_THE_RUN = ("output_dir", "resume_from_checkpoint", "overwrite_output_dir")


def resume(argv: list[str]) -> None:
    """Run `poa resume RUN [--key value ...]`, where RUN is a folder, or a repository that a run was pushed to."""
    arguments, overrides = split_model_overrides(argv)
    options = vars(recipe_parser("poa resume", of_run=True).parse_args(arguments))
    name = options.pop("run")
    run = Path(name).expanduser()
    is_on_hub = may_be_on_hub(name)
    if is_on_hub:
        run = Path(options.pop("output_dir", Path("runs", split_revision(name)[0].split("/")[1]))).expanduser()
    for option in _GIVEN_BY_THE_RUN:
        if option in options:
            raise ValueError(f"--{option} is given by the run that poa resume goes on with: leave it out.")
    if is_on_hub:
        _fetch(name, run, options)
    folder, checkpoint = _found(run)
    given = {"config": str(folder / "config.yaml"), "output_dir": str(folder), "resume_from_checkpoint": checkpoint}
    run_recipe(read_recipe(options | given, overrides))


def _fetch(name: str, folder: Path, options: dict[str, Any]) -> None:
    """Download a run from the Hub into a folder.

    Raises:
        ValueError: If it cannot be resumed, or not without options that are not given.
    """
    from ..hub.timeout import hub_timeout
    from ..runs.fetch import fetch_once
    from ..runs.layout import RunFolder

    if not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    with hub_timeout(_SILENCE):
        fetch_once(name, folder, options.get("hub_token"))
    if RunFolder(folder).recipe.is_file():
        recipe = read_mapping(RunFolder(folder).recipe)
        _check_recipe(name, recipe, options)
        if recipe.get("push_to_hub"):  # on to where it came from, whatever a stranger's recipe says
            options.setdefault("hub_model_id", split_revision(name)[0])


def _check_recipe(name: str, recipe: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse a recipe of the Hub that needs what is not here, or code that nobody here has chosen."""
    for field in _SOURCES:
        if field not in options and str(recipe.get(field)).startswith("./") and not Path(recipe[field]).exists():
            raise ValueError(
                f"{name} was run with the {field} {recipe[field][2:]!r}, a folder or file of the machine that it was "
                f"pushed from: say where it is here by --{field}."
            )
    attention = options.get("attn_implementation", recipe.get("attn_implementation"))
    if "attn_implementation" not in options and "/" in str(attention):
        raise ValueError(
            f"{name} computes attention by code of the Hub ({attention}): give --attn_implementation sdpa, or that one "
            "if you trust it."
        )


def _found(run: Path) -> tuple[Path, str]:
    """Return the folder of a run and the checkpoint to resume from, `true` for the last sound one.

    Raises:
        ValueError: If there is no run, or it cannot be resumed from its folder alone.
    """
    from ..runs.checkpoints import checkpoint_folders
    from ..runs.layout import RunFolder, is_checkpoint_name

    if not run.is_dir():
        raise ValueError(f"{run} does not exist or is not a folder: give the folder of a run, or its id on the Hub.")
    run = named_path(run)
    folder, checkpoint = (run.parent, str(run)) if is_checkpoint_name(run.name) else (run, "true")
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
