"""Read YAML files; a mistake in one is reported in a single sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Return the `key: value` lines of a YAML file.

    Raises:
        ValueError: If the file does not exist, is not YAML, or holds something other than a mapping.
    """
    if not Path(path).is_file():
        raise ValueError(f"The configuration file {path} does not exist.")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', None) or error}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: give a YAML file.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply: give it fewer brackets and levels.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `key: value` lines, not a {type(content).__name__}.")
    return content
