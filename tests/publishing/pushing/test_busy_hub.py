import itertools
import json

import pytest

from poa_hf import PoaForPreTraining
from poa_hf.hub.client import Hub
from poa_hf.publishing.push import push
from poa_hf.publishing.release import Release

from ...conftest import save_run, tiny_backbone, tiny_config
from .pushes import FAULTS, TWO, assert_whole_or_empty, pushed

ONCE = [("GET", "whoami"), ("GET", "/collections"), ("POST", "/collections$")]
OFTEN = [
    ("GET", "/tree/"), ("POST", "/repos/create"), ("POST", "validate-yaml"), ("POST", "/preupload/"),
    ("POST", "objects/batch"), ("PUT", "/storage/"), ("POST", "/verify"), ("POST", "/commit/"),
    ("POST", "/collections/.*/items"),
]  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_busy_hub_makes_no_difference(vit_run, hub, expected, kind):
    """Every kind of call fails, most of them at their first and at a later call."""
    faults = [hub.inject(*call, **FAULTS[kind]) for call in ONCE + OFTEN]
    faults += [hub.inject(*call, at=3, **FAULTS[kind]) for call in OFTEN]
    pushed(vit_run)
    assert hub.state() == expected
    assert all(fault.struck for fault in faults)
    if kind != "dropped answer":  # one that was lost after an upload cannot be told from one lost before
        assert len(hub.uploads) == len(set(hub.uploads))


def test_a_hub_that_stays_silent(vit_run, hub, expected, poa):
    for call in (("POST", "/repos/create"), ("POST", "/commit/")):
        hub.inject(*call, hold="after")
    poa("push", vit_run, *TWO, "--timeout", "0.5")
    assert hub.state() == expected


@pytest.mark.parametrize("call", [("POST", "/repos/create"), ("PUT", "/storage/"), ("POST", "/commit/")])
def test_what_fails_for_good_leaves_whole_repos(vit_run, hub, expected, poa, call):
    hub.inject(*call, at=2, status=503, times=None, message="Down")
    message = poa("push", vit_run, *TWO, status=2)
    assert "503 (Down)" in message and "run the same command again, it continues where it stopped" in message
    assert_whole_or_empty(hub, expected)
    hub.clear()
    poa("push", vit_run, *TWO)
    assert hub.state() == expected


def test_a_rate_limit_of_an_hour(vit_run, hub, poa, expected):
    hub.inject("POST", "/repos/create", at=2, status=429, headers={"Retry-After": "3600"}, times=None)
    message = poa("push", vit_run, *TWO, status=2)
    assert "429" in message and "later, run the same command again" in message
    assert hub.count("POST", "/repos/create") == 2
    hub.clear()
    poa("push", vit_run, *TWO)
    assert hub.state() == expected


@pytest.mark.slow
def test_interrupted_after_any_line(vit_run, hub, expected):
    """Ctrl-C between the steps of a push: the next call does the rest, and nothing is sent twice."""
    for lines in range(1, 7):
        hub.repos.clear(), hub.collections.clear(), hub.clear()
        told = []

        def tell(line, told=told, lines=lines):
            told.append(line)
            if len(told) == lines:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            push(Release.from_run(vit_run, "small,24x2", "me"), Hub(), tell=tell)
        assert_whole_or_empty(hub, expected)
        pushed(vit_run)
        assert hub.state() == expected and len(hub.uploads) == len(set(hub.uploads))
    assert len(told) == 6  # the last line there is: every one was tried


def test_some_repos_at_a_time(vit_run, hub, expected, poa):
    limited = ("push", vit_run, *TWO, "--max_repos", "1")
    assert "1 published, 2 left" in poa(*limited) and len(hub.repos) == 1
    printed = poa(*limited)
    assert "1 published, 1 unchanged, 1 left" in printed or "1 published, 1 renewed, 1 left" in printed
    assert "run the same command again for the 1 left" in printed
    poa(*limited)
    assert hub.state() == expected and len(hub.uploads) == len(set(hub.uploads))


@pytest.mark.slow
def test_143_sizes_on_a_bad_day(hub, poa, tmp_path):
    """143 sizes as of a ViT-L, 60 repos a call, and for long every thirteenth request fails in some way."""
    backbone = tiny_backbone(
        hidden_size=32, num_attention_heads=16, min_hidden_size=12, num_hidden_layers=13, min_num_hidden_layers=1
    )
    run = save_run(PoaForPreTraining(tiny_config(backbone)), tmp_path / "run")
    assert len(backbone.space) == 143
    faults = [hub.inject(".", "/api/|/storage/|/lfs/", at=n, **FAULTS[kind])
              for n, kind in zip(range(5, 1400, 13), itertools.cycle(FAULTS), strict=False)]  # fmt: skip
    for left in (84, 24):
        assert f"{left} left" in poa("push", run, "--all", "--namespace", "me", "--max_repos", "60")
        assert len(hub.repos) == 144 - left
    poa("push", run, "--all", "--namespace", "me")
    assert len(hub.repos) == 144 and all(fault.struck for fault in faults)
    table = json.loads(hub.model("me/poa-vit-w32-d13-supernet").files()["sizes.json"])
    assert all(row["repo"] in {repo_id for _, repo_id in hub.repos} for row in table["sizes"])
    assert len(hub.state()["collections"].popitem()[1]) == 144
    hub.clear()
    assert "144 unchanged" in poa("push", run, "--all", "--namespace", "me") and not hub.uploads
