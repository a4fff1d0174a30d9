"""`poa report --watch`: a page on runs that go on, served to this machine."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

from poa_hf.report.live import LivePage, LiveServer
from poa_hf.runs.evaluations import save_evaluations
from poa_hf.runs.lock import locked

from ..conftest import tiny_config
from .pages import evaluation


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_run_from_before_its_start(trained, tmp_path):
    run = tmp_path / "run"
    page = LivePage([run], rest=0)
    assert "does not exist yet" in page.page()
    versions = [page.version()]

    def changed() -> str:
        versions.append(page.version())
        assert versions[-1] not in versions[:-1]
        before = files(run)
        shown = page.page()
        assert files(run) == before and page.version() == versions[-1]
        return shown

    run.mkdir()
    assert "has written nothing yet" in changed()
    line = json.loads((trained / "metrics.jsonl").read_text().splitlines()[0])
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert "holds no model yet" in changed() and 'data-chart="loss"' in page.page()
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line | {"step": 12345, "loss": 1.5}) + '\n{"step": 9, "lo')  # it is writing
    assert "12,345" in changed()
    shutil.copytree(trained, run, dirs_exist_ok=True, ignore=shutil.ignore_patterns("report", "metrics.jsonl"))
    assert "No size has been measured yet" in changed()
    size = str(tiny_config().backbone_config.space.full)
    save_evaluations(run, [evaluation(size, 0.625)])
    with locked(run / ".lock"):  # as the trainer does
        assert "62.5" in changed()
    # a moment in which a file is not whole
    config = (run / "config.json").read_text()
    (run / "config.json").write_text("{")
    assert "62.5" in page.page()
    (run / "config.json").write_text(config)
    assert "62.5" in page.page()


def test_several_runs_of_which_one_has_not_begun(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "one", ignore=shutil.ignore_patterns("report"))
    page = LivePage([tmp_path / "one", tmp_path / "two"], rest=0)
    assert "<h1>1 run</h1>" in page.page() and "two does not exist yet" in page.page()
    shutil.copytree(trained, tmp_path / "two", ignore=shutil.ignore_patterns("report"))
    assert "2 runs" in page.page() and "does not exist" not in page.page()
    with pytest.raises(ValueError, match="given twice"):
        LivePage([tmp_path / "one", tmp_path / "one"])


def test_a_page_is_kept_for_some_times_as_long_as_it_took(tmp_path):
    page = LivePage([tmp_path / "run"], rest=1e6)
    first = page.page()
    version = page.version()
    (tmp_path / "run").mkdir()
    assert page.page() == first and page.version() == version


def answer(address, path="/", host=None):
    request = urllib.request.Request(f"{address}{path}", headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.read().decode(), response.headers
    except urllib.error.HTTPError as error:
        return error.code, "", error.headers


def test_served_to_this_machine_only(tmp_path):
    page = LivePage([tmp_path / "run"])
    with LiveServer(page) as server:
        assert server.server_address[0] == "127.0.0.1"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        status, text, headers = answer(server.address)
        assert status == 200 and "does not exist yet" in text and headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert answer(server.address, "/version")[1] == page.version()
        assert answer(server.address, host="evil.example")[0] == 403
        assert answer(server.address, host=f"localhost:{server.server_port}")[0] == 200
        for path in ("/../run/config.json", "/metrics.jsonl", "/?x", "/version/"):
            assert answer(server.address, path)[0] == 404
        with pytest.raises(OSError):
            LiveServer(page, server.server_port)
        server.shutdown()


@pytest.mark.slow
def test_the_command_ends_with_ctrl_c(tmp_path):
    command = [sys.executable, "-m", "poa_hf", "report", str(tmp_path / "run"), "--watch"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    line = process.stdout.readline()
    address = re.search(r"at (http://127\.0\.0\.1:\d+) \(Ctrl-C", line)[1]
    assert "does not exist yet" in answer(address)[1]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0 and out == "Ended.\n" and "Traceback" not in err
