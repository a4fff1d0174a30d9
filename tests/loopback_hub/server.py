"""The HTTP server: one function for each endpoint, found by method and path."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from .hub import Account, LoopbackHub, Request
from .repositories import Repo


@dataclass
class Call:
    """A request, as the functions of endpoints get it."""

    hub: LoopbackHub
    method: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    account: Account | None

    @property
    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    def repo(self, type: str, repo_id: str, write: bool = False) -> Repo:
        """Return a repository that the caller may read, or with `write` change.

        Like the Hub, it does not tell a private repository from a missing one.
        """
        repo = self.hub.repos.get((type, repo_id))
        hidden = repo is not None and repo.private and not (self.account and self.account.may_read(repo.owner))
        if repo is None or hidden:
            if self.account is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        if write and not self.account:
            raise Refused(401, "Invalid username or password.")
        if write and not self.account.may_write(repo.owner):
            raise Refused(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] | None = None

    @classmethod
    def of(cls, value, status: int = 200) -> Answer:
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


class Refused(Exception):
    """An error in the Hub's form: in the body and in two headers."""

    def __init__(self, status: int, message: str, code: str | None = None, **more):
        self.answer = Answer.of({"error": message, **more}, status)
        self.answer.headers["X-Error-Message"] = message
        if code:
            self.answer.headers["X-Error-Code"] = code


ENDPOINTS: list[tuple[str, re.Pattern, Callable]] = []


def endpoint(method: str, path: str):
    """Register a function that takes a `Call` and the unquoted groups of `path`."""

    def register(function: Callable) -> Callable:
        ENDPOINTS.append((method, re.compile(path), function))
        return function

    return register


def handler_of(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    from . import collection_api, file_api, repo_api  # noqa: F401 (they register their endpoints)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *args) -> None:
            pass

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (ConnectionError, TimeoutError):
                self.close_connection = True

        def do(self) -> None:
            self.received = 0
            path = urlsplit(self.path).path
            with hub.lock:
                fault = next((fault for fault in hub.faults if fault.strikes(self.command, path)), None)
            self.answer(path, fault)

        def record(self, status: int | None) -> None:
            """Log the request before the client gets its answer, so that the client finds it logged."""
            with hub.lock:
                hub.requests.append(Request(self.command, urlsplit(self.path).path, status, self.received))

        def answer(self, path: str, fault) -> None:
            if fault and fault.hold == "before":
                fault.wait()
            if fault and fault.drop == "before":
                return self.hang_up()
            body = self.read_body()
            if body is None:
                return self.hang_up()
            if fault and fault.status:
                refused = Refused(fault.status, fault.message).answer
                refused.headers.update(fault.headers)
                return self.send(refused)
            try:
                answer = self.find(path, body)
            except Refused as refused:
                answer = refused.answer
            if fault and fault.hold == "after":
                fault.wait()
            if fault and fault.drop == "after":
                return self.hang_up()
            return self.send(answer)

        def find(self, path: str, body: bytes) -> Answer:
            account = None
            if token := self.headers.get("Authorization", "").removeprefix("Bearer ").strip():
                account = hub.accounts.get(token)
                if account is None:
                    raise Refused(401, "Invalid credentials in Authorization header")
            method = "GET" if self.command == "HEAD" else self.command
            query = parse_qs(urlsplit(self.path).query)
            headers = {name.lower(): value for name, value in self.headers.items()}
            call = Call(hub, self.command, query, headers, body, account)
            for wanted, pattern, function in ENDPOINTS:
                if method == wanted and (match := pattern.fullmatch(path)):
                    with hub.lock:
                        groups = {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
                        return function(call, **groups)
            raise Refused(404, f"This Hub does not know {self.command} {path}")

        def read_body(self) -> bytes | None:
            """Return the request's body, chunked or not; None if the client went away before its end."""
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                    parts.append(self.rfile.read(size))
                    self.received += len(parts[-1])
                    if len(parts[-1]) < size:
                        return None
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            self.received = len(body)
            return body if len(body) == length else None

        def send(self, answer: Answer) -> None:
            self.record(answer.status)
            self.send_response(answer.status)
            for name, value in (answer.headers or {}).items():
                self.send_header(name, value)
            if "Content-Length" not in (answer.headers or {}):
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        def hang_up(self) -> None:
            self.record(None)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do

    return Handler
