"""The repository of a run on the Hub, which is pushed while the run trains.

At its top lie the newest model, the run's records and a page; `poa extract` and others read them as those of a
supernet. In `last-checkpoint`, or in folders named as those of the run, lie the checkpoints from which `poa resume`
goes on. A checkpoint is pushed as it is, except for paths of the machine and pickles, and its checksums say so.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..locations import leads_outside
from ..yaml_files import parse_yaml, yaml_text
from .atomic import write_text
from .checksums import first_difference
from .json_files import read_object
from .json_lines import read_lines
from .layout import (
    CHECKPOINT,
    CHECKSUMS,
    CONFIG,
    COUNTS,
    GRAM_TEACHER,
    METRICS,
    OPTIMIZER_STATE,
    PROCESSOR,
    RECIPE,
    SIZES,
    TRAINER_STATE,
    TRAINING_ARGUMENTS,
    TRAINING_TIME,
    UNIT_ORDER,
    RunFolder,
    is_checkpoint_name,
    is_weights,
)
from .publishable import check_no_links, model_files, resumable_recipe, without_local_paths, write_run_files

LAST_CHECKPOINT = "last-checkpoint"  # as transformers calls it
PAGE = "README.md"
# What a checkpoint consists of besides its weights. Anything else is neither pushed nor fetched, pickles least of all.
_PARTS = (*(CONFIG, PROCESSOR, TRAINING_TIME, TRAINER_STATE, COUNTS, OPTIMIZER_STATE, "data_state_*.json", CHECKSUMS),)
_WITH_TEXT = (CONFIG, PROCESSOR, TRAINING_TIME, TRAINER_STATE)  # the others hold numbers only
_OF_THE_OWNER = {PAGE, "LICENSE", "LICENSE.md", "LICENSE.txt", ".gitignore"}  # which a new repository may have
_RENEWED = "<!-- poa_hf renews this page with each push, unless this line is removed -->"


def is_part(name: str) -> bool:
    """Whether a file of this name is part of a checkpoint."""
    return is_weights(name) or "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in _PARTS)


def checkpoint_folder(path: str) -> str | None:
    """The folder of a checkpoint that a file of the repository lies in; None if it lies elsewhere."""
    folder, _, name = path.partition("/")
    return folder if name and (folder == LAST_CHECKPOINT or is_checkpoint_name(folder)) else None


def holds_a_run(paths: Iterable[str]) -> bool | None:
    """Whether a repository holds a pushed run, by the paths of its files; None if it is empty or has only a page."""
    names = set(paths) - _OF_THE_OWNER
    return TRAINING_ARGUMENTS in names and SIZES not in names if names else None


def checkpoint_files(checkpoint: Path) -> dict[str, Path | bytes]:
    """Return the files of a checkpoint by name, as they are pushed.

    Raises:
        ValueError: If the checkpoint is damaged, or a link in it leads elsewhere.
    """
    check_no_links(checkpoint)
    if damage := first_difference(checkpoint, thorough=True):
        raise ValueError(f"{checkpoint} is damaged ({damage})")
    listed = read_object(checkpoint / CHECKSUMS)["files"]
    files: dict[str, Path | bytes] = {}
    checksums = {}
    for name in sorted(filter(is_part, listed)):
        path = checkpoint / name
        if leads_outside(path, checkpoint):
            raise ValueError(f"{path} leads to a file outside the run")
        content = _without_paths(path) if name in _WITH_TEXT else None
        files[name] = path if content is None else content
        checksums[name] = listed[name]
        if content is not None:
            checksums[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return files | {CHECKSUMS: _as_json({"files": checksums})}


def kept_model_files(run: Path) -> dict[str, Path | bytes]:
    """Return the files of the run's Gram teacher by their paths, without which it cannot go on; none if it has none."""
    paths = sorted(path for path in (run / GRAM_TEACHER).glob("*") if is_part(path.name))
    files: dict[str, Path | bytes] = {}
    for path in paths:
        if leads_outside(path, run):
            raise ValueError(f"{path} leads to a file outside the run")
        content = _without_paths(path) if path.name in _WITH_TEXT else None
        files[f"{GRAM_TEACHER}/{path.name}"] = path if content is None else content
    return files


def _without_paths(path: Path) -> bytes | None:
    """Return the content of a JSON file without paths of the machine; None if it has none."""
    content = read_object(path)
    published = without_local_paths(content)
    if path.name == TRAINER_STATE and content.get("best_model_checkpoint"):
        published["best_model_checkpoint"] = Path(content["best_model_checkpoint"]).name
    return None if published == content else _as_json(published)


