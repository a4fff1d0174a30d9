"""A pre-trained model, teacher, student and heads, that lies on the Hub instead of in a run's folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from .layout import CONFIG, published_patterns


def may_be_on_hub(name: str | Path) -> bool:
    """Whether this can be the id of a repo, `namespace/name` or `namespace/name@revision`, rather than a folder that is
    missing: one in a folder that is there is a folder."""
    path = Path(name)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", str(name), re.ASCII) is None or path.exists():
        return False
    try:
        validate_repo_id(_split(str(name))[0])
    except ValueError:
        return False
    return not path.parent.is_dir() and not _split(str(name))[0].split("/")[1].startswith("checkpoint-")


def is_supernet_on_hub(name: str | Path) -> bool:
    """Whether this is the id of a repo that can be read and holds a `PoaForPreTraining`. One small request."""
    if not may_be_on_hub(name):
        return False
    repo_id, revision = _split(str(name))
    try:
        return json.loads(Path(hf_hub_download(repo_id, CONFIG, revision=revision)).read_text())["model_type"] == "poa"
    except (OSError, ValueError, KeyError, TypeError, httpx2.HTTPError):
        return False


def download_supernet(name: str) -> Path:
    """The folder in the cache with a repo's model, image processor and records.

    Raises:
        ValueError: If there is neither a folder nor a repo of this name, or it cannot be read.
    """
    repo_id, revision = _split(name)
    neither = f"{name} is neither a folder nor a repo of the Hub that can be read"
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=published_patterns()))
    except RevisionNotFoundError as error:
        raise ValueError(f"{repo_id} has no revision {revision!r} on the Hub: give one that it has.") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{neither}: give a run's output_dir, or log in with `hf auth login` if it is private."
        ) from error
    except (OSError, HfHubHTTPError, httpx2.HTTPError, ValueError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(f"{neither} ({reason}): give a run's output_dir, or check the connection.") from error
    if not (folder / CONFIG).exists():
        raise ValueError(f"{name} holds no model on the Hub: give the repo of a supernet, as poa push makes it.")
    return folder


def _split(name: str) -> tuple[str, str | None]:
    repo_id, _, revision = name.partition("@")
    return repo_id, revision or None
