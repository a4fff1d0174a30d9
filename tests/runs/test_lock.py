import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from poa_hf.runs import lock
from poa_hf.runs.lock import LockedError, locked, locked_run

HOLDER = """
import os, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from poa_hf.runs.lock import locked_run
with locked_run(Path(sys.argv[1])):
    if sys.argv[2:] == ["with a worker"]:
        if (worker := os.fork()) == 0:
            time.sleep(60)
        print(worker, flush=True)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that holds tmp_path/run, and return it with the lines that it has printed."""
    started = []

    def start(*arguments: str) -> tuple[subprocess.Popen, list[str]]:
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, [process.stdout.readline().strip() for _ in range(1 + len(arguments))]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_run_is_refused_with_who_holds_the_folder(tmp_path, holder):
    process, _ = holder()
    run = tmp_path / "run"
    with pytest.raises(LockedError) as refusal, locked_run(run):
        pass
    host = os.uname().nodename
    start = f"{run} is in use by another run (process {process.pid} on {host}, since 20"
    assert str(refusal.value).startswith(start) and str(refusal.value).endswith(
        "UTC): wait until it ends, stop it, or give another output_dir."
    )
    assert (run / ".lock").exists()


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_any_death_frees_the_folder_at_once(tmp_path, holder, death):
    process, _ = holder()
    process.send_signal(death)
    process.wait()
    with locked_run(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / ".lock").read_text())["process"] == os.getpid()
    assert not list(tmp_path.iterdir()) or os.listdir(tmp_path / "run") == []


def test_a_worker_that_outlives_the_run_does_not_hold_it(tmp_path, holder):
    process, printed = holder("with a worker")
    worker = int(printed[0])
    try:
        process.kill()
        process.wait()
        os.kill(worker, 0)  # lives
        with locked_run(tmp_path / "run"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_folder_is_held_once_in_a_process_too(tmp_path):
    with locked_run(tmp_path / "a" / "run"):
        with pytest.raises(LockedError, match=f"process {os.getpid()}, which is this one"):
            with locked_run(tmp_path / "a" / "." / "run"):
                pass
        with locked_run(tmp_path / "b"):
            pass
        assert (tmp_path / "a" / "run" / ".lock").exists()
    assert not list(tmp_path.iterdir())  # nothing was written, so nothing is left


def test_a_lock_waits_for_other_threads_and_survives_their_removals(tmp_path):
    """Each holder removes the file, so the ones that wait find another file of that name."""
    path, inside, most = tmp_path / ".lock", [0], [0]

    def work() -> None:
        for _ in range(10):
            with locked(path, patience=60):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and not path.exists()


def test_a_link_in_place_of_the_lock_is_replaced_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(target)
    with locked_run(tmp_path / "run"):
        pass
    assert target.read_text() == "mine"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "\\u001b[2J", "process": 1, "since": ""}', "\x00" * 5000])
def test_an_unreadable_holder_is_another_process(tmp_path, holder, content):
    holder()
    (tmp_path / "run" / ".lock").write_text(content)
    with (
        pytest.raises(LockedError, match="in use by another run .another process.: wait"),
        locked_run(tmp_path / "run"),
    ):
        pass


@pytest.mark.parametrize("reason", [None, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch, caplog, reason):
    def refuse(*args):
        raise OSError(reason, os.strerror(reason))

    if reason is None:  # a system without them, such as Windows, which lacks these functions too
        monkeypatch.setattr(lock, "fcntl", None)
        monkeypatch.delattr(os, "pread")
        monkeypatch.delattr(os, "pwrite")
    else:  # a file system without them
        monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    with locked_run(tmp_path):
        pass
    assert f"The file system of {tmp_path} has no locks (" in caplog.text and not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"cannot be made \(.*\): give another output_dir"), locked_run(folder):
            pass
