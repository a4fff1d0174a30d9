"""The endpoints of accounts and of whole repositories: create, list, describe, commit, branch."""

from __future__ import annotations

import base64
import hashlib
import json
import re

from .card_rules import card_data, validate_card
from .hub import timestamp
from .repositories import Commit, File, Repo
from .server import Answer, Call, Refused, endpoint

ID = r"(?P<repo_id>[\w.-]+/[\w.-]+)"
REPO = rf"/api/(?P<kind>models|datasets|spaces)/{ID}"
REVISION = r"(?P<revision>[^/]+)"


def commit_of(repo: Repo, revision: str) -> Commit:
    commit = repo.find(revision)
    if commit is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


@endpoint("GET", "/api/whoami-v2")
def whoami(call: Call) -> Answer:
    account = call.account
    if account is None:
        raise Refused(401, "Invalid username or password.")
    token = {"displayName": "a token", "role": account.role}
    if account.role == "fineGrained":
        scoped = [
            {"entity": {"type": "user", "name": name}, "permissions": list(permissions)}
            for name, permissions in account.permissions.items()
        ]
        token["fineGrained"] = {"global": [], "scoped": scoped}
    orgs = [{"type": "org", "name": name, "roleInOrg": role} for name, role in account.orgs.items()]
    auth = {"type": "access_token", "accessToken": token}
    return Answer.of({"type": "user", "name": account.name, "orgs": orgs, "auth": auth})


@endpoint("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Answer:
    errors, warnings = validate_card(call.json["content"], call.json.get("repoType") or "model")
    messages = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
    return Answer.of(messages, 400 if errors else 200)


@endpoint("POST", "/api/repos/create")
def create(call: Call) -> Answer:
    if call.account is None:
        raise Refused(401, "Invalid username or password.")
    payload = call.json
    owner, type = payload.get("organization") or call.account.name, payload.get("type") or "model"
    if not call.account.may_write(owner):
        raise Refused(403, f'You don\'t have the rights to create a {type} under the namespace "{owner}"')
    repo_id = f"{owner}/{payload['name']}"
    url = f"{call.hub.endpoint}/{'' if type == 'model' else type + 's/'}{repo_id}"
    if (type, repo_id) in call.hub.repos:
        raise Refused(409, f"You already created this {type} repo", url=url)
    private = payload.get("visibility") == "private" or bool(payload.get("private"))
    call.hub.repos[type, repo_id] = Repo(type, repo_id, private)
    return Answer.of({"url": url, "name": repo_id, "id": repo_id})


@endpoint("GET", "/api/(?P<kind>models|datasets)")
def list_repos(call: Call, kind: str) -> Answer:
    author = call.query.get("author", [None])[0]
    found = [repo for repo in call.hub.repos.values() if repo.type + "s" == kind and author in (None, repo.owner)]
    visible = [r for r in found if not r.private or call.account and call.account.may_read(r.owner)]
    return Answer.of([_info(repo, repo.branches["main"]) for repo in visible])


@endpoint("GET", rf"{REPO}(/revision/{REVISION})?")
def info(call: Call, kind: str, repo_id: str, revision: str = "main") -> Answer:
    repo = call.repo(kind[:-1], repo_id)
    return Answer.of(_info(repo, commit_of(repo, revision)))


def _info(repo: Repo, commit: Commit) -> dict:
    readme = commit.files.get("README.md")
    card = card_data(readme.content.decode()) if readme else {}
    return {
        "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.owner,
        "sha": commit.oid,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags") or [],
        "library_name": card.get("library_name"),
        "pipeline_tag": card.get("pipeline_tag"),
        "cardData": card or None,
        "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        "createdAt": timestamp(commit.history()[-1].date),
        "lastModified": timestamp(commit.date),
    }


@endpoint("GET", rf"{REPO}/refs")
def refs(call: Call, kind: str, repo_id: str) -> Answer:
    repo = call.repo(kind[:-1], repo_id)
    listed = {
        name: [{"name": n, "ref": f"refs/{ref}/{n}", "targetCommit": c.oid} for n, c in commits.items()]
        for name, ref, commits in (("branches", "heads", repo.branches), ("tags", "tags", repo.tags))
    }
    return Answer.of({**listed, "converts": [], "pullRequests": []})


@endpoint("GET", rf"{REPO}/commits/{REVISION}")
def commits(call: Call, kind: str, repo_id: str, revision: str) -> Answer:
    history = commit_of(call.repo(kind[:-1], repo_id), revision).history()
    return Answer.of(
        [
            {
                "id": c.oid,
                "title": c.title,
                "message": c.message,
                "authors": [{"user": "me"}],
                "date": timestamp(c.date),
            }
            for c in history
        ]
    )


@endpoint("POST", rf"{REPO}/(?P<what>branch|tag)/{REVISION}")
def create_ref(call: Call, kind: str, repo_id: str, what: str, revision: str) -> Answer:
    """Create a branch or a tag; for a tag, the revision in the path is the one to tag."""
    repo = call.repo(kind[:-1], repo_id, write=True)
    name, start = (revision, call.json.get("startingPoint")) if what == "branch" else (call.json["tag"], revision)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) or name.startswith("refs/"):
        raise Refused(400, f"Invalid reference name: {name}")
    references = repo.branches if what == "branch" else repo.tags
    if name in references:
        raise Refused(409, f"Reference already exists: {name}")
    references[name] = commit_of(repo, start or "main")
    return Answer.of({})


@endpoint("POST", rf"{REPO}/preupload/{REVISION}")
def preupload(call: Call, kind: str, repo_id: str, revision: str) -> Answer:
    repo = call.repo(kind[:-1], repo_id, write=True)
    present = commit_of(repo, revision).files
    answers = []
    for file in call.json["files"]:
        path = file["path"]
        large = repo.is_large(revision, path, file["size"], base64.b64decode(file["sample"]))
        answer = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if path in present:
            answer["oid"] = present[path].etag
        answers.append(answer)
    return Answer.of({"files": answers})


@endpoint("POST", rf"{REPO}/commit/{REVISION}")
def commit(call: Call, kind: str, repo_id: str, revision: str) -> Answer:
    repo = call.repo(kind[:-1], repo_id, write=True)
    if revision not in repo.branches:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    head = repo.branches[revision]
    files, header = dict(head.files), {}
    for line in call.body.splitlines():
        item = json.loads(line)
        key, value = item["key"], item["value"]
        if key == "header":
            header = value
        elif key == "file":
            files[value["path"]] = File(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in repo.stored:
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            files[value["path"]] = File(repo.stored[value["oid"]], value["oid"])
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Refused(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")
        elif key == "deletedFolder":
            files = {path: file for path, file in files.items() if not path.startswith(value["path"])}
    if header.get("parentCommit") not in (None, head.oid):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    for path, file in files.items():
        if file is not head.files.get(path) and not file.oid and repo.is_large(revision, path, 0, file.content[:512]):
            raise Refused(400, f"Your push was rejected because it contains binary files: {path}")
    if "README.md" in files and files["README.md"] is not head.files.get("README.md"):
        errors, _ = validate_card(files["README.md"].content.decode(), repo.type)
        if errors:
            raise Refused(400, f"Metadata error: {errors[0]}")
    new = repo.branches[revision] = Commit(files, header.get("summary", ""), header.get("description", ""), head)
    url = f"{call.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{repo_id}/commit/{new.oid}"
    return Answer.of({"success": True, "commitOid": new.oid, "commitUrl": url})
