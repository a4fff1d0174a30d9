"""`poa report`: one page on a run."""

from __future__ import annotations

from pathlib import Path

from ..formatting import printable
from ..ranges import COUNT
from .main import quiet_libraries
from .parser import CommandParser, number_in


def report(argv: list[str]) -> None:
    """Run `poa report RUN [--output DIR] [--dataset_name D] [--images N] [--quality knn|linear]`."""
    parser = CommandParser(
        prog="poa report",
        description="Write an HTML page on a run, and its charts and pictures as PNG files: quality over the sizes and "
        "against cost, losses, signs of collapse, crops, attention. The page needs no network.",
    )
    parser.add_option("run", help="output_dir of a run, one of its checkpoints, or any saved PoaForPreTraining")
    parser.add_option("--output", type=Path, metavar="DIR", help="folder of the page (default: RUN/report)")
    parser.add_option(
        "--dataset_name",
        metavar="D",
        help="images for crops and pictures: a dataset of the Hub, a folder, or textures (default: the run's)",
    )
    parser.add_option("--images", type=number_in(COUNT), default=4, metavar="N", help="number of images")
    parser.add_option("--quality", choices=["knn", "linear"], default="knn", help="which accuracy charts show")
    args = parser.parse_args(argv)
    quiet_libraries()
    from ..report.page import make_report

    page, sections, pictures = make_report(args.run, args.output, args.dataset_name, args.images, args.quality)
    for section in sections:
        for sentence, command in section.missing:
            print(printable(f"{section.title}: {sentence}" + (f"\n  {command}" if command else "")))
    print(f"{page}: {pictures} pictures, {page.stat().st_size / 1e6:.1f} MB")
