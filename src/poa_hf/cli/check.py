"""`poa check`: whether everything that a run has written is sound."""

from __future__ import annotations

from pathlib import Path

from ..formatting import printable
from .main import quiet_libraries
from .parser import CommandParser


def check(argv: list[str]) -> None:
    """Run `poa check RUN`.

    Raises:
        ValueError: If a part is damaged, after all parts have been printed.
    """
    parser = CommandParser(
        prog="poa check",
        description="Compare a run's checkpoints and model with their checksums, read its records, and print one line "
        "for each part. The exit status is 2 if one is damaged. Nothing is changed.",
    )
    parser.add_option("run", help="output_dir of a run, one of its checkpoints, or any saved PoaForPreTraining")
    args = parser.parse_args(argv)
    quiet_libraries()
    from ..runs.inspection import inspect_run

    damaged = []
    for part in inspect_run(Path(args.run)):
        print(printable(f"{part.name:<20}  {part.state}"), flush=True)
        if not part.is_sound:
            damaged.append(part.name)
    if damaged:
        raise ValueError(
            f"{args.run} has damaged parts ({', '.join(damaged)}): restore them from a copy; a run goes on from its "
            "last sound checkpoint with resume_from_checkpoint."
        )
