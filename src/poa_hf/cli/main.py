"""The command `poa`: which sub-command to run, and each mistake as one sentence.

Until a command has read its arguments, modules of this folder import no library but PyYAML, and only those modules of
poa_hf that import none either. So help and mistakes are shown at once.
"""

from __future__ import annotations

import logging
import os
import platform
import select
import sys
from collections.abc import Callable
from importlib import import_module

from ..formatting import one_line, printable, suggest
from .failures import in_words, is_to_speak

# The arguments and a description of each command; the function and the module that run it have the command's name.
COMMANDS = {
    "pretrain": ("[--config NAME_OR_FILE] [--key value ...]", "pre-train an elastic model without labels"),
    "resume": ("RUN [--key value ...]", "go on with a run that was stopped"),
    "order": ("RUN_OR_MODEL --dataset_name D --output DIR", "make any pre-trained model elastic, without training"),
    "extract": ("RUN --size small --output DIR", "write sizes as stock transformers checkpoints"),
    "evaluate": ("RUN [--dataset_name D] [--sizes all]", "measure sizes: k-NN, linear probe, ..."),
    "compare": ("MODEL[:SIZE] MODEL[:SIZE] [--dataset_name D]", "test whether models differ on the same images"),
    "embed": ("MODEL --dataset_name D --output DIR", "write the features of all images, find similar ones"),
    "select": ("RUN --max_params 30M --max_latency_ms 4", "find the best size within a budget"),
    "check": ("RUN", "compare checkpoints and model with their checksums, read all records"),
    "report": ("RUN [RUN ...] [--watch]", "write a page on runs: quality, cost, losses, pictures"),
    "convert": ("CHECKPOINT.pth --family vit --output DIR", "turn the authors' weights into the model of a run"),
    "push": ("RUN --size small --namespace me", "publish sizes and the supernet on the Hub"),
}
# The exit status that a shell reports for a program that wrote to a closed pipe: 128 + SIGPIPE.
_CLOSED_PIPE = 141


def main(argv: list[str] | None = None) -> int:
    """Run `poa` with these arguments (the process's by default) and return the exit status, 2 for a user's mistake."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        return _printed(usage)
    if argv[0] in ("-V", "--version"):
        return _printed(version)
    if argv[0] not in COMMANDS:
        kind = "an option" if argv[0].startswith("-") else "a command"
        hint = suggest(argv[0], [*COMMANDS, "--version", "--help"] if kind == "an option" else COMMANDS)
        return _fail(f"{argv[0]!r} is not {kind} of poa: {hint}")
    command = getattr(import_module(f"{__package__}.{argv[0]}"), argv[0])
    return run(command, argv[1:])


def run(command: Callable[[list[str]], None], argv: list[str]) -> int:
    """Run a command and return its exit status; a mistake or a failed run becomes one sentence.

    Args:
        command: A function such as `pretrain`, which takes the arguments.
        argv: The arguments after the command's name.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_PrintableFormatter("%(message)s"))
    logging.getLogger("poa_hf").setLevel(logging.INFO)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own, and would say all twice
    try:
        command(argv)
        sys.stdout.flush()
    except BrokenPipeError as error:
        return _CLOSED_PIPE if _output_is_closed() else _fail(one_line(error, limit=10_000))
    except (ValueError, OSError) as error:
        return _fail(" ".join(str(error).split()))
    except RecursionError:
        return _fail("a value is nested too deeply: give it fewer brackets.")
    except (RuntimeError, MemoryError) as error:
        return _fail_or_raise(error, command.__name__)
    except KeyboardInterrupt:
        return _fail("interrupted.", status=130)
    except SystemExit as end:  # argparse has printed help, or a signal has ended training, which has said so
        return _CLOSED_PIPE if _output_is_closed() else int(end.code or 0)
    except Exception:
        if not is_to_speak():
            return 1
        raise
    return 0


class _PrintableFormatter(logging.Formatter):
    """Formats a message so that names in it cannot control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def quiet_libraries() -> None:
    """Turn off transformers' progress bars, which would come between a command's own lines."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


def usage() -> str:
    """Return the text of `poa --help`."""
    forms = {name: f"poa {name} {form}" for name, (form, _) in COMMANDS.items()}
    width = max(map(len, forms.values()))
    lines = [f"  {forms[name]:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: poa COMMAND ...",
            "",
            "One pre-training run without labels, a ready vision model of every size.",
            "",
            *lines,
            "",
            "poa COMMAND --help lists the options of a command, poa pretrain --list_configs the recipes,",
            "poa --version the versions of poa_hf and of the libraries it runs on.",
        ]
    )


def version() -> str:
    """Return the text of `poa --version`; libraries' versions are read without importing them."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    from .. import __version__

    parts = [f"Python {platform.python_version()}"]
    for library in ("torch", "transformers"):
        try:
            parts.append(f"{library} {version_of(library)}")
        except PackageNotFoundError:
            parts.append(f"{library} is not installed")
    return f"poa_hf {__version__} ({', '.join(parts)})"


def _printed(text: Callable[[], str]) -> int:
    return run(lambda argv: print(text()), [])


def _output_is_closed() -> bool:
    """Return whether the standard output is a closed pipe, and if so, keep Python from failing again when it exits.

    The error itself does not tell: a broken pipe to a worker process raises the same one.
    """
    try:
        output = sys.stdout.fileno()
        poll = select.poll()
    except (AttributeError, OSError, ValueError):  # not a file, or not a system with poll
        return False
    poll.register(output, select.POLLOUT)
    closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return closed


def _fail_or_raise(error: RuntimeError | MemoryError, command: str) -> int:
    """Say what torch or the trainer has raised, or raise it again if it is a fault of the program."""
    from ..training.stopping import TrainingDivergedError

    if isinstance(error, TrainingDivergedError):
        return _fail(str(error), status=3)
    if message := in_words(error, command):
        return _fail(message)
    if not is_to_speak():
        return 1
    raise error


def _fail(message: str, status: int = 2) -> int:
    """Print a sentence, once of all processes that a launcher has started, and return the exit status."""
    if is_to_speak():
        print(f"poa: {printable(message)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
