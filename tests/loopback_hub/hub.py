"""The state of the Hub: accounts, repositories, collections, faults, and a log of requests."""

from __future__ import annotations

import hashlib
import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import ThreadingHTTPServer
from pathlib import Path

from .faults import Fault
from .repositories import Commit, File, Repo


@dataclass
class Account:
    """The owner of a token, and what the token may do.

    Args:
        name: The user.
        orgs: The user's role in each organisation.
        role: The token's role: write, read or fineGrained.
        permissions: What a fineGrained token may do, such as `{"me": ["repo.write", "collection.write"]}`.
    """

    name: str
    orgs: dict[str, str] = field(default_factory=dict)
    role: str = "write"
    permissions: dict[str, list[str]] = field(default_factory=dict)

    def may_read(self, owner: str) -> bool:
        return owner == self.name or owner in self.orgs

    def may_write(self, owner: str, what: str = "repo.write") -> bool:
        if self.role == "read" or owner != self.name and self.orgs.get(owner) not in ("write", "admin", "contributor"):
            return False
        return self.role == "write" or what in self.permissions.get(owner, [])


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    status: int | None  # None: never answered
    received: int


class LoopbackHub:
    """A Hub that serves for as long as the block `with LoopbackHub() as hub:` runs.

    `hub.endpoint` is its address, and `hub.env(home)` the environment of a process that is to use it and nothing else.
    `hub.requests` lists every request, `hub.uploads` every finished upload to large-file storage.
    """

    def __init__(self):
        self.accounts = {"hf_me": Account("me", {"my-org": "write", "read-only-org": "read"})}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.uploads: list[tuple[str, str, int]] = []  # repo, SHA-256, bytes
        self.lock = threading.RLock()

    def __enter__(self) -> LoopbackHub:
        from .server import handler_of

        # large files lie on another host than the Hub itself, so that clients must follow a redirect without the token
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self)) for _ in range(2)]
        self.endpoint, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True) for server in self._servers
        ]
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.daemon_threads = True
            thread.start()
        return self

    def __exit__(self, *error) -> None:
        for fault in self.faults:
            fault.release()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def env(self, home: Path, token: str = "hf_me") -> dict[str, str]:
        """Return the environment of a process that knows no other Hub, with its cache in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": token,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def inject(self, method: str, path: str, **options) -> Fault:
        """Add a `Fault`."""
        fault = Fault(method, path, **options)
        self.faults.append(fault)
        return fault

    def clear(self) -> None:
        """Forget faults, requests and uploads, but not repositories."""
        for fault in self.faults:
            fault.release()
        self.faults.clear()
        self.requests.clear()
        self.uploads.clear()

    def count(self, method: str, path: str) -> int:
        """Count the requests that match both regular expressions."""
        return sum(bool(re.search(method, r.method) and re.search(path, r.path)) for r in self.requests)

    def add_repo(self, repo_id: str, files: dict[str, bytes] | None = None, type: str = "model", **options) -> Repo:
        """Add somebody's repository with one commit of `files`, of which safetensors go to large-file storage."""
        repo = self.repos[type, repo_id] = Repo(type, repo_id, **options)
        if files:
            self.commit(repo, files)
        return repo

    def commit(self, repo: Repo, files: dict[str, bytes], branch: str = "main") -> None:
        head = repo.branches[branch]
        changed = dict(head.files)
        for path, content in files.items():
            large = path.endswith((".safetensors", ".parquet"))
            changed[path] = File(content, hashlib.sha256(content).hexdigest() if large else None)
            if large:
                repo.stored[changed[path].oid] = content
        repo.branches[branch] = Commit(changed, "by hand", parent=head)

    def model(self, repo_id: str) -> Repo:
        return self.repos["model", repo_id]

    def state(self) -> dict:
        """Return what a visitor would find, without the times and hashes of commits, to compare two Hubs."""
        return {
            "repos": {
                f"{repo.type}s/{repo.id}": {"private": repo.private, **{b: repo.files(b) for b in repo.branches}}
                for repo in self.repos.values()
            },
            "collections": {
                collection["title"]: sorted((item["type"], item["id"]) for item in collection["items"])
                for collection in self.collections.values()
            },
        }

    def new_collection(self, account: Account, payload: dict) -> dict:
        slug = re.sub(r"\W+", "-", payload["title"].lower()).strip("-")
        slug = f"{payload['namespace']}/{slug}-{hashlib.sha1(slug.encode()).hexdigest()[:24]}"
        self.collections[slug] = {
            "slug": slug,
            "title": payload["title"],
            "description": payload.get("description"),
            "owner": {"name": payload["namespace"], "type": "user"},
            "items": [],
            "lastUpdated": timestamp(datetime.now(UTC)),
            "position": 0,
            "private": payload.get("private", False),
            "theme": "green",
            "upvotes": 0,
        }
        return self.collections[slug]


def timestamp(date: datetime) -> str:
    return f"{date:%Y-%m-%dT%H:%M:%S}.{date.microsecond // 1000:03d}Z"
