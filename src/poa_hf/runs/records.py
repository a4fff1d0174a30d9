"""What a run has written down, as a report reads it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, PreTrainedConfig

from ..elastic import SubNetwork
from ..models.elastic_config import elastic_config
from ..models.from_fields import model_config, read_model_section
from .evaluations import Evaluation, load_evaluations
from .layout import RunFolder
from .load import resolve_run


@dataclass
class RunRecords:
    """What a run has written down. `given` is what its user calls it, `folder` its own folder, not a checkpoint's."""

    given: str
    folder: Path
    config: PreTrainedConfig | None
    without_model: str | None
    lines: list[dict[str, Any]]
    arguments: dict[str, Any]
    recipe: dict[str, Any]
    evaluations: list[Evaluation]
    broken: str | None = None

    def command(self, name: str, *options: str) -> str:
        return shlex.join(["poa", name, self.given, *options])

    @property
    def labelled_data(self) -> str:
        return self.recipe.get("eval_dataset_name") or self.recipe.get("dataset_name") or "DATASET"

    def series(self, value: Callable[[dict], float | None]) -> tuple[list[int], list[float]]:
        """Steps and values of the lines that have one."""
        points = [(line["step"], value(line)) for line in self.lines]
        points = [(step, value) for step, value in points if isinstance(value, int | float)]
        return [step for step, _ in points], [value for _, value in points]

    def all_series(self, prefix: str) -> dict[str, tuple[list[int], list[float]]]:
        """Those of each name with a prefix, by the rest of the name."""
        names = dict.fromkeys(name for line in self.lines for name in line if name.startswith(prefix))
        return {name.removeprefix(prefix): self.series(lambda line, name=name: line.get(name)) for name in names}

    def name_of(self, size: SubNetwork) -> str:
        """What the space calls a size; empty for most."""
        return ", ".join(name for name, named in self.config.space.named.items() if named == size)


def read_run(run: str | Path) -> RunRecords:
    """Everything but weights. ValueError if there is no run at all."""
    path = Path(run)
    without_model = None
    try:
        model = resolve_run(path)
    except ValueError as error:
        if not path.is_dir():
            raise
        model, without_model = None, str(error)
    folder = RunFolder.containing(model or path).path
    recipe = _mapping(folder / "config.yaml", yaml.safe_load)
    lines = _lines(folder / "metrics.jsonl")
    config = None
    if model is not None:
        config = elastic_config(AutoConfig.from_pretrained(model))
    elif recipe:
        try:
            config = model_config(read_model_section(folder / "config.yaml")).backbone_config
        except (ValueError, TypeError):
            config = None  # written by another version: the model will tell
    elif not lines:
        raise ValueError(f"{run} holds neither a model nor a run's records: give the output_dir of a run.")
    arguments = _mapping(folder / "training_args.json", json.loads)
    try:
        evaluations, broken = load_evaluations(folder), None
    except ValueError as error:
        evaluations, broken = [], str(error)
    return RunRecords(str(run), folder, config, without_model, lines, arguments, recipe, evaluations, broken)


def read_latencies(records: RunRecords) -> dict[str, dict[SubNetwork, float]]:
    """Milliseconds of the sizes that `poa select` has measured for this model, by the column's title."""
    found = {}
    if records.config is None:
        return found
    space = records.config.space
    own = json.loads(json.dumps(records.config.stock_config(space.full).to_diff_dict()))
    for path in sorted(records.folder.glob("latency-*.json")):
        saved = _mapping(path, json.loads)
        try:
            sizes = {SubNetwork.parse(size): float(of["median_ms"]) for size, of in saved["measured"].items()}
            title = f"latency on {saved['device']}"
            title += f", batch of {saved['batch_size']}" if saved["batch_size"] != 1 else ""
            title += (", compiled" if saved["compiled"] else "") + ", ms"
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
        if saved.get("architecture") == own and sizes.keys() <= set(space):
            found[title] = sizes
    return found


def _lines(path: Path) -> list[dict]:
    """The lines of a log with a step; half-written ones, as a run that goes on may have, are left out."""
    found = []
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(content, dict) and isinstance(content.get("step"), int):
            found.append(content)
    return found


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict:
    """A file's content; empty where it is not there or broken, which a report can do without."""
    try:
        content = parse(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}
