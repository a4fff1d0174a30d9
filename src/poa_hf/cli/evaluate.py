"""`poa evaluate`: sizes of a run, or a stock checkpoint, on images with labels or values of pixels."""

from __future__ import annotations

import logging
import os
from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.crop_arguments import MAX_IMAGE_PIXELS
from ..ranges import COUNT, POSITIVE, SEED, WHOLE, Range
from ..runs.layout import EVALUATIONS
from .alteration_options import KNN_TASKS, add_alteration_options, alteration_options
from .data_options import add_data_options, data_options
from .linear_options import add_linear_options, linear_options
from .main import quiet_libraries
from .parser import CommandParser, number_in, numbers_in, words
from .pixel_options import add_pixel_options, task_options

if TYPE_CHECKING:
    from ..evaluation.data.own_data import OwnData
    from ..evaluation.splits import EvaluationData

logger = logging.getLogger(__name__)


def evaluate(argv: list[str]) -> None:
    """Run `poa evaluate RUN_OR_CHECKPOINT [--dataset_name D]`."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    from ..evaluation.alterations.examples import save_examples
    from ..evaluation.data.own_data import own_data
    from ..evaluation.evaluator import evaluate_sizes
    from ..evaluation.processes import Processes
    from ..evaluation.subject import load_subject
    from ..evaluation.table import results_table
    from ..evaluation.tasks import TaskOptions, by_kind, check_tasks
    from ..runs.evaluations import save_evaluations

    options = TaskOptions(
        k=args.k,
        seed=args.seed,
        **alteration_options(args),
        **task_options(args),
        **linear_options(args),
    )
    # a wrong request is reported before the model and the data are opened, which takes a while
    check_tasks(args.tasks, options, None)
    own = own_data(args.model) if args.dataset_name is None else None
    subject = load_subject(args.model)
    sizes = subject.sizes(",".join(args.sizes) if args.sizes else None)
    output = Path(args.output) if args.output else subject.results or Path(EVALUATIONS)
    _check_output(output)
    processes = Processes()
    work = [(tasks, open_data(args, own, tasks, processes.is_main)) for tasks in by_kind(args.tasks)]
    if args.examples and processes.is_main:
        save_examples(args.examples, subject, work, options)
    workers = workers_of(args, processes.count)
    records = [
        record
        for tasks, data in work
        for record in evaluate_sizes(
            subject, data, sizes, tasks, options, args.batch_size, workers, args.bf16, args.feature_memory_gb
        )
    ]
    records.sort(key=lambda record: sizes.index(record.size))
    if processes.is_main:
        save_evaluations(output, records)
        print(results_table(records))
        if untrained := subject.untrained(sizes):
            print(untrained)
        print(f"\nWritten to {output}")
    processes.state.destroy_process_group()


def workers_of(args: Namespace, processes: int) -> int:
    """Return how many workers decode the images of each process: what `--num_workers` says, or up to 4."""
    if args.num_workers is not None:
        return args.num_workers
    return min(4, (os.cpu_count() or 1) // processes)


def open_data(args: Namespace, own: OwnData | None, tasks: Sequence[str], is_main: bool) -> EvaluationData[Any]:
    """Open the splits that the options of `add_images` name, or those of the run itself, with what the tasks need."""
    from ..evaluation.data.own_data import open_own_splits
    from ..evaluation.splits import open_splits
    from ..evaluation.tasks import need_backgrounds, need_train, pixel_kinds

    needs_train = need_train(tasks) or args.holdout is not None
    options = {
        name: getattr(args, name)
        for name in (
            *("test_split", "image_column", "label_column", "max_train_images", "max_test_images"),
            *("seed", "holdout", "max_image_pixels"),
        )
    }
    kinds = pixel_kinds(tasks)
    options["pixel_columns"] = None if kinds is None else {kind: getattr(args, f"{kind}_column") for kind in kinds}
    if need_backgrounds(tasks):
        options |= {"with_masks": True, "mask_column": args.mask_column}
    if own is None:
        train_split = (args.train_split or "train") if needs_train else None
        return open_splits(args.dataset_name, args.dataset_config_name, train_split, **options, **data_options(args))
    config_name, part = args.dataset_config_name, data_options(args)
    data, sentence = open_own_splits(own, needs_train, config_name, args.train_split, **options, **part)
    if is_main:
        logger.info("%s", sentence)
    return data


def _picture_file(text: str) -> Path:
    path = Path(text).expanduser()
    if path.suffix.lower() != ".png" or not path.absolute().parent.is_dir():
        raise ArgumentTypeError(f"is {text!r}: give a .png file in a folder that exists")
    return path


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="poa evaluate",
        description="Measure the frozen features of sizes of a run, or of a stock checkpoint, on images with labels, "
        "masks or depth maps.",
        epilog=f"Results are added to {EVALUATIONS} in the run. For several GPUs, start it with accelerate launch -m "
        "poa_hf evaluate.",
    )
    parser.add_option("model", help="output_dir of a run, one of its checkpoints, or a stock checkpoint")
    parser.add_option(
        "--sizes", several=True, type=words, metavar="SIZE,...", help="names or sizes (small,384x12), named or all "
        "(default: named)",
    )  # fmt: skip
    parser.add_option(
        "--tasks", several=True, type=words, default=["knn", "linear"], metavar="TASK,...",
        help="some of knn, linear, lowshot, clustering, retrieval, occlusion, shuffle, corruptions, backgrounds, "
        "segmentation, depth, correspondence (default: knn,linear)",
    )  # fmt: skip
    parser.add_option(
        "--k", tasks=KNN_TASKS, several=True, type=numbers_in(COUNT), metavar="N,...",
        help="numbers of neighbours that vote (default: those of 10,20,100,200 that fit)",
    )  # fmt: skip
    add_linear_options(parser)
    add_alteration_options(parser)
    parser.add_option(
        "--examples", type=_picture_file, metavar="FILE.png",
        help="save a picture of some test images and how the tasks alter them",
    )  # fmt: skip
    add_images(parser)
    work = add_work(parser)
    parser.add_option(
        "--output", group=work, metavar="FILE", help=f"file of the results (default: {EVALUATIONS} in the run)"
    )
    parser.add_token()
    return parser


def add_images(parser: CommandParser) -> None:
    """Add the options that say which images are measured on."""
    data = parser.add_argument_group("images")
    parser.add_option(
        "--dataset_name", group=data, metavar="D",
        help="a dataset of the Hub, a folder, or textures (default: the labelled images of the run itself)",
    )  # fmt: skip
    add_data_options(parser, data)
    parser.add_option(
        "--train_split", group=data, metavar="S",
        help="images that vote or train a probe (default: train, or the split that the run is trained on)",
    )  # fmt: skip
    parser.add_option(
        "--test_split", group=data, metavar="S",
        help="images that are classified (default: test or validation, if labelled)",
    )  # fmt: skip
    parser.add_option(
        "--holdout", group=data, type=number_in(Range(0, 1, above=True, below=True)), metavar="SHARE",
        help="classify this share of the train split, such as 0.2, chosen at random by class, instead of a test split",
    )  # fmt: skip
    for split in ("train", "test"):
        parser.add_option(
            f"--max_{split}_images", group=data, type=number_in(COUNT), metavar="N",
            help=f"use only N images of the {split} split, chosen at random",
        )  # fmt: skip
    parser.add_option(
        "--max_image_pixels", group=data, type=number_in(Range(1, 2**40, whole=True)), metavar="N",
        default=MAX_IMAGE_PIXELS,
        help=f"leave out images of more pixels, width times height (default: {MAX_IMAGE_PIXELS})",
    )  # fmt: skip
    for column, content in (("image", "images"), ("label", "classes")):
        parser.add_option(
            f"--{column}_column", group=data, metavar="C",
            help=f"column of the {content}, if its type and name do not tell",
        )  # fmt: skip
    add_pixel_options(parser)


def add_work(parser: CommandParser) -> Any:
    """Add the options that say how features and numbers are computed, and return their group."""
    work = parser.add_argument_group("computation and output")
    parser.add_option(
        "--batch_size", group=work, type=number_in(COUNT), default=64, metavar="N", help="images of one forward pass"
    )
    parser.add_option(
        "--num_workers", group=work, type=number_in(WHOLE), metavar="N",
        help="processes that decode images (default: up to 4)",
    )  # fmt: skip
    parser.add_option("--bf16", group=work, action="store_true", help="compute features in bfloat16")
    parser.add_option(
        "--feature_memory_gb", group=work, type=number_in(POSITIVE), default=4.0, metavar="GB",
        help="memory for features; if it is not enough, the images are read several times",
    )  # fmt: skip
    parser.add_option(
        "--seed", group=work, type=number_in(SEED), default=0, metavar="N",
        help="seed of samples, of the hold-out, draws and starting points (default: 0)",
    )  # fmt: skip
    return work


def _check_output(output: Path) -> None:
    from ..runs.evaluations import load_evaluations

    if output.is_dir():
        raise ValueError(f"{output} is a folder: give --output the name of a file.")
    folder = output.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} is not a folder that can be written to: give another --output.")
    load_evaluations(output)
