"""What a run needs to be pushed to the Hub, as far as it can be known without the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, get_token

from ..locations import is_hub_id
from .arguments import PoaTrainingArguments


def repository_of(args: PoaTrainingArguments) -> str:
    """Return the repository that a run is pushed to, with or without its namespace.

    Raises:
        ValueError: If the Hub can have no repository of that name.
    """
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    if is_hub_id(name):
        return name
    if args.hub_model_id is None:
        raise ValueError(f"The Hub can have no repository called {name!r}, as output_dir is: give hub_model_id.")
    kind, _, rest = name.partition("/")
    if kind in ("datasets", "spaces", "models") and is_hub_id(rest):
        raise ValueError(f"hub_model_id is {name!r}: give {rest!r}, as runs are pushed to repositories of models.")
    raise ValueError(f"hub_model_id is {name!r}, which the Hub can have no repository of: write me/my-run, or my-run.")


def check_login(args: PoaTrainingArguments) -> None:
    """Refuse to push a run without what that takes, as far as it can be known without the Hub.

    Raises:
        ValueError: If the repository can have no such name, there is no token, or `huggingface_hub` is offline.
    """
    if not args.push_to_hub:
        return
    repository_of(args)
    if constants.is_offline_mode():
        raise ValueError(
            "push_to_hub needs the Hub, and huggingface_hub is offline by HF_HUB_OFFLINE: unset it, or leave "
            "push_to_hub out."
        )
    if not (args.hub_token or get_token()):
        raise ValueError(
            "push_to_hub needs a token for the Hub: run `hf auth login`, set HF_TOKEN to a token that may write, or "
            "leave push_to_hub out."
        )
