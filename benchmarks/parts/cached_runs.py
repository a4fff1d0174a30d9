"""Pre-training runs of a comparison: each in a folder of its own, made once, and continued if it was cut off."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

COST, RECIPE = "cost.json", "recipe.yaml"
PROGRAM = ("-m", "poa_hf.cli")


def finished_cost(folder: Path) -> dict[str, float] | None:
    """Return what a finished run cost, `cpu_seconds` and `wall_seconds`; None for one that is not finished."""
    cost = _cost(folder)
    return cost if cost.pop("finished") else None


class Unfinished(SystemExit):
    """A run was cut off, by a signal, a limit of time or a failure."""


def pretrain(
    folder: Path,
    recipe: Mapping[str, Any],
    until: float | None = None,
    trial_levers: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Pre-train as a recipe says, unless that is done, and return what it cost in all.

    A run that was cut off goes on from its last checkpoint. SIGTERM and the limit save one; what was spent is kept.

    Args:
        folder: The run's folder.
        recipe: What `poa pretrain --config` reads, without the folder.
        until: The time, of `time.monotonic`, at which the run is cut off; None for no limit.
        trial_levers: Levers of `parts.trial_levers`, which no recipe has.

    Raises:
        Unfinished: If the run was cut off.
        ValueError: If the folder holds a run by another recipe.
    """
    recipe, config = {**recipe, "output_dir": str(folder)}, folder / RECIPE
    if config.exists() and without_places(yaml.safe_load(config.read_text())) != without_places(recipe):
        raise ValueError(f"{folder} holds a run by another recipe: give another --output_dir, or delete it.")
    if (cost := finished_cost(folder)) is not None:
        return cost
    if until is not None and time.monotonic() > until:
        raise Unfinished(f"{folder} was not begun: run the same command again to go on.")
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(recipe, sort_keys=False))
    resumable = any(folder.glob("checkpoint-*"))
    command = ["resume", str(folder)] if resumable else ["pretrain", "--config", str(config), "--overwrite_output_dir"]
    print(f"{folder}: {recipe['max_steps']} steps{', going on' if resumable else ''}", file=sys.stderr, flush=True)
    program = [Path(__file__).with_name("trial_levers.py"), json.dumps(trial_levers)] if trial_levers else PROGRAM
    process = subprocess.Popen([sys.executable, *program, *command], stdout=subprocess.DEVNULL)
    start, before, finished = time.perf_counter(), _cpu_seconds(), False
    stopping = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        finished = process.wait(None if until is None else max(0.0, until - time.monotonic())) == 0
    except subprocess.TimeoutExpired:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if process.poll() is None:
            process.terminate()
            process.wait()
        spent = {"wall_seconds": time.perf_counter() - start, "cpu_seconds": _cpu_seconds() - before}
        total = {name: _cost(folder)[name] + seconds for name, seconds in spent.items()}
        _replace(folder / COST, total | {"finished": finished})
        signal.signal(signal.SIGTERM, stopping)
    if not finished:
        raise Unfinished(f"{folder} was not finished: run the same command again to go on.")
    return total


def without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without what differs between machines: the run's folder, and the path of the images' folder."""
    found = {name: value for name, value in recipe.items() if name != "output_dir"}
    return found | {"dataset_name": Path(found["dataset_name"]).name} if found.get("dataset_name") else found


def _cost(folder: Path) -> dict[str, Any]:
    start = {"wall_seconds": 0.0, "cpu_seconds": 0.0, "finished": False}
    path = folder / COST
    # the programs of earlier versions wrote this file at the end only
    return start | {"finished": True} | json.loads(path.read_text()) if path.exists() else start


def _replace(path: Path, content: dict[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content) + "\n")
    os.replace(new, path)


def _cpu_seconds() -> float:
    """Return the CPU seconds of all ended child processes, workers included."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def with_overrides(recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe with some keys replaced; a dot leads into a mapping, as in `model.intact_weight`."""
    result = dict(recipe)
    for name, value in overrides.items():
        first, dot, rest = name.partition(".")
        result[first] = with_overrides(result.get(first, {}), {rest: value}) if dot else value
    return result


def assignments(texts: list[str]) -> dict[str, Any]:
    """Return what options such as `model.intact_weight=0.65` assign."""
    return {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in texts)}


def alone(recipe: Mapping[str, Any], width: int, depth: int) -> dict[str, Any]:
    """Return the recipe that pre-trains one size of a ViT's space only, without an elastic student."""
    backbone = recipe["model"]["backbone_config"]
    head_size = backbone["hidden_size"] // backbone["num_attention_heads"]
    sizes = {"hidden_size": width, "min_hidden_size": width, "num_attention_heads": width // head_size,
             "num_hidden_layers": depth, "min_num_hidden_layers": depth}  # fmt: skip
    changes = {f"model.backbone_config.{name}": value for name, value in sizes.items()}
    return with_overrides(recipe, changes | {"model.intact_weight": 1.0})
