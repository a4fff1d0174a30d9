"""Errors of writing, from the system and from the libraries that write."""

import errno
import os
import resource
import shutil
import sys

import pytest
import torch
from safetensors.torch import save_file

from poa_hf.formatting import format_bytes
from poa_hf.runs.atomic import write_bytes, written_folder
from poa_hf.runs.json_lines import JsonLines
from poa_hf.runs.writing import WriteError, writing

TENSORS = {"weight": torch.zeros(10_000)}


@pytest.fixture
def small_files():
    """No file of this process may grow beyond 4 kB, as if the disk were full."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, former[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, former)


WRITERS = {
    "text": lambda folder: (folder / "file").write_text("x" * 10_000),
    "torch": lambda folder: torch.save(TENSORS, folder / "file"),
    "safetensors": lambda folder: save_file(TENSORS, folder / "file"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits on the size of files differ elsewhere")
@pytest.mark.parametrize("name", WRITERS)
def test_what_any_library_raises_is_one_sentence_and_nothing_stays(tmp_path, small_files, name):
    target = tmp_path / "checkpoint-2"
    with pytest.raises(WriteError) as failure, written_folder(target) as folder:
        WRITERS[name](folder)
    sentence = str(failure.value)
    assert sentence.startswith(f"{target} cannot be written (") and sentence.endswith("or use another folder.")
    assert "\n" not in sentence and " are free): make room" in sentence and not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="limits on the size of files differ elsewhere")
def test_files_and_logs_say_so_too(tmp_path, small_files):
    with pytest.raises(WriteError, match=r"file.json cannot be written \(File too large; .* are free\)"):
        write_bytes(tmp_path / "file.json", b"x" * 10_000)
    log = JsonLines(tmp_path / "log.jsonl", 0, enabled=True)
    with pytest.raises(WriteError, match=r"log.jsonl cannot be written \(File too large"):
        log.write({"step": 1, "text": "x" * 10_000})


def test_the_free_space_is_that_of_the_disk_even_where_the_folder_is_missing(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=12_345_678)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage if path == tmp_path else pytest.fail(str(path)))
    with pytest.raises(WriteError) as failure, writing(tmp_path / "not" / "there"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert f"(No space left on device; {format_bytes(12_345_678)} are free)" in str(failure.value)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), RuntimeError("a shape is wrong"), KeyError("x")])
def test_other_errors_stay_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as kept, writing(tmp_path):
        raise error
    assert kept.value is error


def test_a_disk_that_is_full_only_when_flushed_is_noticed(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WriteError, match="No space left"), written_folder(tmp_path / "a") as folder:
        (folder / "file").write_text("x")
        monkeypatch.setattr(os, "fsync", full)
    assert not list(tmp_path.iterdir())
