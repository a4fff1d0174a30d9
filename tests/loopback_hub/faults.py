"""Faults to order: the n-th call of a kind fails with a status, a delay, or an answer that never comes."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What happens to calls that match `method` and `path`.

    Args:
        method: A regular expression that is searched for in the method.
        path: A regular expression that is searched for in the path without its query.
        at: The first match that fails, counted from 1.
        times: The number of matches that fail; None for all.
        status: Answer with this error and do nothing; `headers` and `message` go with it.
        drop: Close the connection without an answer, "before" anything is done or "after" all is done.
        hold: Wait "before" the request's body is read or "after" all is done, until `release` is called. The client may
            have gone by then.
    """

    method: str
    path: str
    at: int = 1
    times: int | None = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "an injected fault"
    drop: str | None = None
    hold: str | None = None
    matched: int = 0
    struck: int = 0

    def __post_init__(self):
        self.reached = threading.Event()
        self._released = threading.Event()

    def strikes(self, method: str, path: str) -> bool:
        """Count a call, and return whether it fails."""
        if not re.search(self.method, method) or not re.search(self.path, path):
            return False
        self.matched += 1
        if self.matched < self.at or self.times is not None and self.struck >= self.times:
            return False
        self.struck += 1
        return True

    def wait(self, timeout: float = 60) -> None:
        self.reached.set()
        self._released.wait(timeout)

    def release(self) -> None:
        self._released.set()
