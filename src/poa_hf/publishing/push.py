"""Publishing a family: each size is a repo of its own, whole or without weights at every moment.

What is done is read from the Hub itself, by the hashes of the files there: so a second call, also from another machine,
goes on where the first stopped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

from ..elastic import SubNetwork
from ..runs.layout import SIZES
from .card.cards import CARD
from .hub.client import Hub
from .hub.names import family_of, size_title
from .release import Family, Files, is_unedited
from .supernet import repos_in

SUPERNET = "supernet"


@dataclass(frozen=True)
class PushOptions:
    """`max_repos` is the most repos that one call makes or fills; `collection` whether one is kept of all."""

    private: bool = False
    revision: str | None = None
    max_repos: int | None = None
    overwrite: bool = False
    collection: bool = True


@dataclass
class PushResult:
    """Ids of repos by what was done: `published` anew, `replaced`, `renewed` (card and tables alone), `unchanged`,
    `left` for another call. `edited` of these have a card that someone has edited, which is left alone."""

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
    """A repo to be, and what there is of it on the Hub: nothing (`remote` None or empty), the same model, or another
    one (`other` is the first file that differs)."""

    size: SubNetwork | None  # None: the supernet
    id: str
    remote: dict[str, RepoFile] | None = None
    other: str | None = None
    stale: dict[str, bytes] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return SUPERNET if self.size is None else str(self.size)


class _Push:
    """One call of `push`: the family, the Hub, and what is known of its repos."""

    def __init__(self, family: Family, hub: Hub, options: PushOptions, tell: Callable[[str], None]):
        self.family, self.hub, self.options, self.tell = family, hub, options, tell
        self.repos = _repos_of(family)
        self.result = PushResult()
        self.collection = None
        self.there: dict[SubNetwork, str] = {}  # sizes known to be published

    def look(self) -> None:
        """Find out what is there already. ValueError if it must not be replaced."""
        revision = self.options.revision
        for repo in self.repos:
            repo.remote = self.hub.look(repo.id, revision)
        present = [repo for repo in self.repos if repo.remote]
        if present:
            self.tell(f"{len(present)} of {len(self.repos)} repos have content: comparing it with this run ...")
        for repo in present:
            with self.files(repo) as files:
                repo.other = self.different(repo, files.model)
                if repo.other is None and repo.size is not None:
                    repo.stale = self.stale(repo, files)
                    self.there[repo.size] = repo.id
        others = [repo for repo in self.repos if repo.other]
        if others and not self.options.overwrite:
            listed = ", ".join(f"{repo.id} ({repo.other})" for repo in others[:3])
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            raise ValueError(
                f"{listed}{more} on the Hub {'holds' if len(others) == 1 else 'hold'} other content than this run: "
                "give --overwrite to replace it, or another --namespace or --name_template; nothing was sent."
            )
        supernet = self.repos[0]
        if supernet.size is None and supernet.remote and not supernet.other and SIZES in supernet.remote:
            # sizes of this family that other calls have published
            self.there = {**repos_in(self.hub.read(supernet.id, SIZES, revision)), **self.there}

    def different(self, repo: _Repo, model: Mapping[str, Path]) -> str | None:
        """The first file of the model that the repo does not hold as it is here."""
        holds, revision = self.hub.holds, self.options.revision
        for path in sorted(model, key=lambda path: model[path].stat().st_size):
            if not holds(repo.id, repo.remote.get(path), model[path], revision):
                return path if path in repo.remote else f"{path} is missing"
        return None

    def stale(self, repo: _Repo, files: Files) -> dict[str, bytes]:
        """Records that the repo holds otherwise. A card that was edited there stays, and so does its picture, which is
        compared with it alone: the same points are drawn in other bytes by another version of matplotlib."""
        revision = self.options.revision
        with_card = {path for path in files.records if Path(path).suffix in (".md", ".png", ".svg")}
        stale = {
            path: local.read_bytes()
            for path, local in files.records.items()
            if path not in with_card and not self.hub.holds(repo.id, repo.remote.get(path), local, revision)
        }
        card = repo.remote.get(CARD)
        if self.hub.holds(repo.id, card, files.records[CARD], revision):
            return stale
        if card and not self.options.overwrite and not is_unedited(self.hub.read(repo.id, CARD, revision)):
            if repo.id not in self.result.edited:
                self.result.edited.append(repo.id)
            return stale
        return {**stale, **{path: files.records[path].read_bytes() for path in with_card}}

    def publish(self) -> None:
        new = 0
        for number, repo in enumerate(self.repos, 1):
            prefix = f"[{number}/{len(self.repos)}] {repo.id} ({repo.title})"
            if not repo.remote:
                if new == self.options.max_repos:
                    self.result.left.append(repo.id)
                    continue
                new += 1
            done = self.publish_one(repo)
            if repo.size is not None:
                self.there[repo.size] = repo.id
            self.add_to_collection(repo)
            self.tell(f"{prefix}: {done}, {self.hub.api.endpoint}/{repo.id}")
        self.renew_supernet()

    def publish_one(self, repo: _Repo) -> str:
        options, result = self.options, self.result
        if repo.remote and not repo.other:
            if repo.stale:
                self.hub.publish(repo.id, repo.stale, "Renew the card", revision=options.revision, create=False)
                result.renewed.append(repo.id)
                return "card renewed"
            result.unchanged.append(repo.id)
            return "already there"
        self.tell(f"{repo.id} ...")
        with self.files(repo) as files:
            self.hub.publish(
                repo.id,
                files.all,
                f"Publish {'the supernet' if repo.size is None else repo.title}",
                private=options.private,
                revision=options.revision,
                delete=tuple(path for path in repo.remote or () if path not in files.all),
                create=repo.remote is None,
            )
            result.bytes += files.bytes
            (result.replaced if repo.other else result.published).append(repo.id)
            return f"{format_bytes(files.bytes)} {'replaced' if repo.other else 'published'}"

    def renew_supernet(self) -> None:
        """The table and card of the supernet name the sizes that are published by now."""
        repo = self.repos[0]
        if repo.size is not None or repo.id in self.result.left:
            return
        repo.remote = self.hub.look(repo.id, self.options.revision) or {}
        with self.files(repo) as files:
            stale = self.stale(repo, files)
        if stale:
            message = "Name the published sizes"
            self.hub.publish(repo.id, stale, message, revision=self.options.revision, create=False)
            if repo.id in self.result.unchanged:
                self.result.unchanged.remove(repo.id)
                self.result.renewed.append(repo.id)

    def add_to_collection(self, repo: _Repo) -> None:
        if not self.options.collection:
            return
        if self.collection is None:
            title, description = collection_of(self.family)
            namespace = repo.id.split("/")[0]
            self.collection = self.hub.collection(namespace, title, description, self.options.private)
            self.result.collection = self.collection.url
        parameters = None if repo.size is None else self.family.facts.costs[repo.size].parameters
        note = "all sizes in one model" if repo.size is None else f"{repo.size}: {parameters / 1e6:.3g} M parameters"
        self.hub.add_to_collection(self.collection, repo.id, note)

    @contextmanager
    def files(self, repo: _Repo) -> Iterator[Files]:
        with repo_files(self.family, repo.size, self.there) as files:
            yield files


def push(
    family: Family,
    hub: Hub | None = None,
    options: PushOptions = PushOptions(),  # noqa: B008 (frozen)
    tell: Callable[[str], None] = print,
) -> PushResult:
    """Publish a family: the supernet, then each size, then a collection of them; `tell` gets a line for each repo.

    Everything that can be checked is checked before anything is sent. A repo is filled by one commit. One that holds
    the same model already is left alone, but for a card or table that says something else by now and that nobody has
    edited.

    Raises:
        ValueError: If the token lacks rights, a repo holds something else and `overwrite` is not set, or the Hub
            refuses or does not answer for long. What is published by then is whole.
    """
    hub = hub or Hub()
    namespace = next(repo.id for repo in _repos_of(family)).split("/")[0]
    hub.check_rights(namespace, options.collection)
    call = _Push(family, hub, options, tell)
    call.look()
    call.publish()
    return call.result


def rehearse(family: Family, tell: Callable[[str], None] = print) -> int:
    """Write every repo into a temporary folder, one after the other, and tell what would be sent; gives the bytes. The
    Hub is not asked."""
    repos = _repos_of(family)
    total = 0
    for number, repo in enumerate(repos, 1):
        with repo_files(family, repo.size, family.ids) as files:
            total += files.bytes
            tell(f"[{number}/{len(repos)}] {repo.id} ({repo.title}): {len(files.all)} files, {files.bytes:,} bytes")
            for path, local in files.all.items():
                tell(f"    {local.stat().st_size:>15,}  {path}")
    return total


@contextmanager
def repo_files(family: Family, size: SubNetwork | None, published: Mapping[SubNetwork, str]) -> Iterator[Files]:
    """The files of one repo (`size` None: the supernet's), which are gone afterwards: all at once may be too many."""
    with tempfile.TemporaryDirectory(prefix="poa-push-") as folder:
        yield family.supernet_files(Path(folder), published) if size is None else family.size_files(size, Path(folder))


def _repos_of(family: Family) -> list[_Repo]:
    supernet = [_Repo(None, family.supernet)] if family.supernet else []
    return supernet + [_Repo(size, repo_id) for size, repo_id in family.ids.items()]


def collection_of(family: Family) -> tuple[str, str]:
    """Title and description of a family's collection; the Hub takes 60 and 150 characters."""
    config = family.model.config.backbone_config
    if family.supernet:
        name = family.supernet.split("/")[1].removesuffix("-supernet")
    else:
        name = f"poa-{family_of(config)}-{size_title(config, config.space.full)}"
    title = f"{name}: one pre-training, all sizes" if len(name) <= 30 else name[:60]
    return title, f"{len(config.space)} sizes of one model, pre-trained once without labels (POA, arXiv 2408.01031)"


def format_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
