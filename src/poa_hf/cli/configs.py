"""The recipes that come with poa_hf, found by name."""

from __future__ import annotations

from pathlib import Path

from ..formatting import suggest

_INSTALLED = Path(__file__).parents[1] / "configs"
# `poa_hf/configs` is a symbolic link in the repository, which some systems check out as a file
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[3] / "configs"


def recipe_names() -> list[str]:
    """Return the names of the recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find_config(name: str) -> Path:
    """Return the file of a recipe.

    Args:
        name: A path, or the name of a recipe that comes with poa_hf, such as `vit_large`.

    Raises:
        ValueError: If there is no such file or recipe.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if name in recipe_names():
        return FOLDER / f"{name}.yaml"
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        hint = f" (give --config {path.stem} for poa_hf's own recipe)" if path.stem in recipe_names() else ""
        raise ValueError(f"The configuration file {name} does not exist{hint}.")
    raise ValueError(f"{name!r} is neither a file nor a recipe: {suggest(name, recipe_names())}")


def list_configs() -> str:
    """Return one line for each recipe, and where the launch configurations lie."""
    names = recipe_names()
    width = max(map(len, names))
    lines = ["Recipes, for --config NAME:", ""]
    lines += [f"  {name:<{width}}  {_first_comment(FOLDER / f'{name}.yaml')}" for name in names]
    launch = FOLDER / "accelerate"
    lines += ["", "Their files, to copy and change, lie in", f"  {FOLDER}"]
    lines += ["", "Launch configurations, for"]
    lines += ["  accelerate launch --config_file FILE -m poa_hf pretrain --config NAME", ""]
    lines += [f"  {path}" for path in sorted(launch.glob("*.yaml"))]
    lines += ["", "A job script for Slurm, with torchrun:", "", f"  {launch / 'slurm.sh'}"]
    return "\n".join(lines)


def _first_comment(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
