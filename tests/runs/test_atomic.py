import json
import os
import stat

import pytest

from poa_hf.runs.atomic import (
    UNFINISHED,
    delete,
    remove_leftovers,
    unfinished_folder,
    write_bytes,
    write_json,
    write_text,
    written_folder,
)


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def umask():
    """Files are readable by everyone, whatever the machine's habit."""
    before = os.umask(0o022)
    yield 0o644
    os.umask(before)


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_are_replaced_as_a_whole(tmp_path, umask):
    path = tmp_path / "file.json"
    write_json(path, {"a": [1, "é"]})
    assert json.loads(path.read_text()) == {"a": [1, "é"]} and path.read_text().endswith("}\n")
    write_text(path, "naïve\n")
    assert path.read_bytes() == "naïve\n".encode() and mode(path) == umask and names(tmp_path) == {"file.json"}


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == {"file"}


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "target").write_text("elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "here")
    assert (tmp_path / "target").read_text() == "elsewhere" and not (tmp_path / "link").is_symlink()
    (tmp_path / "folder").symlink_to(tmp_path)
    delete(tmp_path / "folder")
    assert names(tmp_path) == {"target", "link"}


def test_folders_are_complete_or_absent_and_their_files_follow_the_umask(tmp_path, umask):
    target = tmp_path / "model"
    for content in ("first", "second"):
        with written_folder(target) as folder:
            (folder / "inner").mkdir()
            private = folder / "inner" / "weights"
            private.write_text(content)
            private.chmod(0o600)  # as safetensors writes them
            (folder / content).touch()
            assert target.exists() == (content == "second")
    assert (target / "inner" / "weights").read_text() == "second" and mode(target / "inner" / "weights") == umask
    assert names(target) == {"inner", "second"} and names(tmp_path) == {"model"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_old_folder_stays(tmp_path, error):
    target = tmp_path / "model"
    with written_folder(target) as folder:
        (folder / "old").touch()
    with pytest.raises(error), written_folder(target) as folder:
        (folder / "new").touch()
        raise error
    assert names(target) == {"old"} and names(tmp_path) == {"model"}


def test_what_a_crash_leaves_is_found_and_removed(tmp_path):
    with written_folder(tmp_path / "model"):
        pass
    (tmp_path / f"{UNFINISHED}model" / "inner").mkdir(parents=True)
    (tmp_path / f"{UNFINISHED}deleted-checkpoint-1").mkdir()
    (tmp_path / f"{UNFINISHED}evaluations.json").write_text("[")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {"model"}


def test_a_folder_begins_empty_whatever_a_crash_has_left(tmp_path):
    leftover = tmp_path / f"{UNFINISHED}model"
    leftover.mkdir()
    (leftover / "half").touch()
    with unfinished_folder(tmp_path / "model") as folder:
        assert folder == leftover and not names(folder)
        (folder / "whole").touch()
    assert names(tmp_path) == {leftover.name} and names(leftover) == {"whole"}


def test_processes_write_together_and_the_main_one_renames(tmp_path):
    """The barriers: the folder exists before anyone writes, and gets its name after everyone has written."""
    seen = []

    def barrier():
        seen.append(names(tmp_path))

    with written_folder(tmp_path / "model", is_main=True, wait_for_everyone=barrier) as folder:
        (folder / "a").touch()
    assert seen == [{f"{UNFINISHED}model"}, {f"{UNFINISHED}model"}, {"model"}]
    (tmp_path / f"{UNFINISHED}other").mkdir()  # made by the main process
    seen.clear()
    with written_folder(tmp_path / "other", is_main=False, wait_for_everyone=barrier) as folder:
        (folder / "b").touch()
    assert len(seen) == 3 and names(tmp_path) == {"model", f"{UNFINISHED}other"} and names(folder) == {"b"}


def test_what_lies_where_a_file_is_prepared_is_replaced_too(tmp_path):
    (tmp_path / "target").write_text("elsewhere")
    (tmp_path / f"{UNFINISHED}file").symlink_to(tmp_path / "target")
    write_text(tmp_path / "file", "here")
    assert (tmp_path / "target").read_text() == "elsewhere" and (tmp_path / "file").read_text() == "here"
    assert names(tmp_path) == {"target", "file"}


@pytest.mark.parametrize("link_to", ["target", "nowhere", "file"])
def test_a_folder_replaces_a_link_and_leaves_its_target(tmp_path, link_to):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "content").write_text("elsewhere")
    (tmp_path / "file").write_text("elsewhere")
    for name in ("checkpoint-1", f"{UNFINISHED}checkpoint-1", f"{UNFINISHED}deleted-checkpoint-1"):
        (tmp_path / name).symlink_to(tmp_path / link_to)
    with written_folder(tmp_path / "checkpoint-1") as folder:
        (folder / "content").write_text("here")
    assert (tmp_path / "target" / "content").read_text() == (tmp_path / "file").read_text() == "elsewhere"
    assert (tmp_path / "checkpoint-1" / "content").read_text() == "here"
    assert names(tmp_path) == {"target", "file", "checkpoint-1"}


def test_links_are_deleted_and_their_targets_kept(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "content").write_text("elsewhere")
    (tmp_path / "checkpoint-1").symlink_to(tmp_path / "target")
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "inner").symlink_to(tmp_path / "target")
    (tmp_path / f"{UNFINISHED}x").symlink_to(tmp_path / "target")
    delete(tmp_path / "checkpoint-1")
    delete(tmp_path / "checkpoint-2")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {"target"} and (tmp_path / "target" / "content").exists()
