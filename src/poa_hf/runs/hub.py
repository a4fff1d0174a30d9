"""Supernets on the Hub: pre-trained models with teacher, student and heads, and the records of their runs."""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from ..formatting import one_line
from ..locations import may_be_on_hub, split_revision
from .layout import CONFIG, published_patterns


def is_supernet_on_hub(name: str | Path) -> bool:
    """Whether a name is the id of a repository on the Hub that can be read and holds a `PoaForPreTraining`.

    This takes one small request.
    """
    if not may_be_on_hub(name):
        return False
    repo_id, revision = split_revision(str(name))
    try:
        config = json.loads(Path(hf_hub_download(repo_id, CONFIG, revision=revision)).read_text())
        return config["model_type"] == "poa"
    except (OSError, ValueError, KeyError, TypeError, httpx2.HTTPError):
        return False


def download_supernet(name: str) -> Path:
    """Download a supernet's model, image processor and records into the cache, and return their folder.

    Args:
        name: `namespace/name`, or `namespace/name@revision` for another revision than the main branch.

    Raises:
        ValueError: If no such repository can be read, or it holds no model.
    """
    repo_id, revision = split_revision(name)
    neither = f"{name} is neither a folder nor a repository on the Hub that can be read"
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=published_patterns()))
    except RevisionNotFoundError as error:
        raise ValueError(f"{repo_id} has no revision {revision!r} on the Hub: give one that exists.") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{neither}: give a run's output_dir, or log in with `hf auth login` if it is private."
        ) from error
    except (OSError, HfHubHTTPError, httpx2.HTTPError, ValueError) as error:
        raise ValueError(
            f"{neither} ({one_line(error, 200)}): give a run's output_dir, or check the connection."
        ) from error
    if not (folder / CONFIG).exists():
        raise ValueError(f"{name} holds no model: give the repository of a supernet that poa push made.")
    return folder
