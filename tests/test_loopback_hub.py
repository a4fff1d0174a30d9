"""The Hub of the tests behaves as the real one where the code under test can tell."""

import hashlib
import threading
import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from .loopback_hub import LoopbackHub
from .loopback_hub.card_rules import validate_card
from .loopback_hub.hub import Account

LARGE = bytes(range(256)) * 40


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def api(hub):
    return HfApi(hub.endpoint, token="hf_me")


def commit(api, repo_id, files, **options):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message="a commit", **options)


def test_what_is_committed_can_be_downloaded_whole_and_in_part(hub, api, tmp_path):
    api.create_repo("me/model")
    commit(api, "me/model", {"a/config.json": b"{}", "model.safetensors": LARGE})
    assert hub.model("me/model").files() == {"a/config.json": b"{}", "model.safetensors": LARGE}
    assert hub.uploads == [("me/model", hashlib.sha256(LARGE).hexdigest(), len(LARGE))]
    folder = Path(snapshot_download("me/model", endpoint=hub.endpoint, cache_dir=tmp_path, token="hf_me"))
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        ".gitattributes", "a/config.json", "model.safetensors",
    }  # fmt: skip
    assert (folder / "model.safetensors").read_bytes() == LARGE
    url = f"{hub.endpoint}/me/model/resolve/main/model.safetensors"
    part = httpx2.get(url, headers={"Range": "bytes=10-19"}, follow_redirects=True)
    assert part.status_code == 206 and part.content == LARGE[10:20]
    assert httpx2.get(url, headers={"Range": "bytes=-5"}, follow_redirects=True).content == LARGE[-5:]


def test_the_tree_gives_the_hashes_of_git_and_of_large_files(hub, api):
    api.create_repo("me/model")
    commit(api, "me/model", {"config.json": b"{}\n", "a/b/model.safetensors": LARGE})
    entries = {entry.path: entry for entry in api.list_repo_tree("me/model", recursive=True)}
    assert set(entries) == {".gitattributes", "config.json", "a", "a/b", "a/b/model.safetensors"}
    assert entries["config.json"].blob_id == "0967ef424bce6791893e9a57bb952f80fd536e93"  # git hash-object of "{}\n"
    assert entries["a/b/model.safetensors"].lfs.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert {entry.path for entry in api.list_repo_tree("me/model")} == {".gitattributes", "config.json", "a"}
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("me/model", "nowhere"))


def test_nothing_is_uploaded_or_committed_twice(hub, api):
    api.create_repo("me/model")
    first = commit(api, "me/model", {"model.safetensors": LARGE, "config.json": b"{}"})
    again = commit(api, "me/model", {"model.safetensors": LARGE, "config.json": b"{}"})
    assert first.oid == again.oid and len(hub.uploads) == 1
    commit(api, "me/model", {"config.json": b"[]", "copy.safetensors": LARGE})
    assert len(hub.uploads) == 1
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        commit(api, "me/model", {"config.json": b"1"}, parent_commit=first.oid)


def test_branches_and_tags(hub, api):
    api.create_repo("me/model")
    start = api.list_repo_commits("me/model")[-1].commit_id
    commit(api, "me/model", {"config.json": b"{}"})
    api.create_branch("me/model", branch="v1", revision=start)
    with pytest.raises(HfHubHTTPError):
        api.create_branch("me/model", branch="v1")
    commit(api, "me/model", {"other.json": b"{}"}, revision="v1")
    assert api.list_repo_files("me/model", revision="v1") == [".gitattributes", "other.json"]
    assert [branch.name for branch in api.list_repo_refs("me/model").branches] == ["main", "v1"]
    api.create_tag("me/model", tag="t", revision="v1")
    assert api.model_info("me/model", revision="t").sha == api.model_info("me/model", revision="v1").sha
    with pytest.raises(RevisionNotFoundError):
        list(api.list_repo_tree("me/model", revision="v2"))


