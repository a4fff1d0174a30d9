"""Calls to the Hub that are repeated while it is busy or out of reach, and its failures in plain words."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from ..formatting import one_line

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
CONFLICT = frozenset({409, 412})  # the answer to a commit when another one came first


@dataclass(frozen=True)
class Patience:
    """Repeats a call until it succeeds, fails for good, or has failed `attempts` times.

    `huggingface_hub` itself repeats requests that list, download or upload files, but not those that create
    repositories and collections, commit, or ask who the user is.

    Between attempts it waits as long as the Hub requests (`Retry-After`), otherwise 1, 2, 4, ... seconds.

    Args:
        attempts: The most attempts at one call.
        longest: The longest wait in seconds that the Hub may ask for; beyond it the error is raised.
        longest_step: The longest wait in seconds where the Hub does not say.
        sleep: Waits for a number of seconds.
    """

    attempts: int = 8
    longest: float = 900.0
    longest_step: float = 60.0
    sleep: Callable[[float], None] = field(default_factory=lambda: time.sleep)

    def __call__(self, function: Callable[[], Result], also: frozenset[int] = frozenset()) -> Result:
        """Call `function` and return its result.

        Args:
            function: A call that may be made several times.
            also: Further HTTP statuses after which another attempt makes sense.
        """
        attempt = 1
        while True:
            try:
                return function()
            except Exception as error:
                wait = requested_wait(error)
                if not is_temporary(error, also) or attempt >= self.attempts or (wait or 0) > self.longest:
                    raise
                if wait is None:
                    wait = min(self.longest_step, 2.0 ** (attempt - 1))
                logger.warning("%s; trying again in %.0f s.", describe(error), wait)
            self.sleep(wait)
            attempt += 1


def is_temporary(error: BaseException, also: frozenset[int] = frozenset()) -> bool:
    """Return whether a later attempt may succeed: after a time-out, a broken connection, or a status that says so."""
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        if isinstance(cause, HfHubHTTPError):
            return cause.response.status_code in BUSY | also
        if isinstance(cause, httpx2.TransportError | ConnectionError | TimeoutError):
            return True
    # hf_xet raises a bare RuntimeError when an upload breaks
    return type(error) is RuntimeError and error.__cause__ is None


def requested_wait(error: BaseException) -> float | None:
    """Return how many seconds the Hub asks to wait, or None if it does not say."""
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
    """Return the HTTP status that caused an error, or None if none did."""
    return next((cause.response.status_code for cause in _causes(error) if isinstance(cause, HfHubHTTPError)), None)


def describe(error: BaseException) -> str:
    """Describe an error in a clause, without the links and request numbers of the Hub's own messages."""
    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            message = cause.response.headers.get("x-error-message") or cause.server_message
            details = f" ({one_line(message)})" if message else ""
            return f"the Hub answered {cause.response.status_code}{details}"
        if isinstance(cause, OfflineModeIsEnabled):
            return "huggingface_hub is offline by HF_HUB_OFFLINE"
        if isinstance(cause, httpx2.TimeoutException | TimeoutError):
            return "the Hub did not answer in time"
        if isinstance(cause, httpx2.TransportError | ConnectionError):
            return f"the connection to the Hub broke ({one_line(cause)})"
    return one_line(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it, one after the other."""
    while error is not None:
        yield error
        error = error.__cause__
