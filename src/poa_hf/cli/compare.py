"""`poa compare`: whether sizes, runs or checkpoints differ, image by image."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..ranges import COUNT
from .alteration_options import KNN_TASKS, add_alteration_options, alteration_options
from .evaluate import add_images, add_work, open_data, workers_of
from .linear_options import add_linear_options, linear_options
from .main import quiet_libraries
from .parser import CommandParser, numbers_in, words
from .pixel_options import task_options

if TYPE_CHECKING:
    from ..evaluation.evaluator import Measurement
    from ..evaluation.processes import Processes
    from ..evaluation.splits import EvaluationData
    from ..evaluation.statistics.comparing import ModelDifference, Side
    from ..evaluation.subject import Subject


def compare(argv: list[str]) -> None:
    """Run `poa compare MODEL[:SIZE] MODEL[:SIZE] [--dataset_name D]`."""
    args = _parser().parse_args(argv)
    _check_json(args.json)
    quiet_libraries()
    from ..evaluation.data.own_data import own_data
    from ..evaluation.processes import Processes
    from ..evaluation.statistics.comparing import differences, left_out, not_alike, pairs_of, split_size
    from ..evaluation.statistics.comparing_table import differences_text
    from ..evaluation.subject import load_subject
    from ..evaluation.tasks import by_kind, check_tasks

    check_tasks(args.tasks, _options(args), None)
    named = [split_size(text) for text in args.models]
    own = own_data(named[0][0]) if args.dataset_name is None else None
    subjects = {source: load_subject(source) for source in dict.fromkeys(source for source, _ in named)}
    # what cannot be compared is reported before any image is read
    pairs = pairs_of(named, subjects, args.sizes, args.all_pairs)
    processes = Processes()
    work = [(tasks, open_data(args, own, tasks, processes.is_main)) for tasks in by_kind(args.tasks)]
    measured: dict[Side, list[Measurement]] = {}
    for tasks, data in work:
        for side, measurements in _measured(args, pairs, subjects, tasks, data, processes).items():
            measured.setdefault(side, []).extend(measurements)
    found = differences(pairs, measured, args.seed)
    if processes.is_main:
        if args.json:
            args.json.write_text(json.dumps(_as_json(found), indent=1) + "\n")
        print(differences_text(found, left_out(measured), not_alike(pairs, measured)))
    processes.state.destroy_process_group()


def _measured(
    args: Namespace,
    pairs: list[tuple[Side, Side]],
    subjects: dict[str, Subject],
    tasks: Sequence[str],
    data: EvaluationData[Any],
    processes: Processes,
) -> dict[Side, list[Measurement]]:
    """Measure every side by tasks of one kind, all sizes of a model in one pass over the images."""
    from ..evaluation.evaluator import measure_sizes
    from ..evaluation.statistics.comparing import Side

    sizes: dict[str, list[str]] = {}
    for side in dict.fromkeys(side for pair in pairs for side in pair):
        sizes.setdefault(side.source, []).append(side.size)
    measured: dict[Side, list[Measurement]] = {}
    images: list[str] | None = None
    for source, wanted in sizes.items():
        workers = workers_of(args, processes.count)
        options = (_options(args), args.batch_size, workers, args.bf16, args.feature_memory_gb)
        # what there is to say about the data is said once
        found, names = measure_sizes(subjects[source], data, wanted, tasks, *options, quiet=images is not None)
        if images is not None and names != images:
            raise ValueError(
                f"{source} reads other test images than {next(iter(sizes))}, as the image processors decode them "
                "differently: leave out the images that one of them cannot read."
            )
        images = names
        for measurement in found:
            measured.setdefault(Side(source, measurement.record.size), []).append(measurement)
    return measured


def _options(args: Namespace) -> Any:
    from ..evaluation.tasks import TaskOptions

    options = alteration_options(args) | linear_options(args) | task_options(args)
    return TaskOptions(k=args.k, seed=args.seed, **options)


def _as_json(found: list[ModelDifference]) -> dict[str, Any]:
    record = found[0].records[0]
    names = ("dataset", "dataset_config", "train_split", "test_split", "test_images", "train_images", "holdout")
    data = {name: getattr(record, name) for name in names}
    return data | {"comparisons": [each.to_dict() for each in found]}


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="poa compare",
        description="Test whether models differ: all are measured on the same images, and each is compared with the "
        "first one, image by image.",
        epilog="A model is the output_dir of a run, one of its checkpoints, or a stock checkpoint. Runs may name a "
        "size: runs/mine:small, runs/mine:384x12 (default: the full size).",
    )
    parser.add_option("models", nargs="+", metavar="MODEL[:SIZE]", help="models to compare; one is enough with --sizes")
    parser.add_option(
        "--sizes", several=True, type=words, metavar="SIZE,...",
        help="compare models without a size at each of these; of one model, compare the first of these with the others",
    )  # fmt: skip
    parser.add_option("--all_pairs", action="store_true", help="compare every two, not only each with the first")
    parser.add_option(
        "--tasks", several=True, type=words, default=["knn", "linear"], metavar="TASK,...",
        help="tasks of poa evaluate (default: knn,linear)",
    )  # fmt: skip
    parser.add_option(
        "--k", tasks=KNN_TASKS, several=True, type=numbers_in(COUNT), default=(20,), metavar="N,...",
        help="numbers of neighbours that vote (default: 20)",
    )  # fmt: skip
    add_linear_options(parser)
    add_alteration_options(parser)
    add_images(parser)
    work = add_work(parser)
    parser.add_option("--json", group=work, type=Path, metavar="FILE", help="also write everything to FILE")
    parser.add_token()
    return parser


def _check_json(path: Path | None) -> None:
    if path and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ValueError(f"{path} cannot be a file: give --json the name of one in a folder that exists.")