def test_rights(hub, api):
    hub.accounts |= {"hf_read": Account("me", role="read"), "hf_other": Account("other")}
    api.create_repo("me/hidden", private=True)
    for token in (False, "hf_other"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("me/hidden", token=token)
    assert api.model_info("me/hidden", token="hf_read").private
    with pytest.raises(HfHubHTTPError, match="create_pr"):
        commit(api, "me/hidden", {"a": b"1"}, token="hf_read")
    for namespace, token in (("someone", "hf_me"), ("read-only-org", "hf_me"), ("me", "hf_read")):
        with pytest.raises(HfHubHTTPError, match="You don't have the rights to create a model"):
            api.create_repo(f"{namespace}/x", token=token)
    assert api.create_repo("my-org/x") == f"{hub.endpoint}/my-org/x"
    with pytest.raises(HfHubHTTPError, match="already created"):
        api.create_repo("my-org/x")
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_wrong")
    assert api.whoami()["orgs"][0]["name"] == "my-org"


def test_collections(hub, api):
    api.create_repo("me/a")
    collection = api.create_collection("All of it", namespace="me", description="of one run")
    assert api.create_collection("All of it", namespace="me", exists_ok=True).slug == collection.slug
    api.add_collection_item(collection.slug, "me/a", "model", note="the first")
    assert len(api.add_collection_item(collection.slug, "me/a", "model", exists_ok=True).items) == 1
    with pytest.raises(HfHubHTTPError):
        api.add_collection_item(collection.slug, "me/missing", "model")
    with pytest.raises(HfHubHTTPError):
        api.create_collection("x" * 61, namespace="me")
    (listed,) = api.list_collections(owner="me")
    assert listed.title == "All of it" and listed.items[0].item_id == "me/a"


CARD = "---\nlicense: {license}\nbase_model: {base}\n---\n# A card\n"


def test_cards_are_checked(hub, api):
    api.create_repo("me/model")
    with pytest.raises(ValueError, match='"license" must be one of'):
        commit(api, "me/model", {"README.md": CARD.format(license="gpl-9", base="me/other").encode()})
    assert hub.model("me/model").files() == {}
    commit(api, "me/model", {"README.md": CARD.format(license="mit", base="me/other").encode()})
    assert validate_card(CARD.format(license="mit", base="/a/folder"))[0]
    result = "model-index:\n- name: m\n  results:\n  - task: {{type: x}}\n    dataset: {{name: d, type: {}}}\n"
    card = f"---\n{result}    metrics: [{{{{type: accuracy, value: 0.5}}}}]\n---\n"
    assert validate_card(card.format("cifar10")) == ([], [])
    assert "dataset.type" in validate_card(card.format("'a folder'"))[0][0]


def test_faults_strike_when_and_as_often_as_asked(hub, api):
    api.create_repo("me/model")
    busy = hub.inject("POST", "/commit/", at=2, status=429, headers={"Retry-After": "7", "RateLimit": '"api";r=0;t=55'})
    commit(api, "me/model", {"a": b"1"})
    with pytest.raises(HfHubHTTPError) as error:
        commit(api, "me/model", {"a": b"2"})
    assert error.value.response.headers["retry-after"] == "7"
    assert parse_ratelimit_headers(error.value.response.headers).reset_in_seconds == 55
    commit(api, "me/model", {"a": b"3"})
    assert (busy.matched, busy.struck) == (3, 1) and hub.count("POST", "/commit/") == 3


@pytest.mark.parametrize("when", ["before", "after"])
def test_dropped_answers(hub, api, when):
    api.create_repo("me/model")
    hub.inject("POST", "/commit/", drop=when)
    with pytest.raises(httpx2.TransportError):
        commit(api, "me/model", {"a": b"1"})
    assert hub.model("me/model").files() == ({} if when == "before" else {"a": b"1"})
    assert [r.status for r in hub.requests if "/commit/" in r.path] == [None]


def test_held_answers(hub, api):
    api.create_repo("me/model")
    fault = hub.inject("PUT", "/storage/", hold="before")
    thread = threading.Thread(target=commit, args=(api, "me/model", {"m.safetensors": LARGE}))
    thread.start()
    assert fault.reached.wait(10)
    time.sleep(0.05)
    assert not hub.uploads and hub.model("me/model").files() == {}
    fault.release()
    thread.join(10)
    assert hub.model("me/model").files() == {"m.safetensors": LARGE}


def test_missing_files_are_told_from_missing_repos(hub, api, tmp_path):
    api.create_repo("me/model")
    options = {"endpoint": hub.endpoint, "cache_dir": tmp_path, "token": "hf_me"}
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("me/model", "nothing", **options)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("me/nothing", "config.json", **options)
