"""A report on a run: one HTML page that needs nothing besides itself, and its pictures as PNG files.

Whatever a run does not have (yet) is missing from its report, which says so, and which command makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import jinja2

from ..elastic import SubNetwork
from ..evaluation.table import column_title
from ..formatting import format_quantity
from ..models.elastic_config import image_shape
from ..runs.evaluations import Evaluation
from ..runs.records import RunRecords, read_latencies, read_run
from ..selection.costs import Costs, costs
from ..selection.select import Quality, read_quality, select
from .numbers import collapse_section, heat_map_section, loss_section, pareto_section
from .pictures import FAMILIES, crops_section, pictures_section
from .section import Section

_GENERATOR = '<meta name="generator" content="poa report">'


def write_report(
    run: str | Path,
    output: str | Path | None = None,
    dataset_name: str | None = None,
    num_images: int = 4,
    quality: str = "knn",
) -> Path:
    """Write `index.html` and its pictures, PNG, into a folder. Gives the page's path.

    Args:
        run: output_dir of a run, one of its checkpoints, or any saved elastic model.
        output: the folder; by default `report` in the run's.
        dataset_name: images for crops and pictures, as `open_dataset` takes it; by default those that the run trains
            on, or the built-in textures where it does not say.
        num_images: how many of them, 1 to 16.
        quality: which accuracy charts show, `knn` or `linear`.

    Raises:
        ValueError: if there is no such run, matplotlib is not installed, `dataset_name` can't be opened, or the folder
            can't be written to or holds another page.
    """
    page, _ = make_report(run, output, dataset_name, num_images, quality)
    return page


def make_report(
    run: str | Path, output: str | Path | None, dataset_name: str | None, num_images: int, quality: str
) -> tuple[Path, list[Section]]:
    """`write_report`, which also gives what the page holds."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("The report's charts need matplotlib: install poa_hf[plots].") from error
    if not 1 <= num_images <= 16:
        raise ValueError(f"{num_images} images can't be shown: give 1 to 16.")
    if quality not in ("knn", "linear"):
        raise ValueError(f"{quality!r} is not an accuracy that charts show: use knn or linear.")
    records = read_run(run)
    folder = Path(output) if output is not None else records.folder / "report"
    _check_folder(folder)
    measured, sizes = Quality(), {}
    if records.config is not None:
        sizes = costs(records.config)
        if not records.broken:
            measured = read_quality(records.folder, records.config.space, quality)
    latencies = read_latencies(records)
    sections = [
        heat_map_section(records, measured, quality),
        pareto_section(records, measured, sizes, latencies, quality),
        (table := Section("sizes", "Sizes")),
        loss_section(records),
        collapse_section(records),
        crops_section(records, dataset_name, num_images),
        pictures_section(records, dataset_name, num_images),
    ]
    if not sizes:
        table.missing.append((records.without_model, None))
    html = _template().render(
        generator=_GENERATOR,
        name=records.folder.name,
        facts=_facts(records, sizes, measured),
        sections=sections,
        columns=_columns(records, sizes, latencies),
        sizes=[(size, records.name_of(size)) for size in sizes],
        pixels=image_shape(records.config)[1] if sizes else None,
        date=datetime.now(UTC).date().isoformat(),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for section in sections:
            for picture in section.pictures:
                for name, content in picture.files().items():
                    (folder / name).write_bytes(content)
        (folder / "index.html").write_text(html, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{folder} can't be written to ({error.strerror}): give another --output.") from error
    return folder / "index.html", sections


def _facts(records: RunRecords, sizes: Mapping[SubNetwork, Costs], measured: Quality) -> list[tuple[str, str]]:
    facts = []
    if sizes:
        family = FAMILIES.get(records.config.model_type, records.config.model_type)
        ends = (
            format_quantity(min(of.parameters for of in sizes.values())),
            format_quantity(max(of.parameters for of in sizes.values())),
        )
        facts += [("family", family), ("sizes", str(len(sizes))), ("parameters", f"{ends[0]} to {ends[1]}")]
    if records.lines:
        last, planned = records.lines[-1], records.arguments.get("max_steps")
        facts.append(("steps", f"{last['step']:,}" + (f" of {planned:,}" if planned else "")))
        if isinstance(last.get("loss"), int | float):
            facts.append(("last loss", f"{last['loss']:.3f}"))
    if name := records.recipe.get("dataset_name"):
        facts.append(("trained on", Path(name).name if Path(name).exists() else name))
    if measured.values:
        best = select(records.config.space, costs=sizes, quality=measured.values).best
        facts.append((f"best {measured.title}", f"{measured.values[best]:.1%} ({best})"))
    return facts


@dataclass(frozen=True)
class Column:
    """A column of the table: what is sorted by, and how it is shown."""

    title: str
    values: Mapping[SubNetwork, float]
    shown: Callable[[float], str]


def _columns(
    records: RunRecords,
    sizes: Mapping[SubNetwork, Costs],
    latencies: Mapping[str, Mapping[SubNetwork, float]],
) -> list[Column]:
    columns = [
        Column("parameters", {size: of.parameters for size, of in sizes.items()}, format_quantity),
        Column("FLOPs", {size: of.flops for size, of in sizes.items()}, format_quantity),
    ]
    columns += [Column(title, values, "{:.3g}".format) for title, values in latencies.items()]
    if not sizes:
        return []
    # one column for each metric and dataset: the latest step, of it the records of the most sizes
    sets: dict[tuple, dict[str, list[Evaluation]]] = {}
    for record in records.evaluations:
        if record.size in map(str, sizes):
            kind = record.dataset, column_title(record)
            sets.setdefault(kind, {}).setdefault(replace(record, size="", model="").key, []).append(record)
    several = len({dataset for dataset, _ in sets}) > 1
    for (dataset, title), alternatives in sets.items():
        latest = max(alternatives.values(), key=lambda found: (found[0].step or 0, len(found), found[0].test_images))
        values = {SubNetwork.parse(record.size): record.value for record in latest}
        title = f"{title}, {dataset}" if several else title
        columns.append(Column(f"{title}, %", values, lambda value: f"{100 * value:.1f}"))
    return columns


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(Path(__file__).with_name("template.html").read_text(encoding="utf-8"))


def _check_folder(folder: Path) -> None:
    """Refuse what is no folder, and a page that is not ours. ValueError."""
    for parent in (folder.absolute(), *folder.absolute().parents):
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{parent} is a file: give another --output.")
    page = folder / "index.html"
    if page.exists() and _GENERATOR not in page.read_text(errors="replace"):
        raise ValueError(f"{page} is another page: give another --output.")
