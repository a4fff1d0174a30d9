"""Repositories: branches of commits, and the content of large-file storage."""

from __future__ import annotations

import fnmatch
import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime

MODEL_ATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n"
    for suffix in ("bin", "h5", "msgpack", "npy", "npz", "onnx", "parquet", "pt", "pth", "safetensors", "tar", "zip")
)
_LARGE = 10 * 1024 * 1024


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a commit. The content of a large one lies in the storage under its SHA-256, `oid`."""

    content: bytes
    oid: str | None = None

    @property
    def pointer(self) -> bytes:
        header = "version https://git-lfs.github.com/spec/v1"
        return f"{header}\noid sha256:{self.oid}\nsize {len(self.content)}\n".encode()

    @property
    def blob(self) -> str:
        return git_blob(self.pointer if self.oid else self.content)

    @property
    def etag(self) -> str:
        return self.oid or self.blob

    def as_entry(self, path: str) -> dict:
        """Return the file as the tree endpoint lists it."""
        entry = {"type": "file", "oid": self.blob, "size": len(self.content), "path": path}
        if self.oid:
            entry["lfs"] = {"oid": self.oid, "size": len(self.content), "pointerSize": len(self.pointer)}
        return entry


@dataclass(frozen=True)
class Commit:
    files: dict[str, File]
    title: str
    message: str = ""
    parent: Commit | None = None
    date: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def oid(self) -> str:
        listing = "".join(f"{path} {file.blob}\n" for path, file in sorted(self.files.items()))
        lines = f"{self.parent.oid if self.parent else ''}\n{self.date.isoformat()}\n{self.title}\n{listing}"
        return hashlib.sha1(lines.encode()).hexdigest()

    def history(self) -> list[Commit]:
        """Return this commit and its ancestors, newest first."""
        return [self, *(self.parent.history() if self.parent else [])]


@dataclass
class Repo:
    type: str
    id: str
    private: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # large-file storage by SHA-256

    def __post_init__(self):
        attributes = File(MODEL_ATTRIBUTES.encode())
        self.branches.setdefault("main", Commit({".gitattributes": attributes}, "initial commit"))

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def find(self, revision: str) -> Commit | None:
        """Return the commit of a branch, a tag or a hash."""
        if revision in self.branches or revision in self.tags:
            return self.branches.get(revision) or self.tags[revision]
        commits = (commit for head in self.branches.values() for commit in head.history())
        return next((commit for commit in commits if commit.oid == revision), None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Return the content of every file, except those that the Hub itself made."""
        files = self.branches[revision].files
        return {path: file.content for path, file in sorted(files.items()) if path != ".gitattributes"}

    def is_large(self, revision: str, path: str, size: int, sample: bytes) -> bool:
        """Whether a file must go to large-file storage: by .gitattributes, for its size, or because it is not text."""
        commit = self.find(revision)
        attributes = commit.files.get(".gitattributes") if commit else None
        patterns = attributes.content.decode().splitlines() if attributes else []
        if any(fnmatch.fnmatch(path, line.split()[0]) for line in patterns if "filter=lfs" in line):
            return True
        return size >= _LARGE or b"\0" in sample
