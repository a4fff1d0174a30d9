import pytest

from ...loopback_hub.hub import Account
from .pushes import SMALL, SUPERNET, TWO

ACCOUNTS = {
    "hf_read": Account("me", role="read"),
    "hf_fine": Account("me", role="fineGrained", permissions={"me": ["repo.content.read"]}),
    "hf_repos": Account("me", role="fineGrained", permissions={"me": ["repo.write"]}),
    "hf_ok": Account("me", role="fineGrained", permissions={"me": ["repo.write", "collection.write"]}),
}


@pytest.mark.parametrize(
    ("token", "namespace", "words"),
    [
        ("", "me", "There is no token for the Hub: run `hf auth login`"),
        ("hf_wrong", "me", "does not accept this token"),
        ("hf_read", "me", "may only read 'me'"),
        ("hf_fine", "me", "lacks the right collection.write and repo.write in 'me'"),
        ("hf_repos", "me", "lacks the right collection.write in 'me'"),
        (
            "hf_me",
            "nobody",
            "'nobody' is not a namespace of me, whose token this is: give --namespace one of me, my-org",
        ),
        ("hf_me", "read-only-org", "may only read 'read-only-org'"),
    ],
)
def test_missing_rights_are_told_before_anything_is_sent(vit_run, hub, poa, monkeypatch, token, namespace, words):
    hub.accounts |= ACCOUNTS
    monkeypatch.setenv("HF_TOKEN", token)
    assert words in poa("push", vit_run, "--size", "small", "--namespace", namespace, status=2)
    assert not hub.repos and not hub.collections


def test_offline(vit_run, hub, poa, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "offline" in poa("push", vit_run, *TWO, status=2)
    assert not hub.requests


def test_a_card_that_the_hub_refuses(vit_run, hub, poa):
    hub.inject("POST", "validate-yaml", status=400, message="Invalid metadata", times=None)
    message = poa("push", vit_run, *TWO, status=2)
    assert f"{SUPERNET} could not be published" in message and "Invalid metadata" in message
    assert hub.model(SUPERNET).files() == {}


def test_rights_that_suffice(vit_run, hub, poa, monkeypatch):
    hub.accounts |= ACCOUNTS
    small = ("push", vit_run, "--size", "small", "--no_supernet", "--namespace")
    poa(*small, "my-org")
    monkeypatch.setenv("HF_TOKEN", "hf_ok")
    poa(*small, "me")
    monkeypatch.setenv("HF_TOKEN", "hf_repos")
    poa(*small, "me", "--no_collection", "--name_template", "b-{size}")
    assert [repo_id for _, repo_id in hub.repos] == ["my-org/poa-vit-w16-d1-extracted", SMALL, "me/b-w16-d1"]


def test_rights_that_only_the_hub_knows_of(vit_run, hub, poa):
    hub.inject("POST", "/repos/create", status=403, message="Your plan does not include this", times=None)
    message = poa("push", vit_run, *TWO, status=2)
    assert f"{SUPERNET} could not be published" in message and "Your plan does not include this" in message
    assert not hub.repos and not hub.collections
