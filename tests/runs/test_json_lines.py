import os

import pytest

from poa_hf.runs.json_lines import JsonLines, broken_lines, read_lines


def test_lines_are_appended_and_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    log = JsonLines(path, 0, enabled=True)
    lines = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    for line in lines:
        log.write(line)
    assert read_lines(path) == lines


def test_what_a_resumed_run_writes_again_is_dropped_and_what_is_broken_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n5\n{}\n{"step": null}\n\xff\n{"step": 2, "x": 1.50}\n{"step": 3}\n{"step": 2, "lo')
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    JsonLines(path, 2, enabled=True).write({"step": 3})
    assert path.read_text() == '{"step": 1}\n{"step": 2, "x": 1.50}\n{"step": 3}\n'
    assert [found.name for found in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_what_is_known_of_a_log_replaces_what_a_crash_has_cut_or_damaged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": 1.50}\n{"step": 2\n{"step": 3}\n{"step": 9}\n{"step": 4, "lo')
    JsonLines(path, 4, enabled=True, known=[{"step": step, "x": step / 2} for step in (1, 2, 4)])
    lines = ['{"step": 1, "x": 1.50}', '{"step": 2, "x": 1.0}', '{"step": 3}', '{"step": 4, "x": 2.0}']
    assert path.read_text().splitlines() == lines
    JsonLines(tmp_path / "other.jsonl", 4, enabled=True, known=[{"step": 1}])  # a run that goes on in another folder
    assert not (tmp_path / "other.jsonl").exists()


def test_broken_lines_are_named_but_for_one_that_is_being_written(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step"\n{"step": 2}\n' + "[" * 100_000 + '\n{"step": 3, "lo')
    assert broken_lines(path) == [2, 4] and [line["step"] for line in read_lines(path)] == [1, 2]
    assert caplog.messages == [f"{path} is damaged and read without its broken lines (2, 4)."]


def test_a_log_is_never_written_through_a_link(tmp_path):
    (tmp_path / "target").write_text('{"step": 1}\n{"step": 2}\n')
    for target, kept in (("target", 1), ("nowhere", 0)):
        path = tmp_path / f"log-{target}"
        path.symlink_to(tmp_path / target)
        JsonLines(path, 1, enabled=True).write({"step": 2})
        assert not path.is_symlink() and len(read_lines(path)) == kept + 1
    assert (tmp_path / "target").read_text() == '{"step": 1}\n{"step": 2}\n' and not (tmp_path / "nowhere").exists()


def test_a_log_is_not_read_from_a_pipe(tmp_path):
    path = tmp_path / "metrics.jsonl"
    os.mkfifo(path)
    assert read_lines(path) == []
    with pytest.raises(ValueError, match="metrics.jsonl is not a file: move it away"):
        JsonLines(path, 0, enabled=True)


def test_a_log_that_is_off_touches_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 9}\n')
    JsonLines(path, 0, enabled=False).write({"step": 1})
    assert path.read_text() == '{"step": 9}\n'
