"""Publish a release: each size goes to its own repository with one commit, so that it is complete or has no weights.

The state of a release is read from the hashes of the files on the Hub, so a second call continues where the first
stopped, even from another machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import Collection, RepoFile

from ..formatting import format_bytes, format_quantity
from ..hub.client import Hub
from ..runs.layout import SIZES
from ..sub_network import SubNetwork
from .card.cards import CARD
from .card.size_table import published_sizes
from .card.stamp import is_unedited
from .hub.names import collection_title
from .release import Release, RepoFiles


@dataclass(frozen=True)
class PushOptions:
    """How a release is published.

    Args:
        private: Whether repositories and the collection are private when they are created.
        revision: The branch to publish on; by default main.
        max_repos: The most repositories that one call creates or fills; by default all.
        overwrite: Whether to replace repositories that hold something else, and cards that were edited.
        collection: Whether the repositories are put into a collection.
    """

    private: bool = False
    revision: str | None = None
    max_repos: int | None = None
    overwrite: bool = False
    collection: bool = True


@dataclass
class PushResult:
    """The outcome of a call of `push`: the ids of the repositories by what happened to them.

    Args:
        published: Filled for the first time.
        replaced: Held something else, which was replaced.
        renewed: Held the same model, and got a new card or table.
        unchanged: Held the same content already.
        left: Not published, because of `max_repos`.
        edited: Have a card that was edited on the Hub, which is kept.
        bytes: The bytes of content of the published and replaced ones.
        collection: The address of the collection.
    """

    published: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    edited: list[str] = field(default_factory=list)
    bytes: int = 0
    collection: str | None = None


@dataclass
class _Repo:
    """A repository to publish, and its state on the Hub.

    Args:
        size: The size that it holds; None for the supernet.
        id: Its id on the Hub.
        remote: Its files on the Hub; none if it does not exist or is empty.
        exists: Whether it exists on the Hub.
        conflict: The first file on the Hub that differs from this model; None if no file does.
        outdated: Documents of the same model to replace, with their content.
    """

    size: SubNetwork | None
    id: str
    remote: dict[str, RepoFile] = field(default_factory=dict)
    exists: bool = False
    conflict: str | None = None
    outdated: dict[str, bytes] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return "supernet" if self.size is None else str(self.size)


def push(
    release: Release,
    hub: Hub | None = None,
    options: PushOptions = PushOptions(),  # noqa: B008 (frozen)
    tell: Callable[[str], None] = print,
) -> PushResult:
    """Publish a release: the supernet, then each size, and a collection of all.

    Whatever can be checked is checked before anything is sent. A repository that already holds the same model is
    unchanged, except for a card or table that has something new to say and that has not been edited.

    Args:
        release: The sizes to publish.
        hub: The Hub; by default the one that `huggingface_hub` is configured for.
        options: How to publish.
        tell: Is called with a line about each repository.

    Raises:
        ValueError: If the token lacks rights, a repository holds something else and `options.overwrite` is not set, or
            the Hub refuses or does not answer for long. The repositories published by then are complete.
    """
    hub = hub or Hub()
    namespace = _repos_of(release)[0].id.split("/")[0]
    hub.check_rights(namespace, options.collection)
    call = _Push(release, hub, options, tell)
    call.compare()
    call.publish()
    return call.result


def rehearse(release: Release, tell: Callable[[str], None] = print) -> int:
    """Describe what `push` would send, without asking the Hub, and return the number of bytes.

    Every repository is written into a temporary folder, one after the other.
    """
    repos = _repos_of(release)
    total = 0
    for number, repo in enumerate(repos, 1):
        with repo_files(release, repo.size, release.ids) as files:
            total += files.num_bytes
            counts = f"{len(files.all)} files, {files.num_bytes:,} bytes"
            tell(f"[{number}/{len(repos)}] {repo.id} ({repo.title}): {counts}")
            for path, local in files.all.items():
                tell(f"    {local.stat().st_size:>15,}  {path}")
    return total


@contextmanager
def repo_files(release: Release, size: SubNetwork | None, published: Mapping[SubNetwork, str]) -> Iterator[RepoFiles]:
    """Write the files of one repository (`size` None: the supernet's) for as long as the block runs.

    They are removed afterwards, because the disk may not have room for all sizes at once.
    """
    with tempfile.TemporaryDirectory(prefix="poa-push-") as folder:
        if size is None:
            yield release.supernet_files(Path(folder), published)
        else:
            yield release.size_files(size, Path(folder))


def _repos_of(release: Release) -> list[_Repo]:
    supernet = [_Repo(None, release.supernet)] if release.supernet else []
    return supernet + [_Repo(size, repo_id) for size, repo_id in release.ids.items()]


class _Push:
    """One call of `push`: `compare` reads the state of the Hub, `publish` changes it."""

    def __init__(self, release: Release, hub: Hub, options: PushOptions, tell: Callable[[str], None]):
        self.release, self.hub, self.options, self.tell = release, hub, options, tell
        self.repos = _repos_of(release)
        self.result = PushResult()
        self.collection: Collection | None = None
        self.published: dict[SubNetwork, str] = {}  # the sizes known to be on the Hub

    def compare(self) -> None:
        """Compare the Hub with this release.

        Raises:
            ValueError: If a repository holds something else, which must not be replaced.
        """
        for repo in self.repos:
            self.list_remote(repo)
        filled = [repo for repo in self.repos if repo.remote]
        if filled:
            self.tell(f"{len(filled)} of {len(self.repos)} repos have content: comparing it with this run ...")
        for repo in filled:
            with self.files(repo) as files:
                repo.conflict = self.first_difference(repo, files.model)
                if repo.conflict is None and repo.size is not None:
                    repo.outdated = self.outdated_documents(repo, files)
                    self.published[repo.size] = repo.id
        conflicts = [repo for repo in self.repos if repo.conflict]
        if conflicts and not self.options.overwrite:
            shown = ", ".join(f"{repo.id} ({repo.conflict})" for repo in conflicts[:3])
            more = f" and {len(conflicts) - 3} more" if len(conflicts) > 3 else ""
            raise ValueError(
                f"{shown}{more} on the Hub {'holds' if len(conflicts) == 1 else 'hold'} other content than this run: "
                "give --overwrite to replace it, --format if it was published in another one, or another --namespace "
                "or --name_template; nothing was sent."
            )
        supernet = self.repos[0]
        if supernet.size is None and SIZES in supernet.remote and not supernet.conflict:
            # it names the sizes that other calls have published
            table = self.hub.read(supernet.id, SIZES, self.options.revision)
            self.published = {**published_sizes(table), **self.published}

    def list_remote(self, repo: _Repo) -> None:
        remote = self.hub.list_files(repo.id, self.options.revision)
        repo.exists, repo.remote = remote is not None, remote or {}

    def first_difference(self, repo: _Repo, model: Mapping[str, Path]) -> str | None:
        """Return the first file of the model that the repository lacks or holds with other content."""
        for path in sorted(model, key=lambda path: model[path].stat().st_size):
            if path not in repo.remote:
                return f"{path} is missing"
            if not self.has_content(repo, path, model[path]):
                return path
        return None

    def outdated_documents(self, repo: _Repo, files: RepoFiles) -> dict[str, bytes]:
        """Return the documents to replace in a repository, with their new content.

        A card that was edited on the Hub stays. Pictures go with the card and are not compared: the same points are
        drawn in other bytes by another version of matplotlib (see `card.stamp`).
        """
        card_files = {path for path in files.documents if Path(path).suffix in (".md", ".png", ".svg")}
        outdated = {
            path: local.read_bytes()
            for path, local in files.documents.items()
            if path not in card_files and not self.has_content(repo, path, local)
        }
        if self.has_content(repo, CARD, files.documents[CARD]):
            return outdated
        if CARD in repo.remote and not self.options.overwrite:
            if not is_unedited(self.hub.read(repo.id, CARD, self.options.revision)):
                if repo.id not in self.result.edited:
                    self.result.edited.append(repo.id)
                return outdated
        return {**outdated, **{path: files.documents[path].read_bytes() for path in card_files}}

    def has_content(self, repo: _Repo, path: str, local: Path) -> bool:
        return self.hub.has_content(repo.id, repo.remote.get(path), local, self.options.revision)

    def publish(self) -> None:
        """Create, fill, replace or renew the repositories one after the other."""
        filled = 0
        for number, repo in enumerate(self.repos, 1):
            if not repo.remote:
                if filled == self.options.max_repos:
                    self.result.left.append(repo.id)
                    continue
                filled += 1
            outcome = self.publish_one(repo)
            if repo.size is not None:
                self.published[repo.size] = repo.id
            self.add_to_collection(repo)
            address = f"{self.hub.api.endpoint}/{repo.id}"
            self.tell(f"[{number}/{len(self.repos)}] {repo.id} ({repo.title}): {outcome}, {address}")
        self.renew_supernet()

    def publish_one(self, repo: _Repo) -> str:
        """Bring one repository up to date, and return what was done."""
        options, result = self.options, self.result
        if repo.remote and not repo.conflict:
            if not repo.outdated:
                result.unchanged.append(repo.id)
                return "already there"
            self.hub.publish(repo.id, repo.outdated, "Renew the card", revision=options.revision, create=False)
            result.renewed.append(repo.id)
            return "card renewed"
        self.tell(f"{repo.id} ...")
        with self.files(repo) as files:
            self.hub.publish(
                repo.id,
                files.all,
                f"Publish {'the supernet' if repo.size is None else repo.title}",
                private=options.private,
                revision=options.revision,
                delete=tuple(path for path in repo.remote if path not in files.all),
                create=not repo.exists,
            )
            result.bytes += files.num_bytes
            (result.replaced if repo.conflict else result.published).append(repo.id)
            return f"{format_bytes(files.num_bytes)} {'replaced' if repo.conflict else 'published'}"

    def renew_supernet(self) -> None:
        """Let the table and the card of the supernet name the sizes that are published by now."""
        repo = self.repos[0]
        if repo.size is not None or repo.id in self.result.left:
            return
        self.list_remote(repo)
        with self.files(repo) as files:
            outdated = self.outdated_documents(repo, files)
        if outdated:
            message = "Name the published sizes"
            self.hub.publish(repo.id, outdated, message, revision=self.options.revision, create=False)
            if repo.id in self.result.unchanged:
                self.result.unchanged.remove(repo.id)
                self.result.renewed.append(repo.id)

    def add_to_collection(self, repo: _Repo) -> None:
        """Add a repository to the collection, which is created for the first one."""
        if not self.options.collection:
            return
        if self.collection is None:
            config = self.release.model.config.backbone_config
            title, description = collection_title(config, self.release.supernet)
            namespace = repo.id.split("/")[0]
            self.collection = self.hub.collection(namespace, title, description, self.options.private)
            self.result.collection = self.collection.url
        if repo.size is None:
            note = "all sizes in one model"
        else:
            note = f"{repo.size}: {format_quantity(self.release.facts.costs[repo.size].parameters)} parameters"
        self.hub.add_to_collection(self.collection, repo.id, note)

    def files(self, repo: _Repo) -> AbstractContextManager[RepoFiles]:
        return repo_files(self.release, repo.size, self.published)
