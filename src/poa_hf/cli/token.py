"""`--token` and `--hub_token`: the user's tokens of the Hub, for this process only.

It goes into the environment, where `huggingface_hub` and `datasets` look for it, and nowhere else: a recipe, a log or a
card that held it would be published with the run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

_OPTIONS = ("--token", "--hub_token", "--hub-token")


def use_token(token: str) -> None:
    """Use a token for all calls of the Hub, and take it out of `sys.argv`, which trackers record.

    Raises:
        ValueError: If it cannot be a token; the message does not show it.
    """
    if not token.strip() or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("--token is empty or no token: give one from https://huggingface.co/settings/tokens.")
    os.environ["HF_TOKEN"] = token
    hide_tokens()


def hide_tokens() -> None:
    """Take tokens out of `sys.argv`."""
    sys.argv[:] = without_token(sys.argv)


def without_token(argv: Iterable[str]) -> list[str]:
    """Return arguments without `--token` and `--hub_token`, and what follows them.

    >>> without_token(["push", "--token", "hf_x", "--all"]), without_token(["--hub_token=hf_x"])
    (['push', '--all'], [])
    """
    rest, kept = list(argv), []
    while rest:
        word = rest.pop(0)
        if word in _OPTIONS:
            del rest[:1]
        elif word.partition("=")[0] not in _OPTIONS:
            kept.append(word)
    return kept
