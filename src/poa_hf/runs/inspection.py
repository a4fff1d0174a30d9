"""Whether everything that a run has written is sound: its checkpoints, its model and its records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..formatting import listed, one_line
from ..locations import named_path
from ..yaml_files import read_mapping
from .checkpoints import checkpoint_folders
from .checksums import first_difference, has_checksums
from .evaluations import load_evaluations
from .json_files import read_object
from .json_lines import broken_lines, read_lines
from .layout import OWNER, RECIPE, SIZES, RunFolder, is_checkpoint_name
from .soundness import checkpoint_damage, model_damage
from .training_time import load_compute


@dataclass(frozen=True)
class Part:
    """A part of a run's folder.

    Args:
        name: The name of a file or checkpoint, or `model` for the model of a run that has ended.
        state: What it is or holds, or what is wrong with it.
        is_sound: Whether nothing is wrong with it.
    """

    name: str
    state: str
    is_sound: bool = True


def inspect_run(folder: Path) -> Iterator[Part]:
    """Yield the parts of a run that exist, in the order in which they are shown.

    Weights and optimizer states are read as a whole, which takes a second for each GB or two.

    Args:
        folder: The output_dir of a run, one of its checkpoints, or the folder of any saved `PoaForPreTraining`.

    Raises:
        ValueError: If it is none of these.
    """
    folder = named_path(folder)
    is_checkpoint = is_checkpoint_name(folder.name)
    run = RunFolder(folder)
    found = [folder] if is_checkpoint else checkpoint_folders(folder)
    if not folder.is_dir() or not (found or run.config.exists() or run.metrics.exists()):
        raise ValueError(f"{folder} is no run: give the output_dir of a run, or one of its checkpoints.")
    for checkpoint in found:
        damage = checkpoint_damage(checkpoint)
        if checkpoint.exists():  # a run that trains may have deleted it meanwhile
            yield _checked(checkpoint, checkpoint.name, damage)
    if is_checkpoint:
        return
    if run.config.exists() or has_checksums(folder):  # a resumed run has neither, but old weights, until it ends
        difference = first_difference(folder, thorough=True) if has_checksums(folder) else None
        yield _checked(folder, "model", difference or model_damage(folder, thorough=False))
    for path, describe in _records(run):
        if path.exists() or path.is_symlink():
            yield _read(path, describe)


def _checked(folder: Path, name: str, damage: str | None) -> Part:
    if damage is not None:
        return Part(name, f"damaged: {damage}", is_sound=False)
    return Part(name, "sound" if has_checksums(folder) else "readable, but without checksums to compare it with")


def _records(run: RunFolder) -> list[tuple[Path, Callable[[Path], str]]]:
    """The files with records that a run may have, and the functions that read and describe them."""
    return [
        (run.path / RECIPE, _recipe),
        (run.training_arguments, lambda path: f"{len(read_object(path))} arguments"),
        *((path, _log) for path in (run.metrics, run.skipped_images, *run.logs_of_images())),
        (run.training_time, lambda path: f"up to step {load_compute(path).step}"),
        (run.evaluations, lambda path: f"{len(load_evaluations(path))} records"),
        *((path, _object) for path in (*run.latencies(), run.unit_order, run.conversion)),
        (run.path / SIZES, _object),
        (run.path / OWNER, lambda path: f"{len(read_mapping(path))} fields"),
    ]


def _recipe(path: Path) -> str:
    return f"{len(read_mapping(path))} fields"


def _object(path: Path) -> str:
    read_object(path)
    return "readable"


def _log(path: Path) -> str:
    if broken := broken_lines(path):
        raise ValueError(f"broken lines: {listed(broken)}")
    return f"{len(read_lines(path))} lines"


def _read(path: Path, describe: Callable[[Path], str]) -> Part:
    try:
        if not path.is_file():
            raise ValueError("not a file")
        return Part(path.name, describe(path))
    except (ValueError, OSError) as error:
        reason = one_line(error, 1000).removeprefix(f"{path} is damaged: ").removeprefix(str(path)).lstrip(", ")
        return Part(path.name, f"damaged: {reason}", is_sound=False)
