"""Parsing a command's arguments such that a mistake is one sentence."""

import argparse
from typing import NoReturn


def refuse(message: str) -> NoReturn:
    """ValueError of argparse's message as a sentence."""
    raise ValueError(f"{message[0].upper()}{message[1:].rstrip('.')}.")


class CommandParser(argparse.ArgumentParser):
    """Raises ValueError where argparse prints all options and exits."""

    def error(self, message: str) -> NoReturn:
        refuse(message)
