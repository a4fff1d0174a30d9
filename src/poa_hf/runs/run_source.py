"""The checkpoints of a run's repository on the Hub: which is the newest sound one, and its download.

Only files of known names and kinds are fetched: numbers in safetensors, JSON, YAML, and the optimizer's state, which is
read as tensors and numbers only. All of them are those of one commit, so that a run that is pushed meanwhile does no
harm.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import RepoFile
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from ..formatting import format_bytes
from ..hub.client import Hub, HubError
from ..hub.retrying import describe
from .atomic import UNFINISHED, delete, written_folder
from .json_files import read_object
from .json_lines import first_line
from .layout import (
    CHECKSUMS,
    GRAM_TEACHER,
    METRICS,
    TRAINER_STATE,
    RunFolder,
)
from .run_repo import checkpoint_folder, is_part
from .soundness import checkpoint_damage

logger = logging.getLogger(__name__)

_MOST_COMMITS = 50  # that are looked through for a sound checkpoint


@dataclass(frozen=True)
class RemoteCheckpoint:
    """A checkpoint in a commit of the repository.

    Args:
        commit: The commit.
        folder: Its folder there.
        files: Its files by name.
        step: Its step.
    """

    commit: str
    folder: str
    files: dict[str, RepoFile]
    step: int


class RunSource:
    """The repository of a run.

    Args:
        repo_id: The repository.
        hub: The Hub.
    """

    def __init__(self, repo_id: str, hub: Hub):
        self.repo_id, self.hub = repo_id, hub

    def head(self, revision: str | None) -> tuple[str, dict[str, RepoFile]]:
        """Return the commit of a revision and its files.

        Raises:
            ValueError: If it cannot be read.
        """
        try:
            commit = self.hub.patience(lambda: self.hub.api.repo_info(self.repo_id, revision=revision)).sha
        except RevisionNotFoundError as error:
            raise ValueError(
                f"{self.repo_id} has no revision {revision!r} on the Hub: give one that exists."
            ) from error
        except RepositoryNotFoundError as error:
            raise ValueError(
                f"{self.repo_id} is neither a folder nor a repository on the Hub that can be read: give the folder of "
                "a run, or log in with `hf auth login` if it is private."
            ) from error
        except Exception as error:
            raise ValueError(
                f"{self.repo_id} is no folder, and cannot be read on the Hub, because {describe(error)}: give the "
                "folder of a run, or check the connection."
            ) from error
        assert commit is not None
        return commit, self.hub.list_files(self.repo_id, commit) or {}

    def check_same_run(self, folder: Path, commit: str, files: dict[str, RepoFile]) -> None:
        """Refuse a folder with another run than the repository's, told by the first line of its log."""
        here = first_line(RunFolder(folder).metrics, last_step=1 << 62)
        there = self.hub.read(self.repo_id, METRICS, commit).decode(errors="replace") if METRICS in files else ""
        try:
            is_same = here is not None and json.loads(here) == json.loads(there.partition("\n")[0])
        except ValueError:
            is_same = False
        if not is_same:
            raise ValueError(
                f"{folder} holds another run than {self.repo_id}: go on with it by poa resume {folder}, or give "
                "another --output_dir."
            )

    def newest(self, commit: str, files: dict[str, RepoFile], after: int, into: Path) -> RemoteCheckpoint | None:
        """Download the newest sound checkpoint into the unfinished folder of a run.

        Args:
            commit: The commit to begin with; earlier ones are looked through if it has no sound checkpoint.
            files: The files of the commit.
            after: The step after which it must lie.
            into: The folder of the run.

        Returns:
            The checkpoint; None if the repository has none after this step.

        Raises:
            ValueError: If there are some, and all are damaged.
        """
        damages: list[str] = []
        seen: set[str] = set()
        for remote in self._candidates(commit, files, seen, damages):
            if remote.step <= after:
                return None
            damage = self._difference(remote) or self._download(remote, into)
            if damage is None:
                for each in damages:
                    logger.warning("%s: step %d is taken instead.", each, remote.step)
                return remote
            damages.append(f"{remote.folder} of {self.repo_id} (step {remote.step}) is damaged ({damage})")
        delete(unfinished_checkpoint(into))
        if damages:
            raise ValueError(
                f"{self.repo_id} has no sound checkpoint to resume from: {damages[0]}; start another run from its "
                f"model by poa pretrain --init_from {self.repo_id}."
            )
        return None

    def _candidates(
        self, commit: str, files: dict[str, RepoFile], seen: set[str], damages: list[str]
    ) -> Iterator[RemoteCheckpoint]:
        """Yield the checkpoints of a commit, newest first, and then those that earlier commits had."""
        yield from self._in_commit(commit, files, seen, damages)
        if not damages:
            return
        history = self.hub.patience(lambda: self.hub.api.list_repo_commits(self.repo_id, revision=commit))
        for earlier in history[1:_MOST_COMMITS]:
            yield from self._in_commit(
                earlier.commit_id, self.hub.list_files(self.repo_id, earlier.commit_id) or {}, seen, damages
            )

    def _in_commit(
        self, commit: str, files: dict[str, RepoFile], seen: set[str], damages: list[str]
    ) -> list[RemoteCheckpoint]:
        folders: dict[str, dict[str, RepoFile]] = {}
        for path, file in files.items():
            if (folder := checkpoint_folder(path)) is not None:
                folders.setdefault(folder, {})[path.removeprefix(f"{folder}/")] = file
        found = []
        for folder, parts in folders.items():
            content = " ".join(sorted(file.blob_id for file in parts.values()))
            if content in seen:
                continue
            seen.add(content)
            try:
                step = self._json(commit, folder, TRAINER_STATE, parts)["global_step"]
                if type(step) is not int or step < 0:
                    raise ValueError(f"its step is {step!r}")
                found.append(RemoteCheckpoint(commit, folder, parts, step))
            except (KeyError, ValueError) as error:
                damages.append(f"{folder} of {self.repo_id} is damaged ({_reason(error)})")
        return sorted(found, key=lambda remote: -remote.step)

    def _json(self, commit: str, folder: str, name: str, parts: dict[str, RepoFile]) -> dict[str, Any]:
        """Read a small JSON file of a checkpoint, as an object."""
        if name not in parts:
            raise ValueError(f"it lacks {name}")
        try:
            content = json.loads(self.hub.read(self.repo_id, f"{folder}/{name}", commit))
        except (HubError, OSError):
            raise
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} is not JSON") from error
        if not isinstance(content, dict):
            raise ValueError(f"{name} holds no object")
        return content

    def _difference(self, remote: RemoteCheckpoint) -> str | None:
        """Compare the repository's list of files with a checkpoint's checksums, before gigabytes are downloaded."""
        try:
            expected = self._json(remote.commit, remote.folder, CHECKSUMS, remote.files).get("files")
        except HubError:
            raise
        except ValueError as error:
            return _reason(error)
        if not isinstance(expected, dict):
            return f"{CHECKSUMS} holds no checksums"
        for name, entry in expected.items():
            if not is_part(name):
                return f"{name[:80]!r} is no part of a checkpoint"
            file = remote.files.get(name)
            if file is None:
                return f"it lacks {name}"
            size, digest = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
            if file.size != size or (file.lfs is not None and file.lfs.sha256 != digest):
                return f"{name} has another content than was written, by its checksum"
        return None

    def _download(self, remote: RemoteCheckpoint, into: Path) -> str | None:
        """Download a checkpoint into the unfinished folder of a run, and return what is wrong with it, if anything."""
        target = unfinished_checkpoint(into)
        delete(target)
        target.mkdir(parents=True)
        names = sorted(name for name in remote.files if is_part(name))
        volume = format_bytes(sum(remote.files[name].size for name in names))
        logger.info("Downloading step %d of %s (%s) ...", remote.step, self.repo_id, volume)
        self._download_files(remote.commit, remote.folder, names, target)
        return checkpoint_damage(target)

    def fetch_best(self, commit: str, files: dict[str, RepoFile], newest: Path, run: Path) -> None:
        """Download the checkpoint of the best evaluation, of which the newest one knows, if the folder lacks it."""
        name = Path(str(read_object(newest / TRAINER_STATE).get("best_model_checkpoint"))).name
        found = [remote for remote in self._in_commit(commit, files, set(), []) if remote.folder == name]
        if not found or RunFolder(run).checkpoint(found[0].step).exists():
            return
        scratch = run / f"{UNFINISHED}fetched-best"
        damage = self._difference(found[0]) or self._download(found[0], scratch)
        if damage is None:
            unfinished_checkpoint(scratch).rename(RunFolder(run).checkpoint(found[0].step))
        else:
            logger.warning("%s of %s, the best, is damaged (%s): it is left out.", name, self.repo_id, damage)
        delete(scratch)

    def fetch_kept_model(self, commit: str, files: Mapping[str, RepoFile], run: Path) -> None:
        """Download the Gram teacher of the run, if it has one and the folder of the run lacks it."""
        prefix = f"{GRAM_TEACHER}/"
        names = [path.removeprefix(prefix) for path in sorted(files) if path.startswith(prefix)]
        if names and not RunFolder(run).gram_teacher.exists():
            with written_folder(RunFolder(run).gram_teacher) as folder:
                self._download_files(commit, GRAM_TEACHER, [name for name in names if is_part(name)], folder)

    def _download_files(self, commit: str, folder: str, names: Iterable[str], target: Path) -> None:
        api, staging = self.hub.api, target / ".download"
        for name in names:
            path = f"{folder}/{name}"
            try:
                self.hub.patience(
                    lambda path=path: api.hf_hub_download(  # type: ignore[misc]
                        self.repo_id, path, revision=commit, local_dir=staging
                    )
                )
            except Exception as error:
                raise ValueError(
                    f"{path} of {self.repo_id} could not be downloaded, because {describe(error)}: run the same "
                    "command again."
                ) from error
            (staging / path).rename(target / name)
        shutil.rmtree(staging)


def unfinished_checkpoint(folder: Path) -> Path:
    """Where a checkpoint lies in the folder of a run until it is complete."""
    return folder / f"{UNFINISHED}fetched-checkpoint"


def _reason(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
