"""A report on a run: one HTML page that works without a network, and its charts and pictures as PNG files.

What a run does not have (yet) is missing from its report, which says so, and which command makes it.
"""

from __future__ import annotations

from pathlib import Path

from ..locations import leads_outside
from ..runs.facts import RunFacts
from .content import RunContent
from .pictures import crops_section, pictures_section
from .rendering import check_folder, check_request, rendered, write_page
from .section import Section

_MOST_IMAGES = 16


def write_report(
    run: str | Path,
    output: str | Path | None = None,
    dataset_name: str | None = None,
    num_images: int = 4,
    quality: str | None = None,
) -> Path:
    """Write the report on a run, `index.html` and its pictures, into a folder.

    Args:
        run: The output_dir of a run, one of its checkpoints, or any saved elastic model.
        output: The folder to write into; by default `report` in the run's folder.
        dataset_name: Images for crops and pictures, as `open_dataset` takes it; by default those that the run trains
            on, or the built-in textures if the run does not say.
        num_images: The number of images to show, 1 to 16.
        quality: The task or metric that charts show first, such as `linear` or `segmentation`; by default k-NN, else a
            linear probe, else whatever was measured.

    Returns:
        The path of the page.

    Raises:
        ValueError: If there is no such run, matplotlib is not installed, `dataset_name` cannot be opened, or the folder
            cannot be written to or holds another page.
    """
    page, _, _ = make_report(run, output, dataset_name, num_images, quality)
    return page


def make_report(
    run: str | Path, output: str | Path | None, dataset_name: str | None, num_images: int, quality: str | None
) -> tuple[Path, list[Section], int]:
    """Write a report as `write_report` does, and return the path of the page, its sections and the number of files
    beside it."""
    if not 1 <= num_images <= _MOST_IMAGES:
        raise ValueError(f"{num_images} images cannot be shown: give 1 to {_MOST_IMAGES}.")
    facts = RunFacts.read(run)
    check_request(quality, [facts])
    content = RunContent.of(facts, quality)
    folder = content.folder.report if output is None else Path(output)
    if output is None and leads_outside(folder, content.folder.path):
        raise ValueError(f"{folder} leads to a folder outside the run: give --output to write there.")
    check_folder(folder)
    sections = [
        *content.sections(quality),
        crops_section(facts, dataset_name, num_images),
        pictures_section(facts, dataset_name, num_images),
    ]
    page = rendered("template.html", sections=sections, **content.shown)
    files = {name: content for section in sections for name, content in section.files().items()}
    return write_page(folder, page, files), sections, len(files)
