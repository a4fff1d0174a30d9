"""A report on a run: one HTML page that works without a network, and its pictures as PNG files.

What a run does not have (yet) is missing from its report, which says so, and which command makes it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from ..elastic import SubNetwork
from ..formatting import format_quantity, printable
from ..locations import leads_outside
from ..models.elastic_config import image_shape
from ..runs.atomic import write_bytes, write_text
from ..runs.comparison import Comparison, choose
from ..runs.facts import RunFacts
from ..runs.layout import RunFolder
from ..selection.costs import Costs, costs
from ..selection.latency_table import read_latencies
from ..selection.select import select
from .captions import percent
from .numbers import collapse_section, loss_section
from .pictures import crops_section, pictures_section
from .quality import quality_sections
from .section import Section, columns, uri
from .sizes import size_columns, size_name

_GENERATOR = '<meta name="generator" content="poa report">'
_MOST_IMAGES = 16


def write_report(
    run: str | Path,
    output: str | Path | None = None,
    dataset_name: str | None = None,
    num_images: int = 4,
    quality: str = "knn",
) -> Path:
    """Write the report on a run, `index.html` and its pictures, into a folder.

    Args:
        run: The output_dir of a run, one of its checkpoints, or any saved elastic model.
        output: The folder to write into; by default `report` in the run's folder.
        dataset_name: Images for crops and pictures, as `open_dataset` takes it; by default those that the run trains
            on, or the built-in textures if the run does not say.
        num_images: The number of images to show, 1 to 16.
        quality: The accuracy that charts show, `knn` or `linear`.

    Returns:
        The path of the page.

    Raises:
        ValueError: If there is no such run, matplotlib is not installed, `dataset_name` cannot be opened, or the folder
            cannot be written to or holds another page.
    """
    page, _, _ = make_report(run, output, dataset_name, num_images, quality)
    return page


def make_report(
    run: str | Path, output: str | Path | None, dataset_name: str | None, num_images: int, quality: str
) -> tuple[Path, list[Section], int]:
    """Write a report as `write_report` does, and return the path of the page, its sections and the number of files
    beside it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("The report's charts need matplotlib: install poa_hf[plots].")
    if not 1 <= num_images <= _MOST_IMAGES:
        raise ValueError(f"{num_images} images cannot be shown: give 1 to {_MOST_IMAGES}.")
    if quality not in ("knn", "linear"):
        raise ValueError(f"{quality!r} is not an accuracy that charts show: use knn or linear.")
    facts = RunFacts.read(run)
    run_folder = facts.folder or RunFolder.containing(run)
    folder = run_folder.report if output is None else Path(output)
    if output is None and leads_outside(folder, run_folder.path):
        raise ValueError(f"{folder} leads to a folder outside the run: give --output to write there.")
    _check_folder(folder)
    sizes: dict[SubNetwork, Costs] = {}
    measured: Comparison | None = None
    latencies: dict[str, dict[SubNetwork, float]] = {}
    if facts.config is not None:
        sizes = costs(facts.backbone)
        measured = choose(facts.comparisons, [f"{quality}_accuracy"])
        latencies = read_latencies(run_folder, facts.backbone)
    sections = [
        *quality_sections(facts, measured, sizes, latencies, quality),
        (table := Section("sizes", "Sizes")),
        loss_section(facts),
        collapse_section(facts),
        crops_section(facts, dataset_name, num_images),
        pictures_section(facts, dataset_name, num_images),
    ]
    if not sizes:
        table.missing.append((facts.no_model, None))
    page = rendered(
        "template.html",
        name=run_folder.path.name,
        facts=_headline(facts, sizes, measured),
        sections=sections,
        columns_of_sizes=size_columns(facts, sizes, latencies),
        sizes=[(size, size_name(facts.space, size)) for size in sizes],
        pixels=image_shape(facts.backbone)[1] if sizes else None,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: content for section in sections for name, content in section.files().items()}
        for name, content in files.items():
            write_bytes(folder / name, content)  # replaces a link, and does not write through it
        write_text(folder / "index.html", page)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to ({error.strerror}): give another --output.") from error
    return folder / "index.html", sections, len(files)


def _headline(facts: RunFacts, sizes: Mapping[SubNetwork, Costs], measured: Comparison | None) -> list[tuple[str, str]]:
    """Return the most important facts of a run, by title."""
    shown = []
    if sizes:
        parameters = [cost.parameters for cost in sizes.values()]
        shown += [
            ("family", facts.backbone.family or facts.backbone.model_type),
            ("sizes", str(len(sizes))),
            ("parameters", f"{format_quantity(min(parameters))} to {format_quantity(max(parameters))}"),
        ]
    if facts.log:
        last, planned = facts.log[-1], facts.arguments.get("max_steps")
        shown.append(("steps", f"{last['step']:,}" + (f" of {planned:,}" if planned else "")))
        if isinstance(last.get("loss"), int | float):
            shown.append(("last loss", f"{last['loss']:.3f}"))
    if facts.dataset:
        shown.append(("trained on", facts.dataset))
    if measured is not None:
        best = select(facts.space, costs=sizes, quality=measured.values).best
        shown.append((f"best {measured.title}", f"{percent(measured.values[best])} ({best})"))
    return shown


def rendered(template: str, **content: Any) -> str:
    """Return a page made of a template of this folder."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = {"generator": _GENERATOR, "date": datetime.now(UTC).date().isoformat(), "uri": uri, "columns": columns}
    return printable(environment.get_template(template).render(**shown, **content))


def _check_folder(folder: Path) -> None:
    """Raise a ValueError for a path that is no folder, and for a folder with a page that is not a report."""
    for parent in (folder.absolute(), *folder.absolute().parents):
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{parent} is a file: give another --output.")
    page = folder / "index.html"
    if page.exists() and _GENERATOR not in page.read_text(errors="replace"):
        raise ValueError(f"{page} is another page: give another --output.")
