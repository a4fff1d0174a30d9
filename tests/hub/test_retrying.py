import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from poa_hf.hub.retrying import Patience, describe, requested_wait

from ..loopback_hub import LoopbackHub


@pytest.fixture
def server():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def slept():
    return []


@pytest.fixture
def patience(slept):
    return Patience(attempts=4, sleep=slept.append)


def ask(hub):
    return HfApi(hub.endpoint, token="hf_me").whoami()["name"]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_hub_is_asked_again_after_longer_and_longer(server, patience, slept, status):
    server.inject("GET", "whoami", status=status, times=3)
    assert patience(lambda: ask(server)) == "me"
    assert slept == [1, 2, 4] and len(server.requests) == 4


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "17"}, 17),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=3;t=55'}, 1),
        ({"Retry-After": "soon"}, 1),
    ],
)
def test_it_waits_as_long_as_it_is_asked(server, patience, slept, headers, wait):
    server.inject("GET", "whoami", status=429, headers=headers)
    assert patience(lambda: ask(server)) == "me" and slept == [wait]


def test_it_does_not_wait_for_an_hour(server, patience, slept):
    server.inject("GET", "whoami", status=429, headers={"Retry-After": "3600"})
    with pytest.raises(HfHubHTTPError) as error:
        patience(lambda: ask(server))
    assert requested_wait(error.value) == 3600 and slept == []


def test_it_gives_up(server, patience, slept):
    server.inject("GET", "whoami", status=503, times=None, message="Down for maintenance")
    with pytest.raises(HfHubHTTPError) as error:
        patience(lambda: ask(server))
    assert len(server.requests) == 4 and describe(error.value) == "the Hub answered 503 (Down for maintenance)"


@pytest.mark.parametrize("drop", ["before", "after"])
def test_broken_connections(server, patience, slept, drop):
    server.inject("GET", "whoami", drop=drop, times=2)
    assert patience(lambda: ask(server)) == "me" and slept == [1, 2]


def test_what_another_attempt_would_not_change(server, patience, slept):
    server.inject("GET", "whoami", status=403)
    with pytest.raises(HfHubHTTPError):
        patience(lambda: ask(server))
    with pytest.raises(ZeroDivisionError):
        patience(lambda: 1 / 0)
    assert slept == []
