"""Repositories and collections of a namespace on the Hub, by calls that are repeated while the Hub is busy."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import Collection, CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .retrying import CONFLICT, Patience, describe, status_of

_MADE_BY_THE_HUB = {".gitattributes"}
_WRITER_FIELDS = {"transformers_version", "_name_or_path"}  # they describe who wrote a configuration, not the model
_RUN_AGAIN = "run the same command again, it continues where it stopped"


class HubError(ValueError):
    """A request that the Hub refused or failed to answer, in one sentence."""


@dataclass
class Hub:
    """The Hub as one user sees it. All methods raise `HubError`.

    Args:
        api: The client, which holds the endpoint and the token.
        patience: How often and for how long calls are repeated.
    """

    api: HfApi = field(default_factory=HfApi)
    patience: Patience = field(default_factory=Patience)

    def check_rights(
        self, namespace: str | None, collection: bool = True, advice: str = "give --namespace one of"
    ) -> str:
        """Check that there is a token, and that it may write repositories (and collections) in a namespace.

        Args:
            namespace: The namespace; that of the token's owner if None.
            collection: Whether collections are written too.
            advice: What to do where the namespace is not the user's, followed by those that are.

        Returns:
            The namespace.

        Raises:
            HubError: If it is known that it may not. Some limits show only when something is written.
        """
        try:
            user = self.patience(self.api.whoami)
        except LocalTokenNotFoundError as error:
            raise HubError(
                "There is no token for the Hub: run `hf auth login`, or set HF_TOKEN to a token that may write."
            ) from error
        except Exception as error:
            if status_of(error) == 401:
                raise HubError(
                    "The Hub does not accept this token: run `hf auth login`, or set HF_TOKEN to one that may write."
                ) from error
            raise _as_hub_error(error, "The token could not be checked") from error
        name = user["name"]
        namespace = namespace or name
        token = (user.get("auth") or {}).get("accessToken") or {}
        roles = {name: "admin", **{org["name"]: org.get("roleInOrg") for org in user.get("orgs") or []}}
        granted = _granted_permissions(token)
        if namespace not in roles and namespace not in granted:
            raise HubError(
                f"{namespace!r} is not a namespace of {name}, whose token this is: {advice} {', '.join(roles)}."
            )
        if token.get("role") == "read" or roles.get(namespace) == "read":
            raise HubError(f"This token of {name} may only read {namespace!r}: use one that may write.")
        if token.get("role") == "fineGrained":
            needed = {"repo.write"} | ({"collection.write"} if collection else set())
            if missing := needed - granted.get(namespace, set()):
                without = ", or give --no_collection" if missing == {"collection.write"} else ""
                raise HubError(
                    f"This token of {name} lacks the right {' and '.join(sorted(missing))} in {namespace!r}: add it at "
                    f"https://huggingface.co/settings/tokens{without}."
                )
        return namespace

    def list_files(self, repo_id: str, revision: str | None = None) -> dict[str, RepoFile] | None:
        """List the files of a repository by path, except those that the Hub itself made, with one request.

        Returns:
            None if there is no such repository; no files if it lacks the revision.
        """
        try:
            entries = self.patience(lambda: list(self.api.list_repo_tree(repo_id, recursive=True, revision=revision)))
        except (RevisionNotFoundError, RemoteEntryNotFoundError):
            return {}
        except RepositoryNotFoundError:
            return None
        except Exception as error:
            raise _as_hub_error(error, f"The files of {repo_id} could not be listed") from error
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        return {file.path: file for file in files if file.path not in _MADE_BY_THE_HUB}

    def read(self, repo_id: str, path: str, revision: str | None = None) -> bytes:
        """Download the content of a small file."""

        def download() -> bytes:
            return Path(self.api.hf_hub_download(repo_id, path, revision=revision, local_dir=folder)).read_bytes()

        with tempfile.TemporaryDirectory() as folder:
            try:
                return self.patience(download)
            except Exception as error:
                raise _as_hub_error(error, f"{path} of {repo_id} could not be read") from error

    def has_content(self, repo_id: str, remote: RepoFile | None, local: Path, revision: str | None = None) -> bool:
        """Return whether a repository's file has the content of a local one.

        The hashes in the list of files are compared. JSON files that differ are downloaded and count as the same
        if only the version of a library differs.
        """
        if remote is None:
            return False
        if local.stat().st_size == (remote.lfs.size if remote.lfs else remote.size):
            if remote.lfs and _sha256(local) == remote.lfs.sha256:
                return True
            if not remote.lfs and _git_blob_id(local.read_bytes()) == remote.blob_id:
                return True
        if remote.lfs or not remote.path.endswith(".json"):
            return False
        content = _without_writer_fields(local.read_bytes())
        return content is not None and content == _without_writer_fields(self.read(repo_id, remote.path, revision))

    def publish(
        self,
        repo_id: str,
        files: Mapping[str, Path | bytes],
        message: str,
        private: bool = False,
        revision: str | None = None,
        delete: tuple[str, ...] = (),
        create: bool = True,
    ) -> None:
        """Put files into a repository with one commit.

        Args:
            repo_id: The repository.
            files: Local files, or contents, by path.
            message: The title of the commit.
            private: Whether a repository that is created is private.
            revision: A branch, which is created if necessary; by default main.
            delete: Paths to delete in the same commit, if they exist.
            create: Whether the repository is created.

        Raises:
            HubError: If the Hub refuses or does not answer, or if somebody else has filled a new repository meanwhile.
        """
        try:
            if create:
                self._create(repo_id, private, revision)
            if revision:
                self._create_branch(repo_id, revision)
            self.patience(lambda: self._commit(repo_id, files, message, revision, delete), also=CONFLICT)
        except HubError:
            raise
        except Exception as error:
            raise _as_hub_error(error, f"{repo_id} could not be published") from error

    def create(self, repo_id: str, private: bool | None) -> None:
        """Make an empty repository, if there is none.

        Args:
            repo_id: The repository.
            private: Whether it is private; None for what its organisation decides, public by default.
        """
        try:
            self._create(repo_id, private, None)
        except HubError:
            raise
        except Exception as error:
            raise _as_hub_error(error, f"{repo_id} could not be made") from error

    def _create(self, repo_id: str, private: bool | None, revision: str | None) -> None:
        try:
            self.patience(lambda: self.api.create_repo(repo_id, private=private))
        except HfHubHTTPError as error:
            # it exists: made by an attempt whose answer was lost, or by someone else
            if status_of(error) != 409:
                raise
            if self.list_files(repo_id, revision):
                raise HubError(
                    f"{repo_id} was filled while this was running: run the command again to compare its content."
                ) from error

    def _create_branch(self, repo_id: str, revision: str) -> None:
        branches = self.patience(lambda: self.api.list_repo_refs(repo_id)).branches
        if revision in (branch.name for branch in branches):
            return
        # from the first commit, which is empty: from a later one, the branch would hold other content for a while
        start = self.patience(lambda: self.api.list_repo_commits(repo_id))[-1].commit_id
        self.patience(lambda: self.api.create_branch(repo_id, branch=revision, revision=start, exist_ok=True))

    def _commit(
        self,
        repo_id: str,
        files: Mapping[str, Path | bytes],
        message: str,
        revision: str | None,
        delete: tuple[str, ...],
    ) -> None:
        # operations cannot be used twice, so each attempt makes its own; what an earlier attempt has uploaded is not
        # uploaded again, and if its commit went through, nothing is left to commit
        present = (self.list_files(repo_id, revision) or {}) if delete else {}
        additions = [CommitOperationAdd(path, content) for path, content in files.items()]
        deletions = [CommitOperationDelete(path) for path in delete if path in present]
        self.api.create_commit(repo_id, [*additions, *deletions], commit_message=message, revision=revision)

    def collection(self, namespace: str, title: str, description: str, private: bool) -> Collection:
        """Return the namespace's collection of this title, which is created if there is none."""

        def find_or_create() -> Collection:
            for collection in self.api.list_collections(owner=namespace):
                if collection.title == title:
                    return self.api.get_collection(collection.slug)
            return self.api.create_collection(
                title, namespace=namespace, description=description, private=private, exists_ok=True
            )

        try:
            return self.patience(find_or_create)
        except Exception as error:
            raise _as_hub_error(error, f"The collection {title!r} could not be made", "--no_collection") from error

    def add_to_collection(self, collection: Collection, repo_id: str, note: str) -> None:
        """Add a model to a collection that does not hold it yet."""
        if any(item.item_id == repo_id for item in collection.items):
            return

        def add() -> Collection:
            return self.api.add_collection_item(
                collection.slug, item_id=repo_id, item_type="model", note=note, exists_ok=True
            )

        try:
            collection.items = self.patience(add).items
        except Exception as error:
            failure = f"{repo_id} could not be added to the collection"
            raise _as_hub_error(error, failure, "--no_collection") from error


