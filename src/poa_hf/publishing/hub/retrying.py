"""Calling the Hub again when it is busy or out of reach, and saying in a sentence why it did not work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2
from huggingface_hub import get_session, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
CONFLICT = frozenset({409, 412})  # of commits: another one came first


@dataclass(frozen=True)
class Patience:
    """`patience(function, ...)` calls it until it succeeds, fails for good, or has failed for `attempts` times.

    `huggingface_hub` itself tries again when it lists, downloads or uploads files, but not when it creates repos and
    collections, commits or asks who we are. Between attempts it waits as long as the Hub says (`Retry-After`), or 1, 2,
    4, ... up to `longest_step` seconds. Where the Hub asks for more than `longest` seconds, the error is raised.
    """

    attempts: int = 8
    longest: float = 900.0
    longest_step: float = 60.0
    sleep: Callable[[float], None] = field(default_factory=lambda: time.sleep)

    def __call__(self, function: Callable[..., Result], *args, also: frozenset[int] = frozenset(), **options) -> Result:
        """`also` are further HTTP statuses after which another attempt makes sense."""
        for attempt in range(self.attempts):
            try:
                return function(*args, **options)
            except Exception as error:
                wait = asked_wait(error)
                if not is_passing(error, also) or attempt + 1 == self.attempts or (wait or 0) > self.longest:
                    raise
                if wait is None:
                    wait = min(self.longest_step, 2.0**attempt)
                logger.warning("%s; trying again in %.0f s.", reason(error), wait)
                self.sleep(wait)
        raise AssertionError("unreachable")


def is_passing(error: BaseException, also: frozenset[int] = frozenset()) -> bool:
    """Whether a later attempt may succeed: a status that says so, a time-out, a connection that broke."""
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        if isinstance(cause, HfHubHTTPError):
            return cause.response.status_code in BUSY | also
        if isinstance(cause, httpx2.TransportError | ConnectionError | TimeoutError):
            return True
    # what hf_xet raises when an upload breaks, which carries nothing else
    return type(error) is RuntimeError and error.__cause__ is None


def asked_wait(error: BaseException) -> float | None:
    """How many seconds the Hub asks to wait; None where it does not say."""
    for cause in _causes(error):
        if not isinstance(cause, HfHubHTTPError):
            continue
        headers = cause.response.headers
        value = headers.get("retry-after", "").strip()
        if value.isdigit():
            return float(value)
        if value:
            try:
                return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
            except (TypeError, ValueError):
                pass
        limit = parse_ratelimit_headers(headers)
        if cause.response.status_code == 429 and limit is not None and limit.remaining == 0:
            return float(limit.reset_in_seconds)
    return None


def status_of(error: BaseException) -> int | None:
    return next((cause.response.status_code for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)


def reason(error: BaseException) -> str:
    """A few words, without the Hub's lines on links and request numbers."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            said = cause.response.headers.get("x-error-message") or cause.server_message or ""
            return f"the Hub answered {cause.response.status_code}{f' ({_line(said)})' if said else ''}"
        if isinstance(cause, OfflineModeIsEnabled):
            return "huggingface_hub is offline by HF_HUB_OFFLINE"
        if isinstance(cause, httpx2.TimeoutException | TimeoutError):
            return "the Hub did not answer in time"
        if isinstance(cause, httpx2.TransportError | ConnectionError):
            return f"the connection to the Hub broke ({_line(cause) or type(cause).__name__})"
    return _line(error)


def limit_time(seconds: float) -> None:
    """From now on, no request of `huggingface_hub` waits longer than this for the Hub's next byte; by default some wait
    for ever."""
    hooks = get_session().event_hooks

    def give_up(request: httpx2.Request) -> None:
        limits = request.extensions.get("timeout") or {}
        unlimited = {name: seconds for name in ("connect", "read", "write", "pool") if limits.get(name) is None}
        request.extensions["timeout"] = {**limits, **unlimited}

    def client() -> httpx2.Client:
        mine = {**hooks, "request": [give_up, *hooks.get("request", [])]}
        return httpx2.Client(event_hooks=mine, follow_redirects=True, timeout=None)

    set_client_factory(client)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _line(text: object) -> str:
    return " ".join(str(text).split()).rstrip(".")[:300]
