"""A page on runs that go on: served to this machine only, made anew when a run has written something.

Nothing is written, neither into the runs nor elsewhere, and no lock is taken, so the trainer is not disturbed.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ..formatting import one_line
from ..runs.facts import RunFacts
from ..runs.layout import RunFolder
from .compare import comparison_page, names_of
from .content import RunContent
from .rendering import check_request, rendered
from .section import Section

HOST = "127.0.0.1"
_LONGEST_REST = 20  # seconds
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class LivePage:
    """The page on one run or on several, as the runs are now.

    Args:
        runs: Folders of runs, which need not exist yet, or checkpoints.
        quality: The task or metric that is shown first, as for `write_report`.
        rest: How long a page is kept, in times as long as a processor took to make it, but for 20 seconds at most:
            reading a long log every few seconds would take the processor from the trainer.

    Raises:
        ValueError: If a run is given twice, or no page can be made.
    """

    def __init__(self, runs: Sequence[str | Path], quality: str | None = None, rest: float = 9) -> None:
        check_request(quality, _readable(runs) if quality is not None else ())
        self.quality, self.rest = quality, rest
        self._kept_until = 0.0
        self.runs = dict(zip(names_of(runs), map(str, runs), strict=True))
        self._known: dict[str, tuple[str, RunContent | str]] = {}  # what was read, by run, and of which version
        self._page = ("", "")  # the version, and the page
        self._lock = threading.Lock()

    def version(self) -> str:
        """Return a text that changes when there is a new page, as a run has written something that it shows."""
        if time.monotonic() < self._kept_until:
            return self._page[0]
        return _digest("".join(_version_of(run) for run in self.runs.values()))

    def page(self) -> str:
        """Return the page. It is made anew if a run has changed."""
        with self._lock:
            version = self.version()
            if version != self._page[0]:
                begun = time.thread_time()
                self._page = version, self._made()
                self._kept_until = time.monotonic() + min(_LONGEST_REST, self.rest * (time.thread_time() - begun))
            return self._page[1]

    def _made(self) -> str:
        contents = {name: self._content(name) for name in self.runs}
        known = {name: content for name, content in contents.items() if isinstance(content, RunContent)}
        missing = [content for content in contents.values() if isinstance(content, str)]
        if len(self.runs) > 1 and known:
            return comparison_page(known, self.quality, live=True, missing=missing)
        if len(self.runs) > 1 or missing:
            waiting = Section("waiting", "Waiting", missing=[(sentence, None) for sentence in missing])
            return rendered("template.html", live=True, name=", ".join(self.runs), facts=[], sections=[waiting])
        [content] = known.values()
        return rendered("template.html", live=True, sections=content.sections(self.quality), **content.shown)

    def _content(self, name: str) -> RunContent | str:
        """Return what is known of a run, or a sentence that says why nothing is."""
        run = self.runs[name]
        version = _version_of(run)
        before = self._known.get(name)
        if before is not None and before[0] == version:
            return before[1]
        try:
            if not Path(run).is_dir():
                raise ValueError(f"{run} does not exist yet: the page shows it once it does.")
            if not _files_of(run):
                raise ValueError(f"{run} has written nothing yet: the page shows what it writes.")
            known = before[1] if before is not None and isinstance(before[1], RunContent) else None
            content: RunContent | str = RunContent.of(RunFacts.read(run), self.quality, known)
        except (ValueError, OSError) as error:
            # a file may vanish while it is read, such as those of a checkpoint that makes room for a newer one
            if before is not None and isinstance(before[1], RunContent) and Path(run).is_dir():
                return before[1]
            content = f"{one_line(error)}."
        self._known[name] = version, content
        return content


class LiveServer(ThreadingHTTPServer):
    """Serves a `LivePage` to programs on this machine.

    Args:
        page: What is shown.
        port: The port; 0 takes any free one.

    Raises:
        OSError: If the port is in use.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, page: LivePage, port: int = 0) -> None:
        self.page = page
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """Where a browser finds the page."""
        return f"http://{HOST}:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer

    def do_GET(self) -> None:
        # a page of another site whose name leads to this machine must not read the runs
        names = {f"{host}:{self.server.server_port}" for host in (HOST, "localhost")}
        if self.headers.get("Host") not in names:
            return self._answer("This address is not served.", HTTPStatus.FORBIDDEN)
        if self.path == "/version":
            return self._answer(self.server.page.version())
        if self.path == "/":
            return self._answer(self.server.page.page(), kind="html")
        return self._answer("There is no such page.", HTTPStatus.NOT_FOUND)

    def _answer(self, text: str, status: HTTPStatus = HTTPStatus.OK, kind: str = "plain") -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):  # the browser has gone to another page
            pass

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a page asks every two seconds."""


def _readable(runs: Sequence[str | Path]) -> Iterator[RunFacts]:
    """Yield what is known of the runs that have written something."""
    for run in runs:
        try:
            yield RunFacts.read(run)
        except (ValueError, OSError):
            continue


def _files_of(run: str) -> list[str]:
    """Return the files of a run that a page shows, each with what changes when it is written."""
    folder = RunFolder.containing(run)
    paths = [folder.metrics, folder.evaluations, folder.recipe, folder.training_arguments, folder.config]
    files = []
    try:
        paths += sorted(folder.path.glob("latency-*.json")) + sorted(folder.path.glob("checkpoint-*"))
    except OSError:
        pass
    for path in paths:
        try:
            stat = path.stat()
        except OSError:
            continue
        files.append(f"{path.name} {stat.st_mtime_ns} {stat.st_size}")
    return files


def _version_of(run: str) -> str:
    """Return what changes when a run begins, or writes its log, records or checkpoints."""
    return _digest("\n".join([run, str(Path(run).is_dir()), *_files_of(run)]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
