"""The command `poa evaluate`: sizes of a run, or a stock checkpoint, on a labelled dataset."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..runs.evaluations import load_evaluations, save_evaluations
from ..runs.layout import EVALUATIONS
from .parser import CommandParser


def evaluate(argv: list[str]) -> None:
    """`poa evaluate RUN_OR_CHECKPOINT --dataset_name D`"""
    parser = _parser()
    args = parser.parse_args(argv)
    tasks, ks = args.tasks.split(","), _whole_numbers(args.k)
    from ..evaluation.evaluator import evaluate_sizes
    from ..evaluation.processes import Processes
    from ..evaluation.splits import open_splits
    from ..evaluation.subject import load_subject
    from ..evaluation.table import results_table
    from ..evaluation.tasks import TaskOptions, check_tasks

    options = TaskOptions(k=ks, seed=args.seed)
    # what is wrong with the request is said before the model and the data are opened, which takes a while
    check_tasks(tasks, options, None)
    subject = load_subject(args.model)
    sizes = subject.sizes(args.sizes)
    output = Path(args.output) if args.output else subject.results or Path(EVALUATIONS)
    _check_output(output)
    processes = Processes()
    data = open_splits(
        args.dataset_name,
        args.dataset_config_name,
        args.train_split if set(tasks) != {"clustering"} else None,
        args.test_split,
        args.image_column,
        args.label_column,
        args.max_train_images,
        args.max_test_images,
        args.seed,
    )
    workers = args.num_workers
    if workers is None:
        workers = min(4, (os.cpu_count() or 1) // processes.count)
    records = evaluate_sizes(
        subject, data, sizes, tasks, options, args.batch_size, workers, args.bf16, args.feature_memory_gb
    )
    if processes.is_main:
        save_evaluations(output, records)
        print(results_table(records))
        print(f"\nWritten to {output}")
    processes.state.destroy_process_group()


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="poa evaluate",
        description="Measure the frozen features of sizes of a run, or of a stock checkpoint, on labelled images.",
        epilog=f"Results are added to {EVALUATIONS} in the run. Start it with accelerate launch for several GPUs.",
    )
    parser.add_argument("model", help="output_dir of a run, one of its checkpoints, or a stock checkpoint")
    parser.add_argument("--dataset_name", required=True, help="a dataset of the Hub, a folder, or textures")
    parser.add_argument("--dataset_config_name", help="the dataset's configuration, if it has several")
    parser.add_argument("--train_split", default="train", help="images that vote or train a probe (default: train)")
    parser.add_argument("--test_split", help="images that are classified (default: test or validation, if labelled)")
    parser.add_argument("--sizes", help="named (default), all, or several with commas: small,384x12")
    parser.add_argument(
        "--tasks", default="knn,linear", help="some of knn,linear,lowshot,clustering,retrieval (default: knn,linear)"
    )
    parser.add_argument("--k", help="neighbours that vote, with commas (default: 10,20,100,200, as far as they fit)")
    parser.add_argument("--max_train_images", type=int, help="use so many of the train split, chosen at random")
    parser.add_argument("--max_test_images", type=int, help="use so many of the test split, chosen at random")
    parser.add_argument("--image_column", help="needed where not exactly one column holds images")
    parser.add_argument("--label_column", help="needed where not exactly one column holds classes")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time (default: 64)")
    parser.add_argument("--num_workers", type=int, help="processes that decode images (default: up to 4)")
    parser.add_argument("--bf16", action="store_true", help="compute features in bfloat16")
    parser.add_argument(
        "--feature_memory_gb",
        type=float,
        default=4.0,
        help="memory for features; more passes over the images are made where that is not enough (default: 4)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of samples, draws and starting points (default: 0)")
    parser.add_argument("--output", help=f"file for the results (default: {EVALUATIONS} in the run)")
    return parser


def _whole_numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--k is {text!r}: give whole numbers with commas, as in 10,20.") from None


def _check_output(output: Path) -> None:
    if output.is_dir():
        raise ValueError(f"{output} is a folder: give --output the name of a file.")
    folder = output.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} is not a folder that can be written to: give another --output.")
    load_evaluations(output)
