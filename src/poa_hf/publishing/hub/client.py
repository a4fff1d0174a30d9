"""Repos and collections of a namespace on the Hub, by calls that are repeated when the Hub is busy."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import Collection, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from .retrying import CONFLICT, Patience, reason, status_of

_MADE_BY_THE_HUB = {".gitattributes"}
# what a configuration says of who wrote it, and not of the model
_VOLATILE = {"transformers_version", "_name_or_path"}
_AGAIN = "run the same command again, it goes on where it stopped"


class HubError(ValueError):
    """What the Hub refused or failed to do, in one sentence."""


@dataclass
class Hub:
    """The Hub as one user sees it. All methods raise `HubError`."""

    api: HfApi = field(default_factory=HfApi)
    patience: Patience = field(default_factory=Patience)

    def check_rights(self, namespace: str, collection: bool = True) -> None:
        """Refuses if there is no token, or it is known not to write repos (and collections) in `namespace`."""
        try:
            me = self.patience(self.api.whoami)
        except LocalTokenNotFoundError as error:
            raise HubError(
                "There is no token for the Hub: run `hf auth login`, or set HF_TOKEN to a token that may write."
            ) from error
        except Exception as error:
            if status_of(error) == 401:
                raise HubError(
                    "The Hub does not accept this token: run `hf auth login`, or set HF_TOKEN to one that may write."
                ) from error
            raise self._sentence(error, "The token could not be checked") from error
        token = (me.get("auth") or {}).get("accessToken") or {}
        roles = {me["name"]: "admin", **{org["name"]: org.get("roleInOrg") for org in me.get("orgs") or []}}
        scopes = [scope for scope in (token.get("fineGrained") or {}).get("scoped") or [] if scope.get("entity")]
        granted = {scope["entity"].get("name"): set(scope.get("permissions") or []) for scope in scopes}
        if namespace not in roles and namespace not in granted:
            raise HubError(
                f"{namespace!r} is not a namespace of {me['name']}, whose token this is: give --namespace one of "
                f"{', '.join(roles)}."
            )
        if token.get("role") == "read" or roles.get(namespace) == "read":
            raise HubError(f"This token of {me['name']} may only read {namespace!r}: use one that may write.")
        if token.get("role") == "fineGrained":
            needed = {"repo.write"} | ({"collection.write"} if collection else set())
            if missing := needed - granted.get(namespace, set()):
                advice = ", or give --no_collection" if missing == {"collection.write"} else ""
                raise HubError(
                    f"This token of {me['name']} lacks the right {' and '.join(sorted(missing))} in {namespace!r}: add "
                    f"it at https://huggingface.co/settings/tokens{advice}."
                )

    def look(self, repo_id: str, revision: str | None = None) -> dict[str, RepoFile] | None:
        """The files of a repo by path, but for what the Hub itself made; None if there is no such repo, and no files if
        it lacks the revision. One request."""

        def tree() -> list:
            return list(self.api.list_repo_tree(repo_id, recursive=True, revision=revision))

        try:
            entries = self.patience(tree)
        except (RevisionNotFoundError, RemoteEntryNotFoundError):
            return {}
        except RepositoryNotFoundError:
            return None
        except Exception as error:
            raise self._sentence(error, f"{repo_id} could not be looked at") from error
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
        return {file.path: file for file in files if file.path not in _MADE_BY_THE_HUB}

    def read(self, repo_id: str, path: str, revision: str | None = None) -> bytes:
        """A small file's content."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                options = {"revision": revision, "local_dir": folder}
                return Path(self.patience(self.api.hf_hub_download, repo_id, path, **options)).read_bytes()
            except Exception as error:
                raise self._sentence(error, f"{path} of {repo_id} could not be read") from error

    def holds(self, repo_id: str, remote: RepoFile | None, local: Path | bytes, revision: str | None = None) -> bool:
        """Whether a repo's file has this content: by its hash, which the tree gives; of two configurations that differ,
        also by what they say of the model."""
        if remote is None:
            return False
        size = len(local) if isinstance(local, bytes) else local.stat().st_size
        if size == (remote.lfs.size if remote.lfs else remote.size):
            if remote.lfs and _sha256(local) == remote.lfs.sha256:
                return True
            if not remote.lfs and _git_blob(local) == remote.blob_id:
                return True
        if remote.lfs or not remote.path.endswith(".json"):
            return False
        here = _lasting(local if isinstance(local, bytes) else local.read_bytes())
        return here is not None and here == _lasting(self.read(repo_id, remote.path, revision))

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
        """Put files into a repo by one commit, after making the repo (`create`) and the branch `revision`.

        Refuses if it was to be made, and has meanwhile got content from elsewhere.
        """
        try:
            if create:
                self._create(repo_id, private, revision)
            if revision:
                self._branch(repo_id, revision)
            self.patience(self._commit, repo_id, files, message, revision, delete, also=CONFLICT)
        except HubError:
            raise
        except Exception as error:
            raise self._sentence(error, f"{repo_id} could not be published") from error

    def _create(self, repo_id: str, private: bool, revision: str | None) -> None:
        try:
            self.patience(self.api.create_repo, repo_id, private=private)
        except HfHubHTTPError as error:
            # there is one by now: of an attempt whose answer was lost, or of someone else
            if status_of(error) != 409:
                raise
            if self.look(repo_id, revision):
                raise HubError(
                    f"{repo_id} has got content while this was running: run the command again to compare it."
                ) from error

    def _branch(self, repo_id: str, revision: str) -> None:
        refs = self.patience(self.api.list_repo_refs, repo_id)
        if revision in (branch.name for branch in refs.branches):
            return
        # from the first commit, which is empty: from a later one, the branch would hold other content until ours came
        start = self.patience(self.api.list_repo_commits, repo_id)[-1].commit_id
        self.patience(self.api.create_branch, repo_id, branch=revision, revision=start, exist_ok=True)

    def _commit(
        self,
        repo_id: str,
        files: Mapping[str, Path | bytes],
        message: str,
        revision: str | None,
        delete: tuple[str, ...],
    ) -> None:
        # made anew at each attempt, as they cannot be used twice; what an attempt has uploaded is not uploaded again,
        # and if its commit went through, nothing is left to commit
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        present = self.look(repo_id, revision) or {} if delete else {}
        operations += [CommitOperationDelete(path) for path in delete if path in present]
        self.api.create_commit(repo_id, operations, commit_message=message, revision=revision)

    def collection(self, namespace: str, title: str, description: str, private: bool) -> Collection:
        """The namespace's collection of this title, made if there is none."""

        def find() -> Collection | None:
            listed = self.api.list_collections(owner=namespace)
            slug = next((collection.slug for collection in listed if collection.title == title), None)
            return self.api.get_collection(slug) if slug else None

        def make() -> Collection:
            options = {"namespace": namespace, "description": description, "private": private, "exists_ok": True}
            return find() or self.api.create_collection(title, **options)

        try:
            return self.patience(make)
        except Exception as error:
            raise self._sentence(error, f"The collection {title!r} could not be made", "--no_collection") from error

    def add_to_collection(self, collection: Collection, repo_id: str, note: str) -> None:
        """Add a model unless it is there."""
        if any(item.item_id == repo_id for item in collection.items):
            return
        options = {"item_id": repo_id, "item_type": "model", "note": note, "exists_ok": True}
        try:
            added = self.patience(self.api.add_collection_item, collection.slug, **options)
        except Exception as error:
            what = f"{repo_id} could not be added to the collection"
            raise self._sentence(error, what, "--no_collection") from error
        collection.items = added.items

    @staticmethod
    def _sentence(error: Exception, what: str, way_out: str | None = None) -> HubError:
        status, why = status_of(error), reason(error)
        if status in (401, 402, 403, 404):
            advice = "check the rights of the token" + (f", or give {way_out}" if way_out else "")
        elif status is not None and 400 <= status < 500 and status != 429 or isinstance(error, ValueError):
            advice = f"put right what it says, then {_AGAIN}"
        else:
            advice = _AGAIN if status != 429 else f"later, {_AGAIN}"
        return HubError(f"{what}, as {why}: {advice}.")


def _sha256(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_blob(content: Path | bytes) -> str:
    content = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _lasting(content: bytes) -> dict | list | None:
    """A configuration without what differs from one version of a library to the next; None if it cannot be read."""

    def kept(values):
        if isinstance(values, dict):
            return {key: kept(value) for key, value in values.items() if key not in _VOLATILE}
        return [kept(value) for value in values] if isinstance(values, list) else values

    try:
        return kept(json.loads(content))
    except ValueError:
        return None