def run_files(run: Path, model: Path, step: int, folder: Path) -> dict[str, Path | bytes]:
    """Return the files at the top of the repository by name: the model and the run's records.

    Args:
        run: The folder of the run.
        model: The folder of the model: one of the run's checkpoints, or the run's own at its end.
        step: The step of the model, after which the log ends.
        folder: An empty folder, for what is pushed in another form than it has here.

    Raises:
        ValueError: If a link leads to a file outside the run.
    """
    check_no_links(model)
    files: dict[str, Path | bytes] = {**model_files(model, folder)}
    write_run_files(folder, model, None)
    recipe = RunFolder(run).recipe
    if recipe.is_file():
        content = parse_yaml(recipe.read_text(encoding="utf-8"))
        write_text(folder / RECIPE, yaml_text(resumable_recipe(content)))
    lines = [json.dumps(line) + "\n" for line in read_lines(run / METRICS) if line["step"] <= step]
    write_text(folder / METRICS, "".join(lines))
    order = RunFolder(run).unit_order
    if order.is_file():
        files[UNIT_ORDER] = order
    return files | {path.name: path for path in folder.iterdir()}


def outdated_files(present: Iterable[str], pushed: Mapping[str, Any], step: int) -> list[str]:
    """Return the files of a repository that a push replaces by none.

    These are old parts of the weights and of a checkpoint of the same name; the checkpoints that lie after this step,
    which the run has gone back from; and, where the last checkpoint has one folder, all that is not pushed with it.

    Args:
        present: The paths of the files in the repository.
        pushed: The files that are pushed, by their paths.
        step: The step of the push.
    """
    folders = {checkpoint_folder(path) for path in pushed} - {None}
    outdated = []
    for path in sorted(set(present) - pushed.keys()):
        folder = checkpoint_folder(path)
        if folder is None:
            is_old = is_weights(path)
        else:
            is_later = folder != LAST_CHECKPOINT and int(folder.removeprefix(CHECKPOINT)) > step
            is_old = folder in folders or is_later or LAST_CHECKPOINT in folders
        if is_old:
            outdated.append(path)
    return outdated


def is_ours(page: bytes) -> bool:
    """Whether a repository's page was written by a push, and not edited since by somebody who wants to keep it."""
    return _RENEWED.encode() in page


def run_page(repo_id: str, sizes: str, step: int, max_steps: int, folders: Iterable[str]) -> bytes:
    """Return the page of a run's repository: what it holds, and how to go on with it and to use it.

    Args:
        repo_id: The repository.
        sizes: What the model is called, and its sizes.
        step: The step of the model.
        max_steps: The steps of the run.
        folders: The folders of checkpoints in the repository.
    """
    folders = sorted(folders)
    state = f"step {step:,} of {max_steps:,}" if step < max_steps else f"its last step, {max_steps:,}"
    if folders:
        resume = f"""`{"`, `".join(folders)}`: all that the run needs to go on exactly, on any machine:

```shell
poa resume {repo_id}
```

This takes the newest sound checkpoint into `runs/{repo_id.split("/")[1]}` (or `--output_dir FOLDER`). Images that were
read from a local folder are given by `--dataset_name FOLDER`."""
    else:
        resume = f"""No checkpoint is here, as `hub_strategy` was `every_save` or `end`, so that the run itself cannot
go on from this repository. Another run can start from its model:

```shell
poa pretrain --init_from {repo_id} --dataset_name DATASET --output_dir FOLDER
```"""
    text = f"""---
library_name: poa_hf
tags:
- poa
- poa-run
- self-supervised
---

# {repo_id.split("/")[1]}

A pre-training run of [POA](https://arxiv.org/abs/2408.01031) by poa_hf, at {state}:
{sizes}. It was pushed by the run itself.

## The model

`config.json` and `model.safetensors` are teacher, student and heads after step {step:,}, from which any size is taken:

```shell
poa extract {repo_id} --size small --output FOLDER
poa evaluate {repo_id} --dataset_name DATASET
```

## The run

`config.yaml` is its recipe, `metrics.jsonl` its log, without paths of the machine.

{resume}

{_RENEWED}
"""
    return re.sub(r"\n{3,}", "\n\n", text).encode()


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
