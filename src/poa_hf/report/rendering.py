"""Pages made of the templates of this folder, and the folders that they are written into."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from ..formatting import printable
from ..runs.atomic import write_bytes, write_text
from ..runs.facts import RunFacts
from ..runs.metrics import check_measure
from .section import columns, uri

_GENERATOR = '<meta name="generator" content="poa report">'
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def rendered(template: str, **content: Any) -> str:
    """Return a page made of a template. Names in it can neither be markup nor control a terminal."""
    shown = {"generator": _GENERATOR, "date": datetime.now(UTC).date().isoformat(), "uri": uri, "columns": columns}
    return printable(_TEMPLATES.get_template(template).render(**shown, **content))


def check_request(quality: str | None, runs: Iterable[RunFacts]) -> None:
    """Raise a ValueError if no page can be made, or there is no such task or metric.

    Args:
        quality: The task or metric; None for the default.
        runs: What is known of the runs, whose tables may call a metric by another name, such as `1 % labels`.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("The report's charts need matplotlib: install poa_hf[plots].")
    titles = {title for run in runs for each in run.comparisons for title in (each.title, each.metric_name)}
    if quality is not None and quality not in titles:
        check_measure(quality)


def check_folder(folder: Path) -> None:
    """Raise a ValueError for a path that is no folder, and for a folder with a page that is not a report."""
    for parent in (folder.absolute(), *folder.absolute().parents):
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{parent} is a file: give another --output.")
    page = folder / "index.html"
    if page.exists() and _GENERATOR not in page.read_text(errors="replace"):
        raise ValueError(f"{page} is another page: give another --output.")


def write_page(folder: Path, page: str, files: Mapping[str, bytes]) -> Path:
    """Write a page and the files beside it, and return its path.

    Raises:
        ValueError: If the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_bytes(folder / name, content)  # replaces a link, and does not write through it
        write_text(folder / "index.html", page)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}): give another --output.") from error
    return folder / "index.html"
