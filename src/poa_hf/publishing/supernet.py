"""What the repo of a supernet holds beside its weights: what the run has written down, and a table of all sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ..elastic import SubNetwork
from ..runs.atomic import write_json
from ..runs.facts import RunFacts
from ..runs.layout import (
    CONFIG,
    EVALUATIONS,
    OWNER,
    PROCESSOR,
    RECIPE,
    SIZES,
    TRAINING_ARGUMENTS,
    TRAINING_TIME,
    WEIGHT_FILES,
    RunFolder,
)
from ..selection.select import quality_of
from .hub.names import family_of

# files of a run that tell how it was trained and what came out, and how to read and write each
_RECORDS: dict[str, tuple[Callable, Callable]] = {
    RECIPE: (yaml.safe_load, lambda values: yaml.safe_dump(values, sort_keys=False)),
    OWNER: (yaml.safe_load, lambda values: yaml.safe_dump(values, sort_keys=False)),
    TRAINING_ARGUMENTS: (json.loads, lambda values: json.dumps(values, indent=2) + "\n"),
    TRAINING_TIME: (json.loads, lambda values: json.dumps(values, indent=2) + "\n"),
    EVALUATIONS: (json.loads, lambda values: json.dumps(values, indent=1) + "\n"),
}
# of this machine alone
_OWN = {"output_dir", "logging_dir", "run_name", "resume_from_checkpoint", "report_to"}


def model_files(model: Path) -> dict[str, Path]:
    """Those of a saved `PoaForPreTraining` that another one can be loaded from."""
    found = (path for name in (CONFIG, WEIGHT_FILES, PROCESSOR) for path in model.glob(name))
    return {path.name: path for path in sorted(found)}


def write_records(folder: Path, model: Path) -> None:
    """Copy a run's records into `folder`, without folders of this machine. What cannot be read is left out."""
    run = RunFolder.containing(model).path
    for name, (read, write) in _RECORDS.items():
        path = next((path for path in (model / name, run / name) if path.exists()), None)
        if path is None:
            continue
        try:
            values = read(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        (folder / name).write_text(write(public(values)), encoding="utf-8")


def public(values: Any) -> Any:
    """Without what belongs to this machine, with paths cut to their last part: where they lie is nobody's business."""
    if isinstance(values, dict):
        return {key: public(value) for key, value in values.items() if key not in _OWN}
    if isinstance(values, list):
        return [public(value) for value in values]
    if isinstance(values, str) and (values.startswith(("/", "./", "../", "~", "\\")) or values[1:3] == ":\\"):
        return Path(values.replace("\\", "/")).name
    if isinstance(values, str) and values.count("/") > 1 and "://" not in values and "\n" not in values:
        return Path(values).name
    return values


def size_table(facts: RunFacts, supernet: str | None, repos: Mapping[SubNetwork, str]) -> dict[str, Any]:
    """Every size of a family, as `sizes.json` holds it: parameters, FLOPs of one image (a multiplication and its
    addition once), what was measured (0 to 1), and the repo it is published in, None for those that are not."""
    config = facts.config.backbone_config
    names = {size: name for name, size in config.space.named.items()}
    quality = {f"{task}_accuracy": quality_of(facts.evaluations, config.space, task) for task in ("knn", "linear")}
    rows = []
    for size, of in facts.costs.items():
        row = {"size": str(size), "name": names.get(size), "width": size.width, "depths": list(size.depths)}
        row |= {key: value for key, value in asdict(of).items() if key in ("parameters", "flops")}
        row |= {key: measured.values.get(size) for key, measured in quality.items()}
        rows.append({**row, "repo": repos.get(size)})
    return {
        "family": family_of(config),
        "supernet": supernet,
        "image_size": getattr(config, "image_size", None),
        "measured": {key: measured.name for key, measured in quality.items() if measured.values},
        "sizes": rows,
    }


def write_table(folder: Path, table: Mapping[str, Any]) -> None:
    write_json(folder / SIZES, table, indent=1)


def repos_in(table: bytes) -> dict[SubNetwork, str]:
    """The published sizes of a table; none where it is not one."""
    try:
        rows = json.loads(table)["sizes"]
        return {SubNetwork.parse(row["size"]): row["repo"] for row in rows if row.get("repo")}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
