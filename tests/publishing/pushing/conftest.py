import pytest
from huggingface_hub import HfApi

from poa_hf.hub.client import Hub
from poa_hf.publishing.push import push
from poa_hf.publishing.release import Release
from poa_hf.selection.costs import costs

from ...loopback_hub import LoopbackHub
from .pushes import hasten


@pytest.fixture
def pictures():
    """For tests that need pictures in cards; the others have none, as without matplotlib, and take half the time."""


@pytest.fixture(scope="package")
def counted_once():
    """Costs of a configuration do not change from test to test."""
    counted = {}

    def once(config):
        key = config.to_json_string()
        if key not in counted:
            counted[key] = costs(config)
        return counted[key]

    return once


@pytest.fixture(autouse=True)
def haste(request, monkeypatch, counted_once):
    """Waiting between attempts takes no time, and little is done twice."""
    hasten(monkeypatch, counted_once, "pictures" in request.fixturenames)
    monkeypatch.setattr("poa_hf.hub.retrying.time.sleep", lambda seconds: None)


@pytest.fixture(scope="module")
def expected(vit_run, counted_once) -> dict:
    """What two pushed sizes and their supernet look like, pushed without trouble to another Hub."""
    with pytest.MonkeyPatch.context() as patch, LoopbackHub() as hub:
        hasten(patch, counted_once)
        release = Release.from_run(vit_run, "small,24x2", "me")
        push(release, Hub(HfApi(hub.endpoint, token="hf_me")), tell=lambda line: None)
        return hub.state()
