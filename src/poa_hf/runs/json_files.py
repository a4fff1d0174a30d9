"""Reading JSON files that may be damaged: the value, or one sentence with the file and the place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 30  # far more than the log history of any run


def read_json(path: Path) -> Any:
    """Read the value in a JSON file.

    Raises:
        ValueError: If the file cannot be read or is not JSON, with the line and column.
    """
    try:
        if not path.is_file():  # a named pipe would never end
            raise ValueError("it is not a file" if path.exists() else "it does not exist")
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it is larger than {MAX_BYTES >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno} is not JSON: {error.msg[0].lower()}{error.msg[1:]}"
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except OSError as error:
        reason = str(error.strerror)
    except ValueError as error:
        reason = str(error)
    raise ValueError(f"{path} cannot be read: {reason}.")


def read_object(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        ValueError: As for `read_json`, or if the value is not an object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read: it holds {type(content).__name__}, not an object.")
    return content
