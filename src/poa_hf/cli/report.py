"""`poa report`: one page on a run, or on several."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from ..formatting import format_bytes, printable
from ..ranges import COUNT, Range
from .main import quiet_libraries
from .parser import CommandParser, number_in

_PORT = Range(0, 65535, whole=True)


def report(argv: list[str]) -> None:
    """Run `poa report RUN ... [--output DIR] [--dataset_name D] [--images N] [--task T] [--watch]`."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    if args.watch:
        _watch(args)
    elif len(args.run) > 1:
        _refuse(args, "of several runs", "dataset_name", "images", "port")
        from ..report.compare import write_comparison

        page = write_comparison(args.run, args.output, args.quality)
        print(f"{page}: {len(args.run)} runs, {format_bytes(page.stat().st_size)}")
    else:
        _refuse(args, "without --watch", "port")
        _write(args)


def _write(args: Namespace) -> None:
    from ..report.page import make_report

    images = 4 if args.images is None else args.images
    page, sections, pictures = make_report(args.run[0], args.output, args.dataset_name, images, args.quality)
    for section in sections:
        for sentence, command in section.missing:
            print(printable(f"{section.title}: {sentence}" + (f"\n  {command}" if command else "")))
    print(f"{page}: {pictures} pictures, {format_bytes(page.stat().st_size)}")


def _watch(args: Namespace) -> None:
    """Serve the page until Ctrl-C."""
    _refuse(args, "with --watch", "output", "dataset_name", "images")
    from ..report.live import LivePage, LiveServer

    page = LivePage(args.run, args.quality)
    try:
        server = LiveServer(page, args.port or 0)
    except OSError as error:
        raise ValueError(f"Port {args.port} cannot be used ({error.strerror}): give another --port.") from error
    with server:
        print(printable(f"Watching {', '.join(args.run)} at {server.address} (Ctrl-C ends it)"), flush=True)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print("Ended.")


def _refuse(args: Namespace, where: str, *names: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} has no effect {where}: leave it out.")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="poa report",
        description="Write an HTML page on a run, and its charts and pictures as PNG files: quality over the sizes and "
        "against cost, losses, signs of collapse, crops, attention. Several runs are compared on one page. The page "
        "needs no network.",
    )
    parser.add_option(
        "run", nargs="+", help="output_dir of a run, one of its checkpoints, or any saved PoaForPreTraining"
    )
    parser.add_option(
        "--output", type=Path, metavar="DIR", help="folder of the page (default: RUN/report, or report beside the runs)"
    )
    parser.add_option(
        "--dataset_name", metavar="D",
        help="images for crops and pictures: a dataset of the Hub, a folder, or textures (default: the run's)",
    )  # fmt: skip
    parser.add_option("--images", type=number_in(COUNT), metavar="N", help="number of images (default: 4)")
    parser.add_option(
        "--task", "--quality", dest="quality", metavar="T",
        help="which task or metric of poa evaluate charts show first: knn, segmentation, clustering_nmi, ... (default: "
        "knn, else linear, else what was measured)",
    )  # fmt: skip
    parser.add_option(
        "--watch", action="store_true",
        help="write nothing, but serve the page on this machine, without pictures of images, and refresh it as the run "
        "goes on; the run need not exist yet",
    )  # fmt: skip
    parser.add_option(
        "--port", type=number_in(_PORT), metavar="N", help="port of --watch on 127.0.0.1 (default: any free one)"
    )
    return parser
