"""A limit on how long a command waits for the Hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import get_session, set_client_factory


@contextmanager
def hub_timeout(seconds: float) -> Iterator[None]:
    """Limit how long requests of `huggingface_hub` wait for the Hub's next byte; by default some wait forever.

    The process's HTTP client is replaced within the block, so this is for commands, which own their process. A client
    factory that was set before is no longer called, but its event hooks stay.
    """
    hooks = get_session().event_hooks

    def limit(request: httpx2.Request) -> None:
        limits = request.extensions.get("timeout") or {}
        unlimited = {phase: seconds for phase in ("connect", "read", "write", "pool") if limits.get(phase) is None}
        request.extensions["timeout"] = {**limits, **unlimited}

    def client_with(*request_hooks: Callable[[httpx2.Request], None]) -> httpx2.Client:
        event_hooks = {**hooks, "request": [*request_hooks, *hooks.get("request", [])]}
        return httpx2.Client(event_hooks=event_hooks, follow_redirects=True, timeout=None)

    set_client_factory(lambda: client_with(limit))
    try:
        yield
    finally:
        set_client_factory(client_with)
