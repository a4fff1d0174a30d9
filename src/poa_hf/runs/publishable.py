"""What of a run may leave its machine: the files that its model is loaded from, and its records without paths.

They are published with a supernet, and pushed while the run trains.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..locations import leads_outside, looks_local
from ..yaml_files import parse_yaml, yaml_text
from .atomic import write_text
from .layout import (
    CONFIG,
    ENTRIES,
    EVALUATIONS,
    OWNER,
    PROCESSOR,
    RECIPE,
    TRAINING_ARGUMENTS,
    TRAINING_TIME,
    WEIGHT_FILES,
    RunFolder,
    is_weights,
)

_MACHINE_FIELDS = {"output_dir", "logging_dir", "run_name", "resume_from_checkpoint", "report_to"}
# which a run needs to go on as it was; paths among them are relative to the dataset, and slashes stand in others too
_NEEDED_TO_RESUME = {
    *("run_name", "report_to", "dataset_config_name", "dataset_split", "dataset_revision", "data_dir", "data_files"),
    *("eval_dataset_config_name", "eval_train_split", "eval_test_split", "attn_implementation"),
}
# each the id of a model or dataset on the Hub, or a local path
_SOURCE_FIELDS = {"dataset_name", "eval_dataset_name", "init_from", "foreign_teacher", "gram_teacher"}
_WRITER_FIELDS = {"_name_or_path"}  # where transformers read the model that it wrote
# A path within other text begins with a slash, `~`, `.`, `..` or a drive; in an address, a slash follows other signs.
_PATH_IN_TEXT = re.compile(r"(?<![\w:/.~\\-])(?:file:/*|[A-Za-z]:(?=[\\/])|~[\w.-]*|\.{1,2})?[/\\][^\s'\",;:()]+")


def check_no_links(run: Path) -> None:
    """Check that what would be published lies in the run's folder, so that no link can have another file published.

    Args:
        run: The folder of a run or of one of its checkpoints.

    Raises:
        ValueError: If one of the files leads elsewhere.
    """
    folder = RunFolder.containing(run).path
    for place in dict.fromkeys((folder, run.absolute())):
        for path in (path for entry in ENTRIES if entry.published for path in entry.paths(place)):
            if leads_outside(path, folder):
                raise ValueError(
                    f"{path} leads to a file outside {folder}, which must not be published: put the file itself there, "
                    "or delete the link."
                )


def model_files(model: Path, folder: Path) -> dict[str, Path]:
    """Return the files by name from which a saved `PoaForPreTraining` and its image processor can be loaded.

    Args:
        model: The folder of the model.
        folder: The folder that is published, where JSON files with paths of this machine are written without them.
    """
    paths = [model / CONFIG, model / PROCESSOR, *(path for path in model.glob(WEIGHT_FILES) if is_weights(path.name))]
    files = {path.name: path for path in sorted(paths) if path.exists()}
    for name, path in files.items():
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            if (published := without_local_paths(content)) != content:
                files[name] = folder / name
                write_text(files[name], json.dumps(published, indent=2) + "\n")
    return files


def write_run_files(folder: Path, model: Path, started_from: str | None) -> None:
    """Write a run's records into `folder`, without machine-specific paths. Files that cannot be read are left out.

    Args:
        folder: An existing folder.
        model: The folder of the published model: the run's, or one of its checkpoints.
        started_from: The public name of the model that the run started from, if it did; it replaces `init_from`.
    """
    for name, (parse, write) in _FILES.items():
        path = next((path for path in (model / name, RunFolder.containing(model).path / name) if path.exists()), None)
        if path is None:
            continue
        try:
            content = parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if name != OWNER:  # which its owner wrote for publication
            content = without_local_paths(content)
        if name == RECIPE and started_from and isinstance(content, dict) and "init_from" in content:
            content["init_from"] = started_from
        write_text(folder / name, write(content))


def resumable_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe from which a run can go on elsewhere, without the paths of this machine.

    A local source, such as a folder of images, stays recognisable as one: only `./` and its last part are kept.

    >>> resumable_recipe({"dataset_name": "/data/me/photos", "output_dir": "runs/a", "report_to": "wandb"})
    {'dataset_name': './photos', 'report_to': 'wandb'}
    """
    content: dict[str, Any] = without_local_paths(recipe)
    for name in _NEEDED_TO_RESUME & recipe.keys():
        content[name] = _within_the_source(recipe[name])
    for name in _SOURCE_FIELDS & recipe.keys():
        if _is_local(recipe[name]):
            content[name] = f"./{_last_part(recipe[name])}"
    return {name: content[name] for name in recipe if name in content}


def _within_the_source(value: Any) -> Any:
    """Cut paths that do not begin in the dataset or repository itself to their last part."""
    if isinstance(value, list):
        return [_within_the_source(item) for item in value]
    split, equals, path = str(value).rpartition("=")  # test=/data/b.parquet
    leads_out = path.startswith(("/", "~", "\\", "file:")) or path[1:3] in (":\\", ":/") or ".." in Path(path).parts
    return f"{split}{equals}{_last_part(path)}" if isinstance(value, str) and leads_out else value


def without_local_paths(value: Any) -> Any:
    """Leave out fields that only matter on the run's machine, and cut paths to their last part.

    >>> without_local_paths({"dataset_name": "/data/me/photos", "output_dir": "runs/a", "seed": 3})
    {'dataset_name': 'photos', 'seed': 3}
    """
    if isinstance(value, dict):
        return {
            without_local_paths(key): _last_part(item)
            if key in _SOURCE_FIELDS and _is_local(item)
            else without_local_paths(item)
            for key, item in value.items()
            if key not in _MACHINE_FIELDS | _WRITER_FIELDS
        }
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    return _last_part(value) if _is_path(value) else _PATH_IN_TEXT.sub(lambda match: _last_part(match[0]), value)


def _is_path(value: str) -> bool:
    """Return whether a text is a path as a whole."""
    if "\n" in value:
        return False
    begins_as_path = value.startswith(("/", "./", "../", "~", "\\", "file:")) or value[1:3] in (":\\", ":/")
    return begins_as_path or (value.count("/") > 1 and "://" not in value and " " not in value)


def _is_local(value: Any) -> bool:
    """Return whether a name is that of a local dataset or model; `models/base` may be a folder or a Hub id."""
    return isinstance(value, str) and "://" not in value and looks_local(value)


def _last_part(path: str) -> str:
    return Path(path.removeprefix("file:").replace("\\", "/")).name


def _to_json(indent: int) -> Callable[[Any], str]:
    return lambda content: json.dumps(content, indent=indent) + "\n"


# how to parse and how to write each file
_FILES: dict[str, tuple[Callable[[str], Any], Callable[[Any], str]]] = {
    RECIPE: (parse_yaml, yaml_text),
    OWNER: (parse_yaml, yaml_text),
    TRAINING_ARGUMENTS: (json.loads, _to_json(2)),
    TRAINING_TIME: (json.loads, _to_json(2)),
    EVALUATIONS: (json.loads, _to_json(1)),
}
