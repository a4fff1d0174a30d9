import httpx2
import pytest
from huggingface_hub import HfApi, get_session

from poa_hf.hub.retrying import Patience
from poa_hf.hub.timeout import hub_timeout

from ..loopback_hub import LoopbackHub


def test_a_silent_hub_is_given_up(monkeypatch):
    """`huggingface_hub` itself would wait for ever."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    slept = []
    patience = Patience(attempts=4, sleep=slept.append)
    with LoopbackHub() as hub, hub_timeout(0.2):
        api = HfApi(hub.endpoint, token="hf_me")
        hub.inject("GET", "whoami", hold="before", times=2)
        assert patience(api.whoami)["name"] == "me" and slept == [1, 2]
        hub.add_repo("me/x")
        hub.inject("GET", "/tree/", hold="before", times=None)
        with pytest.raises(httpx2.TimeoutException):
            list(api.list_repo_tree("me/x"))


def test_the_limit_ends_with_the_command():
    hooks = get_session().event_hooks
    with hub_timeout(0.2):
        assert len(get_session().event_hooks["request"]) == len(hooks["request"]) + 1
    assert get_session().event_hooks == hooks
