"""`poa select`: the best size of a run within a budget, and the command that extracts it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from ..formatting import parse_quantity, printable
from ..ranges import COUNT
from .main import quiet_libraries
from .parser import CommandParser, number_in


def select(argv: list[str]) -> None:
    """Run `poa select RUN [--max_params 30M] [--max_flops 5G] [--max_latency_ms 4 --device cpu] [--task T]`."""
    parser = CommandParser(
        prog="poa select", description="Find the best size of a run within a budget; without one, the Pareto front."
    )
    parser.add_option("run", help="output_dir of a run, one of its checkpoints, or any saved elastic model")
    parser.add_option("--max_params", metavar="30M", help="most parameters of the extracted model")
    parser.add_option("--max_flops", metavar="5G", help="most FLOPs of one image, multiply-adds counted once")
    parser.add_option("--max_latency_ms", metavar="4", help="most milliseconds of one forward pass")
    parser.add_option("--device", metavar="cpu|cuda", help="where latency is measured (default: cpu)")
    parser.add_option("--batch_size", type=number_in(COUNT), default=1, metavar="N", help="images of one forward pass")
    parser.add_option("--compile", action="store_true", help="measure models compiled by torch.compile")
    parser.add_option("--measure_all", action="store_true", help="measure every size instead of a grid")
    parser.add_option(
        "--task", "--quality", dest="quality", metavar="T",
        help="which task or metric of poa evaluate ranks the sizes: knn, segmentation, clustering_nmi, ... (default: "
        "knn, else linear, else what was measured)",
    )  # fmt: skip
    parser.add_option("--json", type=Path, metavar="FILE", help="also write everything, all sizes included, to FILE")
    args = parser.parse_args(argv)
    if args.json and (args.json.is_dir() or not args.json.absolute().parent.is_dir()):
        raise ValueError(f"{args.json} cannot be a file: give --json the name of one in a folder that exists.")
    for limit in ("max_params", "max_flops", "max_latency_ms"):
        if (text := getattr(args, limit)) is not None:
            parse_quantity(text, f"--{limit}")
    quiet_libraries()
    from ..selection.search import search
    from ..selection.select import Budget
    from ..selection.table import selection_text

    budget = Budget(args.max_params, args.max_flops, args.max_latency_ms)
    result = search(
        args.run,
        budget,
        quality=args.quality,
        device=args.device,
        batch_size=args.batch_size,
        compile=args.compile,
        measure_all=args.measure_all,
    )
    if args.json:
        args.json.write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    print(printable(selection_text(result)))
    best = str(result.selection.best)
    command = ["poa", "extract", args.run, "--size", best, "--output", f"{Path(args.run).resolve().name}-{best}"]
    print(f"\nnext: {shlex.join(command)}")