def _granted_permissions(token: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return what a fine-grained token may do, by namespace."""
    scopes = (token.get("fineGrained") or {}).get("scoped") or []
    return {scope["entity"].get("name"): set(scope.get("permissions") or []) for scope in scopes if scope.get("entity")}


def _as_hub_error(error: Exception, failure: str, way_out: str | None = None) -> HubError:
    """Say what failed, why, and what to do; `way_out` is an option that avoids the request."""
    status = status_of(error)
    if status in (401, 402, 403, 404):
        advice = "check the rights of the token" + (f", or give {way_out}" if way_out else "")
    elif status == 429:
        advice = f"later, {_RUN_AGAIN}"
    elif (status is not None and 400 <= status < 500) or isinstance(error, ValueError):
        advice = f"correct that, then {_RUN_AGAIN}"
    else:
        advice = _RUN_AGAIN
    return HubError(f"{failure}, because {describe(error)}: {advice}.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_blob_id(content: bytes) -> str:
    """Return git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _without_writer_fields(content: bytes) -> Any:
    """Parse JSON and leave out the fields that tell who wrote it; None if it cannot be parsed."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: stripped(item) for key, item in value.items() if key not in _WRITER_FIELDS}
        return [stripped(item) for item in value] if isinstance(value, list) else value

    try:
        return stripped(json.loads(content))
    except ValueError:
        return None
