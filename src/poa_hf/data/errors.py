"""What stops a run because of its data, in one sentence for the user."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from ..formatting import one_line

_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = (Path(sys.base_prefix) / "lib", *(Path(p) for p in sys.path if Path(p).name.endswith("-packages")))


class UnreadableData(ValueError):
    """The data as a whole cannot be read. The message is one sentence for the user, to be shown without a traceback."""


class MissingSplit(ValueError):
    """The dataset exists, but has no split of that name."""


def no_image_error(rows: int, name: str, reason: str) -> UnreadableData:
    """Return what to raise where no image can be decoded; `name` and `reason` are those of the last row."""
    return UnreadableData(
        f"None of the {rows} rows tried could be decoded (the last one, {name}: {reason}): check that the image column "
        "holds images."
    )


def reading_error(error: Exception) -> Exception:
    """Return what to raise for an exception that came up while a dataset was read.

    An exception of a user's function or of a library becomes `UnreadableData`, which names the place. A fault of this
    package stays as it is.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, UnreadableData) or _is_below(frames[-1], [_PACKAGE]):
        return error
    theirs = [frame for frame in frames if not _is_below(frame, [_PACKAGE, *_LIBRARIES])]
    frame = (theirs or frames)[-1]
    return UnreadableData(
        f"Reading the dataset failed in {frame.name} ({Path(frame.filename).name}, line {frame.lineno}) with "
        f"{type(error).__name__} ({one_line(error)}): mend the function, or the file that it reads."
    )


def _is_below(frame: traceback.FrameSummary, folders: list[Path]) -> bool:
    return any(Path(frame.filename).is_relative_to(folder) for folder in folders)
