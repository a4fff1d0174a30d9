"""The options that say which images of a dataset are read, alike in every command that opens one."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from .parser import CommandParser, separate_words

RECIPE_KEYS = ("dataset_revision", "data_dir", "data_files")  # those of a recipe that say what of a dataset is read
HELP = {
    "dataset_config_name": "Configuration of the dataset, if it has several.",
    "dataset_revision": "Branch, tag or commit of a dataset on the Hub.",
    "data_dir": "Folder within the dataset to read.",
    "data_files": "Files of the dataset to read, as paths or patterns such as data/a*.parquet; test=PATTERN for the "
    "split test.",
}


def add_data_options(parser: CommandParser, group: Any) -> None:
    """Add the options of `HELP` to a command."""
    for name, text in HELP.items():
        settings: dict[str, Any] = {"group": group, "metavar": "TEXT", "help": text[0].lower() + text[1:].rstrip(".")}
        if name == "data_files":
            settings |= {"separate": True, "type": separate_words, "metavar": "TEXT ..."}
        parser.add_option(f"--{name}", **settings)


def data_options(args: Namespace) -> dict[str, Any]:
    """Return the options as `open_dataset` takes them."""
    return {"revision": args.dataset_revision, "data_dir": args.data_dir, "data_files": args.data_files}
