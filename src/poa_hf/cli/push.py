"""`poa push`: publish sizes of a run on the Hub."""

from __future__ import annotations

import argparse
import re
import shlex
import sys

from ..formatting import format_bytes
from ..publishing.hub.names import NAME_TEMPLATE
from ..ranges import COUNT, Range
from .main import quiet_libraries
from .parser import CommandParser, number_in, words
from .token import without_token


def push(argv: list[str]) -> None:
    """Run `poa push RUN --size small|384x12,448x14|--all --namespace me`."""
    args = _parse(argv)
    quiet_libraries()
    from huggingface_hub.utils import disable_progress_bars

    from ..hub.timeout import hub_timeout
    from ..publishing.push import PushOptions, PushResult, rehearse
    from ..publishing.push import push as push_release
    from ..publishing.release import Release

    if not sys.stderr.isatty():
        disable_progress_bars()
    sizes = "all" if args.all else ",".join(args.size)
    release = Release.from_run(
        args.run, sizes, args.namespace, args.name_template, args.format, not args.no_supernet, license=args.license
    )
    count = len(release.ids) + bool(release.supernet)
    if args.dry_run:
        total = rehearse(release, _say)
        _say(f"{count} repos, {total:,} bytes ({format_bytes(total)}); nothing was sent.")
        _say(f"next: {shlex.join(['poa', 'push', *without_token(word for word in argv if word != '--dry_run')])}")
        return
    options = PushOptions(args.private, args.revision, args.max_repos, args.overwrite, not args.no_collection)
    try:
        with hub_timeout(args.timeout):
            result: PushResult = push_release(release, options=options, tell=_say)
    except KeyboardInterrupt:
        _say("stopped: what is published is complete; run the same command again to continue.")
        raise
    done = {name: len(getattr(result, name)) for name in ("published", "replaced", "renewed", "unchanged", "left")}
    listed = ", ".join(f"{number} {name}" for name, number in done.items() if number)
    _say(f"{count} repos: {listed}; {format_bytes(result.bytes)} of content.")
    for repo_id in result.edited:
        _say(f"{repo_id}: its card was edited on the Hub and is kept; --overwrite replaces it.")
    if result.collection:
        _say(f"collection: {result.collection}")
    if result.left:
        _say(f"next: run the same command again for the {len(result.left)} left.")
    else:
        first = next(iter(release.ids.values()))
        _say(f"next: try one, as the card of {first} shows.")


def _say(line: str) -> None:
    print(line, flush=True)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="poa push",
        description="Publish sizes of a run's teacher on the Hub: a repo with stock weights for each, one for the "
        "supernet, and a collection of all. Interrupted, the same command continues where it stopped.",
    )
    parser.add_option("run", help="output_dir of a run, one of its checkpoints, or the Hub id of a supernet")
    parser.add_option(
        "--size", several=True, type=words, metavar="SIZE,...", help="names (small) or sizes (384x12), one or several, "
        "or all",
    )  # fmt: skip
    parser.add_option("--all", action="store_true", help="every size")
    parser.add_option(
        "--namespace", required=True, metavar="NAME", help="user or organisation that the repos belong to"
    )
    parser.add_option(
        "--name_template",
        default=NAME_TEMPLATE,
        metavar="T",
        help="names of the repos, with {family}, {size}, {width}, {depth}",
    )
    parser.add_option(
        "--format",
        help="what to write: the family's own format (dinov2, swin, gn_resnet, ...), which is the default, vit for a "
        "ViT, or timm, the default for a ResNet that timm can hold, as it spares remote code",
    )
    parser.add_option("--license", "--licence", metavar="ID", help="licence of the weights: an identifier of the Hub")
    parser.add_option("--private", action="store_true", help="make repos and collection private")
    parser.add_option("--revision", metavar="BRANCH", help="publish on this branch instead of main")
    parser.add_option(
        "--max_repos", type=number_in(COUNT), metavar="N", help="publish at most N new repos, the rest another time"
    )
    parser.add_option("--overwrite", action="store_true", help="replace repos that hold something else")
    parser.add_option("--dry_run", action="store_true", help="print repos, files and bytes, and send nothing")
    parser.add_option("--no_supernet", action="store_true", help="publish only the sizes")
    parser.add_option("--no_collection", action="store_true", help="keep no collection of the repos")
    parser.add_option(
        "--timeout",
        type=number_in(Range(0, 86_400, above=True)),
        default=120,
        metavar="S",
        help="seconds without an answer of the Hub after which a request fails",
    )
    parser.add_token()
    args = parser.parse_args(argv)
    if bool(args.size) == args.all:
        raise ValueError("Say which sizes to publish: give either --size (small, or 384x12,448x14) or --all.")
    if args.revision and not _is_branch(args.revision):
        raise ValueError(f"--revision {args.revision!r} cannot be the name of a branch: write one such as v1.")
    return args


def _is_branch(name: str) -> bool:
    plain = re.fullmatch(r"[A-Za-z0-9_][\w.-]*(/[\w-][\w.-]*)*", name, re.ASCII) is not None
    ends = name.endswith((".", ".lock")) or ".." in name or name.startswith("refs/")
    return plain and not ends and not re.fullmatch(r"[0-9a-f]{40}", name)
