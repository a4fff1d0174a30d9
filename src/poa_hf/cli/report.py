"""The command `poa report`: what a run has come to, as one page."""

from __future__ import annotations

from pathlib import Path

from .parser import CommandParser


def report(argv: list[str]) -> None:
    """`poa report RUN [--output DIR] [--dataset_name D] [--images N] [--quality knn|linear]`"""
    parser = CommandParser(
        prog="poa report",
        description="Write one HTML page on a run, which needs no network, and its charts and pictures as PNG files: "
        "quality over the sizes and against cost, losses, signs of collapse, crops, attention.",
    )
    parser.add_argument("run", help="output_dir of a run, one of its checkpoints, or any saved PoaForPreTraining")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the page (default: RUN/report)")
    parser.add_argument(
        "--dataset_name",
        metavar="D",
        help="images of crops and pictures: a dataset of the Hub, a folder, or textures (default: the run's)",
    )
    parser.add_argument("--images", type=int, default=4, metavar="N", help="how many images (default: 4)")
    parser.add_argument("--quality", choices=["knn", "linear"], default="knn", help="which accuracy charts show")
    args = parser.parse_args(argv)
    from ..report.page import make_report

    page, sections = make_report(args.run, args.output, args.dataset_name, args.images, args.quality)
    for section in sections:
        for sentence, command in section.missing:
            print(f"{section.title}: {sentence}" + (f"\n  {command}" if command else ""))
    pictures = sum(len(section.pictures) for section in sections)
    print(f"{page}: {pictures} pictures, {page.stat().st_size / 1e6:.1f} MB")
