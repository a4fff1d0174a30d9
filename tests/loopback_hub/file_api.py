"""The endpoints of files: list them, download them whole or in part, and large-file storage."""

from __future__ import annotations

import hashlib
import json
import re

from .repo_api import ID, REPO, REVISION, commit_of
from .repositories import Commit, File, git_blob
from .server import Answer, Call, Refused, endpoint

PREFIX = r"/(?P<prefix>datasets/|spaces/)?"


def _type(prefix: str) -> str:
    return prefix.rstrip("s/") if prefix else "model"


@endpoint("GET", rf"{REPO}/tree/{REVISION}(/(?P<folder>.+))?")
def tree(call: Call, kind: str, repo_id: str, revision: str, folder: str = "") -> Answer:
    files = commit_of(call.repo(kind[:-1], repo_id), revision).files
    prefix = f"{folder.strip('/')}/" if folder else ""
    below = {path: file for path, file in sorted(files.items()) if path.startswith(prefix)}
    if prefix and not below:
        raise Refused(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
    recursive = call.query.get("recursive", ["false"])[0].lower() in ("true", "1")
    folders = _folders(below, prefix, recursive)
    shown = [file.as_entry(path) for path, file in below.items() if recursive or "/" not in path[len(prefix) :]]
    return Answer.of([_expanded(call, entry, files, commit_of(call.repo(kind[:-1], repo_id), revision))
                      for entry in [*folders, *shown]])  # fmt: skip


def _folders(files: dict[str, File], prefix: str, recursive: bool) -> list[dict]:
    names = set()
    for path in files:
        parts = path[len(prefix) :].split("/")[:-1]
        names |= {prefix + "/".join(parts[: n + 1]) for n in range(len(parts) if recursive else min(len(parts), 1))}
    return [_folder(name) for name in sorted(names)]


def _folder(name: str) -> dict:
    return {"type": "directory", "oid": git_blob(name.encode()), "size": 0, "path": name}


def _expanded(call: Call, entry: dict, files: dict, commit: Commit) -> dict:
    if call.query.get("expand", ["false"])[0].lower() in ("true", "1"):
        last = {"id": commit.oid, "title": commit.title, "date": f"{commit.date:%Y-%m-%dT%H:%M:%S}.000Z"}
        return {**entry, "lastCommit": last}
    return entry


@endpoint("POST", rf"{REPO}/paths-info/{REVISION}")
def paths_info(call: Call, kind: str, repo_id: str, revision: str) -> Answer:
    files = commit_of(call.repo(kind[:-1], repo_id), revision).files
    if "json" in call.headers.get("content-type", ""):
        paths = call.json["paths"]
    else:
        from urllib.parse import parse_qs

        paths = parse_qs(call.body.decode()).get("paths", [])
    entries = []
    for path in [paths] if isinstance(paths, str) else paths:
        path = path.strip("/")
        if path in files:
            entries.append(files[path].as_entry(path))
        elif any(name.startswith(f"{path}/") for name in files):
            entries.append(_folder(path))
    return Answer.of(entries)


@endpoint("GET", rf"{PREFIX}{ID}/resolve/{REVISION}/(?P<path>.+)")
def resolve(call: Call, repo_id: str, revision: str, path: str, prefix: str = "") -> Answer:
    """Answer with a small file, or redirect to the storage of a large one, as the Hub does."""
    commit = commit_of(call.repo(_type(prefix), repo_id), revision)
    file = commit.files.get(path)
    if file is None:
        refused = Refused(404, "Entry not found", "EntryNotFound")
        refused.answer.headers["X-Repo-Commit"] = commit.oid
        raise refused
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    if file.oid:
        link = {"X-Linked-Size": str(len(file.content)), "X-Linked-ETag": f'"{file.oid}"'}
        location = f"{call.hub.storage}/storage/{prefix}{repo_id}/{file.oid}"
        return Answer(302, b"", {**headers, **link, "Location": location})
    return _ranged(call, file.content, headers)


@endpoint("GET", rf"/storage/(?P<prefix>datasets/|spaces/)?{ID}/(?P<oid>[0-9a-f]{{64}})")
def storage(call: Call, repo_id: str, oid: str, prefix: str = "") -> Answer:
    return _ranged(call, call.hub.repos[_type(prefix), repo_id].stored[oid], {"ETag": f'"{oid}"'})


def _ranged(call: Call, content: bytes, headers: dict[str, str]) -> Answer:
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("range", ""))
    if match is None:
        return Answer(200, content, {**headers, "Content-Length": str(len(content))})
    if match[1]:
        start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
    else:
        start, end = max(0, len(content) - int(match[2])), len(content) - 1
    if start >= len(content):
        return Answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
    part = content[start : end + 1]
    span = {"Content-Range": f"bytes {start}-{end}/{len(content)}", "Content-Length": str(len(part))}
    return Answer(206, part, {**headers, **span})


@endpoint("POST", rf"{PREFIX}{ID}\.git/info/lfs/objects/batch")
def lfs_batch(call: Call, repo_id: str, prefix: str = "") -> Answer:
    """Name the addresses to upload to; what is stored already has none."""
    repo = call.repo(_type(prefix), repo_id, write=True)
    base, verify = (f"{host}/storage/{prefix}{repo_id}" for host in (call.hub.storage, call.hub.endpoint))
    objects = []
    for wanted in call.json["objects"]:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in repo.stored:
            actions = {"upload": {"href": f"{base}/{wanted['oid']}"}, "verify": {"href": f"{verify}/verify"}}
            answer["actions"] = actions
        objects.append(answer)
    return Answer(
        200, json.dumps({"transfer": "basic", "objects": objects}).encode(), {"Content-Type": "application/json"}
    )


@endpoint("PUT", rf"/storage/(?P<prefix>datasets/|spaces/)?{ID}/(?P<oid>[0-9a-f]{{64}})")
def lfs_upload(call: Call, repo_id: str, oid: str, prefix: str = "") -> Answer:
    if hashlib.sha256(call.body).hexdigest() != oid:
        raise Refused(400, "The content does not match its SHA-256")
    call.hub.repos[_type(prefix), repo_id].stored[oid] = call.body
    call.hub.uploads.append((f"{prefix}{repo_id}", oid, len(call.body)))
    return Answer()


@endpoint("POST", rf"/storage/(?P<prefix>datasets/|spaces/)?{ID}/verify")
def lfs_verify(call: Call, repo_id: str, prefix: str = "") -> Answer:
    stored = call.hub.repos[_type(prefix), repo_id].stored.get(call.json["oid"])
    if stored is None or len(stored) != call.json["size"]:
        raise Refused(404, "The object was not uploaded")
    return Answer.of({})
