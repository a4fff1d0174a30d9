"""The files of a run that its supernet's repository holds: those that the model is loaded from, and the run's records
without machine-specific paths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ..locations import looks_local
from ..runs.atomic import write_text
from ..runs.layout import (
    CONFIG,
    EVALUATIONS,
    OWNER,
    PROCESSOR,
    RECIPE,
    TRAINING_ARGUMENTS,
    TRAINING_TIME,
    WEIGHT_FILES,
    RunFolder,
)

_MACHINE_FIELDS = {"output_dir", "logging_dir", "run_name", "resume_from_checkpoint", "report_to"}
_SOURCE_FIELDS = {"dataset_name", "eval_dataset_name", "init_from"}  # a Hub id or a local path


def model_files(model: Path) -> dict[str, Path]:
    """Return the files by name from which a saved `PoaForPreTraining` and its image processor can be loaded."""
    paths = [path for pattern in (CONFIG, WEIGHT_FILES, PROCESSOR) for path in model.glob(pattern)]
    return {path.name: path for path in sorted(paths)}


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
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if name != OWNER:  # which its owner wrote for publication
            content = without_local_paths(content)
        if name == RECIPE and started_from and isinstance(content, dict) and "init_from" in content:
            content["init_from"] = started_from
        write_text(folder / name, write(content))


def without_local_paths(value: Any) -> Any:
    """Leave out fields that only matter on the run's machine, and cut paths to their last part.

    >>> without_local_paths({"dataset_name": "/data/me/photos", "output_dir": "runs/a", "seed": 3})
    {'dataset_name': 'photos', 'seed': 3}
    """
    if isinstance(value, dict):
        return {
            key: _last_part(item) if key in _SOURCE_FIELDS and _is_local(item) else without_local_paths(item)
            for key, item in value.items()
            if key not in _MACHINE_FIELDS
        }
    if isinstance(value, list):
        return [without_local_paths(item) for item in value]
    return _last_part(value) if _is_path(value) else value


def _is_path(value: Any) -> bool:
    """Return whether a value looks like a path."""
    if not isinstance(value, str) or "\n" in value:
        return False
    begins_as_path = value.startswith(("/", "./", "../", "~", "\\")) or value[1:3] == ":\\"
    return begins_as_path or (value.count("/") > 1 and "://" not in value)


def _is_local(value: Any) -> bool:
    """Return whether a name is that of a local dataset or model; `models/base` may be a folder or a Hub id."""
    return isinstance(value, str) and "://" not in value and looks_local(value)


def _last_part(path: str) -> str:
    return Path(path.replace("\\", "/")).name


def _to_yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False)


def _to_json(indent: int) -> Callable[[Any], str]:
    return lambda content: json.dumps(content, indent=indent) + "\n"


# how to parse and how to write each file
_FILES: dict[str, tuple[Callable[[str], Any], Callable[[Any], str]]] = {
    RECIPE: (yaml.safe_load, _to_yaml),
    OWNER: (yaml.safe_load, _to_yaml),
    TRAINING_ARGUMENTS: (json.loads, _to_json(2)),
    TRAINING_TIME: (json.loads, _to_json(2)),
    EVALUATIONS: (json.loads, _to_json(1)),
}
