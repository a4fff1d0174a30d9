"""`poa embed`: the features of all images of a dataset as files, and what is nearest to an image among them."""

from __future__ import annotations

import os
import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.crop_arguments import MAX_IMAGE_PIXELS
from ..formatting import printable
from ..ranges import COUNT, WHOLE, Range
from .data_options import add_data_options, data_options
from .main import quiet_libraries
from .parser import CommandParser, number_in, separate_words

if TYPE_CHECKING:
    from ..embedding.nearest import Neighbour


def embed(argv: list[str]) -> None:
    """Run `poa embed MODEL --dataset_name D --output DIR` or `poa embed --index DIR [--query PHOTO ...]`."""
    args = _parser().parse_args(argv)
    if args.index is None:
        if args.query:
            raise ValueError("--query searches embeddings: give their folder as --index.")
        _embed_dataset(args)
    else:
        _search(args)


def _embed_dataset(args: Namespace) -> None:
    missing = [
        shown
        for name, shown in (("model", "MODEL"), ("dataset_name", "--dataset_name"), ("output", "--output"))
        if getattr(args, name) is None
    ]
    if missing:
        raise ValueError(f"Give {' and '.join(missing)}: see poa embed --help.")
    quiet_libraries()
    from ..embedding.embed import embed as write_embeddings
    from ..evaluation.processes import Processes

    processes = Processes()
    workers = args.num_workers
    if workers is None:
        workers = min(4, (os.cpu_count() or 1) // processes.count)
    written = write_embeddings(
        args.model,
        args.dataset_name,
        args.output,
        args.size,
        config_name=args.dataset_config_name,
        split=args.dataset_split,
        dataset_options=data_options(args),
        num_workers=workers,
        **{
            name: getattr(args, name)
            for name in (
                *("image_column", "label_column", "max_images", "max_image_pixels", "patches", "format", "dtype"),
                *("rows_per_shard", "batch_size", "bf16"),
            )
        },
    )
    if processes.is_main:
        manifest = written.manifest
        grid = "" if manifest.patches is None else f", and {' x '.join(map(str, manifest.patches))} of its patches"
        count = sum(len(record.files) for record in written.records)
        files = f"{count} file{'s' if count != 1 else ''} of {args.output}"
        print(f"{len(written):,} images, {manifest.dimension} numbers of each{grid}, in {files}")
        if manifest.skipped:
            which = "1 image" if manifest.skipped == 1 else f"{manifest.skipped:,} images"
            print(f"{which} could not be decoded, and left out: see {args.output}/skipped_images.jsonl")
        print(f"next: poa embed --index {shlex.quote(str(args.output))}")
    processes.state.destroy_process_group()


def _search(args: Namespace) -> None:
    """Write the page of an index, or print and show what is nearest to photographs."""
    quiet_libraries()
    from ..embedding.embeddings import Embeddings
    from ..embedding.nearest import features_of, nearest, open_queries
    from ..embedding.page import write_index_page, write_query_page

    embeddings = Embeddings.load(args.index)
    if not args.query:
        page = write_index_page(embeddings, args.output, args.images, args.top, args.dataset_name)
    else:
        queries = open_queries(embeddings, args.query)
        features = features_of(embeddings, [query.image for query in queries], args.model, args.batch_size)
        found = nearest(embeddings, features, args.top)
        for query, neighbours in zip(queries, found, strict=True):
            print(printable(_table(query.name, neighbours)))
        page = write_query_page(embeddings, queries, found, args.output, args.dataset_name)
    print(f"Written to {page}")


def _table(name: str, neighbours: Sequence[Neighbour]) -> str:
    """Return the images nearest to a photograph as a table."""
    has_labels = any(each.label is not None for each in neighbours)
    titles = ["rank", "similarity", *(["label"] if has_labels else []), "image"]
    rows = [
        [
            str(rank),
            f"{each.similarity:.4f}",
            *(["" if each.label is None else str(each.label)] * has_labels),
            each.name,
        ]
        for rank, each in enumerate(neighbours, 1)
    ]
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    lines = [
        "  ".join(
            cell.ljust(width) if column > 1 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [titles, *rows]
    ]
    return "\n".join([name, *lines, ""])


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="poa embed",
        usage="poa embed MODEL --dataset_name D --output DIR [--OPTION VALUE ...]\n"
        "       poa embed --index DIR [--query PHOTO ... --top N]",
        description="Write the features of all images of a dataset into files. Stopped and run again, it goes on where "
        "it was. Or look for images that are like others (--index).",
        epilog="For several GPUs, start it with accelerate launch -m poa_hf embed.",
    )
    parser.add_option(
        "model", nargs="?", metavar="MODEL", help="a run, one of its checkpoints, an extracted or a stock model, or a "
        "Hub id",
    )  # fmt: skip
    _add_images(parser)
    _add_output(parser)
    _add_search(parser)
    return parser


def _add_images(parser: CommandParser) -> None:
    data = parser.add_argument_group("images")
    parser.add_option("--dataset_name", group=data, metavar="D", help="a dataset of the Hub, a folder, or textures")
    add_data_options(parser, data)
    parser.add_option("--dataset_split", group=data, default="train", metavar="S", help="split of the images")
    parser.add_option("--image_column", group=data, metavar="C", help="column of the images, if there are several")
    parser.add_option("--label_column", group=data, metavar="C", help="a column to keep as label")
    parser.add_option("--max_images", group=data, type=number_in(COUNT), metavar="N", help="use the first N rows only")
    parser.add_option(
        "--max_image_pixels", group=data, type=number_in(Range(1, 2**40, whole=True)), metavar="N",
        default=MAX_IMAGE_PIXELS,
        help=f"leave out images of more pixels, width times height (default: {MAX_IMAGE_PIXELS})",
    )  # fmt: skip


def _add_output(parser: CommandParser) -> None:
    work = parser.add_argument_group("computation and output")
    parser.add_option("--output", group=work, type=Path, metavar="DIR", help="folder of the embeddings to write")
    parser.add_option("--size", group=work, metavar="SIZE", help="name or size of an elastic model (default: full)")
    parser.add_option("--patches", group=work, action="store_true", help="write the features of patches as well")
    parser.add_option(
        "--format", group=work, choices=["parquet", "safetensors", "npy"], default="parquet",
        help="parquet, safetensors or npy",
    )  # fmt: skip
    parser.add_option(
        "--dtype",
        group=work,
        choices=["float32", "float16"],
        default="float32",
        help="float32 or float16, in the files",
    )
    parser.add_option(
        "--rows_per_shard", group=work, type=number_in(COUNT), metavar="N",
        help="rows of the dataset per file (default: 10000, or what makes 256 MB)",
    )  # fmt: skip
    parser.add_option(
        "--batch_size", group=work, type=number_in(COUNT), default=64, metavar="N", help="images at a time"
    )
    parser.add_option(
        "--num_workers", group=work, type=number_in(WHOLE), metavar="N",
        help="processes that decode images (default: up to 4)",
    )  # fmt: skip
    parser.add_option("--bf16", group=work, action="store_true", help="compute in bfloat16")
    parser.add_token(work)


def _add_search(parser: CommandParser) -> None:
    search = parser.add_argument_group("search")
    parser.add_option(
        "--index", group=search, type=Path, metavar="DIR",
        help="embeddings to search: write a page of images and those nearest to them; MODEL and --dataset_name say "
        "where these are now, and --output names the page",
    )  # fmt: skip
    parser.add_option(
        "--query", group=search, separate=True, type=separate_words, metavar="PHOTO ...",
        help="files of photographs: print and show the images nearest to each",
    )  # fmt: skip
    parser.add_option(
        "--top", group=search, type=number_in(COUNT), default=10, metavar="N", help="nearest images to show of each"
    )
    parser.add_option(
        "--images", group=search, type=number_in(COUNT), default=48, metavar="N", help="images on the page of an index"
    )
