"""Telling local paths from Hub ids, and naming a path without saying where on a machine it lies."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeGuard

# A name, or a namespace and a name; the rule is the same for models and datasets.
_ID = re.compile(r"(?:[A-Za-z0-9](?:[\w.-]*\w)?/)?[A-Za-z0-9_](?:[\w.-]*\w)?")


def is_hub_id(text: Any) -> TypeGuard[str]:
    """Whether this can be the id of a repository on the Hub: `namespace/name`, or `name` for the oldest ones.

    >>> is_hub_id("facebook/dinov2-large"), is_hub_id("./dinov2-large")
    (True, False)
    """
    if not isinstance(text, str) or len(text) > 96 or "--" in text or ".." in text or text.endswith(".git"):
        return False
    return text.isascii() and _ID.fullmatch(text) is not None


def is_repo_id(text: Any) -> TypeGuard[str]:
    """Whether this can be the id of a repository in a namespace, `namespace/name`."""
    return is_hub_id(text) and "/" in text


def named_path(path: str | Path) -> Path:
    """The path, absolute where its last part is no name: `.` in the folder of a checkpoint is that checkpoint.

    >>> named_path("runs/vit").as_posix(), named_path(".") == Path.cwd()
    ('runs/vit', True)
    """
    path = Path(path)
    return path if path.name not in ("", "..") else Path(os.path.abspath(path))


def split_revision(name: str) -> tuple[str, str | None]:
    """The repository id and the revision of `namespace/name@revision`; None if no revision is named."""
    repo_id, _, revision = name.partition("@")
    return repo_id, revision or None


def looks_local(name: str | Path) -> bool:
    """Whether a name can only be a path.

    It exists, begins as paths do, has more parts than a Hub id, or lies in a folder that exists.

    >>> looks_local("runs/a/checkpoint-100"), looks_local("facebook/dinov2-large")
    (True, False)
    """
    text, path = str(name), Path(name)
    if path.exists() or text.startswith((".", "/", "~")) or text.count("/") > 1 or (os.sep != "/" and os.sep in text):
        return True
    return path.parent != Path(".") and path.parent.is_dir()


def may_be_on_hub(name: str | Path) -> bool:
    """Whether a name can be a repository on the Hub, with or without `@revision`, rather than a missing folder.

    >>> may_be_on_hub("me/vit@refs/pr/1"), may_be_on_hub("runs/vit/checkpoint-100")
    (True, False)
    """
    repo_id, _ = split_revision(str(name))
    if Path(name).exists() or looks_local(repo_id):
        return False
    return is_repo_id(repo_id) and not repo_id.split("/")[1].startswith("checkpoint-")


def leads_outside(path: Path, folder: Path) -> bool:
    """Whether a file lies outside a folder once all symbolic links are followed.

    The files of a repository in the Hub's cache are links to its blobs, which count as part of their folder.
    """
    home, target = folder.resolve(), path.resolve()
    if target.is_relative_to(home):
        return False
    in_cache = home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"
    return not in_cache


def shown_name(path: str | Path) -> str:
    """The last part of a path, and for a checkpoint that of its run too, without the folders that hold them.

    >>> shown_name("/data/me/runs/vit/checkpoint-100")
    'vit/checkpoint-100'
    """
    path = Path(path).expanduser().resolve()
    return f"{path.parent.name}/{path.name}" if path.name.startswith("checkpoint-") else path.name
