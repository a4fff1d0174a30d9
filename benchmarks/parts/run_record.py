"""A file of what finished runs of a comparison gave, without their weights, so that another machine goes on from it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import yaml

from .cached_runs import COST, RECIPE, finished_cost, without_places

OF_A_RUN = (COST, "curve.json", "outcomes-*.npz")
OF_ALL = "equal_compute.json"


def unpack(record: Path, folder: Path) -> None:
    """Write the runs of a record into a folder of runs, except those that it has already.

    Args:
        record: The file; one that does not exist holds nothing.
        folder: The folder of the comparison, `--output_dir`.
    """
    if not record.exists():
        return
    with zipfile.ZipFile(record) as kept:
        names = kept.namelist()
        known = {run for run in {Path(name).parent for name in names} if (folder / run / RECIPE).exists()}
        for name in names:
            if Path(name).parent not in known and not (folder / name).exists():
                kept.extract(name, folder)


def pack(record: Path, folder: Path) -> None:
    """Add the finished runs of a folder to a record: costs, curves, outcomes of each test image, and recipes."""
    found: dict[str, bytes] = {}
    if record.exists():
        with zipfile.ZipFile(record) as kept:
            found = {name: kept.read(name) for name in kept.namelist()}
    if (folder / OF_ALL).exists():
        found[OF_ALL] = (folder / OF_ALL).read_bytes()
    for recipe in sorted(folder.glob(f"*/*/{RECIPE}")):
        run = recipe.parent
        if finished_cost(run) is None:
            continue
        name = run.relative_to(folder).as_posix()
        text = yaml.safe_dump(without_places(yaml.safe_load(recipe.read_text())), sort_keys=False)
        found[f"{name}/{RECIPE}"] = text.encode()
        for path in sorted(path for pattern in OF_A_RUN for path in run.glob(pattern)):
            found[f"{name}/{path.name}"] = path.read_bytes()
    new = record.with_suffix(".new")
    new.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as kept:
        for name, content in sorted(found.items()):
            kept.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # no times: equal runs, equal files
    new.replace(record)
