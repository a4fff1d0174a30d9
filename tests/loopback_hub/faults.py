"""Failing as asked: at the n-th call of a kind, with a status, a delay, or an answer that never comes."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What happens to calls that match `method` and `path` (regular expressions, searched for; the path without its
    query): from the `at`-th match on, to `times` of them (None: for ever).

    `status` answers with an error instead of doing anything; `headers` go with it. `drop` closes the connection without
    an answer, "before" anything is done or "after" all is. `hold` waits, "before" the request's body is read or
    "after" all is done, until `release()`; the other end may have gone by then.
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
        """Counts a call; whether it is one to fail."""
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
