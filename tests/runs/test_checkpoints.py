import json
import os
import tempfile
from pathlib import Path

import pytest

from poa_hf.runs.checkpoints import (
    check_recipe_is_own,
    checkpoints,
    checkpoints_with_model,
    find_checkpoint,
    prune,
    replace_model,
    start_folder,
)
from poa_hf.runs.load import model_step, resolve_run
from poa_hf.runs.soundness import has_weights, missing_parts

from .folders import PARTS, checkpoint, flip_bit


def steps(paths) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_that_lacks_a_part_is_not_resumed_from(tmp_path, part):
    checkpoint(tmp_path, 5)
    broken = checkpoint(tmp_path, 10, part)
    assert missing_parts(broken) == [part] and steps(checkpoints(tmp_path)) == ["checkpoint-5"]
    assert find_checkpoint(tmp_path, True, False) == tmp_path / "checkpoint-5"
    with pytest.raises(ValueError, match=f"is not a checkpoint that can be resumed from .it lacks {part}.: those in"):
        find_checkpoint(tmp_path, str(broken), False)
    # but its model may be whole
    whole = part not in ("config.json", "model.safetensors")
    assert resolve_run(tmp_path).name == ("checkpoint-10" if whole else "checkpoint-5")
    assert steps(checkpoints_with_model(tmp_path)) == ["checkpoint-5", "checkpoint-10"][: 1 + whole]


@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_checkpoint_is_passed_over_with_a_sentence(tmp_path, part, caplog):
    sound, damaged = checkpoint(tmp_path, 5, checksums=True), checkpoint(tmp_path, 10, checksums=True)
    assert find_checkpoint(tmp_path, True, False, thorough=True) == damaged and not caplog.messages
    flip_bit(damaged / part)
    assert find_checkpoint(tmp_path, True, False, thorough=True) == sound
    why = f"{part} has another content than was written, by its checksum"
    assert caplog.messages == [f"{damaged} is damaged ({why}): resuming from checkpoint-5 instead."]
    with pytest.raises(ValueError) as refusal:
        find_checkpoint(tmp_path, str(damaged), False, thorough=True)
    assert str(refusal.value) == (
        f"{damaged} is not a checkpoint that can be resumed from ({why}): those in {tmp_path} are {sound}."
    )


def test_a_run_without_a_sound_checkpoint_does_not_start_anew(tmp_path):
    for step in (5, 10):
        flip_bit(checkpoint(tmp_path, step, checksums=True) / "optimizer.bin")
    checkpoint(tmp_path, 15, "counts.json")
    with pytest.raises(ValueError) as refusal:
        find_checkpoint(tmp_path, True, False, thorough=True)
    why = "optimizer.bin has another content than was written, by its checksum"
    reasons = f"checkpoint-15: it lacks counts.json; checkpoint-10: {why}; checkpoint-5: {why}"
    assert str(refusal.value) == (
        f"{tmp_path} has no sound checkpoint to resume from ({reasons}): restore one from a copy, or give "
        "overwrite_output_dir without resume_from_checkpoint to start anew."
    )
    for resume, overwrite in ((None, False), (True, True)):
        with pytest.raises(ValueError):
            find_checkpoint(tmp_path, resume, overwrite, thorough=True)
    assert find_checkpoint(tmp_path, None, overwrite=True) is None


def test_a_finished_model_without_checkpoints_is_not_replaced_by_a_resumed_run(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a model but no checkpoint to resume from: give another output_dir"):
        find_checkpoint(tmp_path, True, False)
    assert find_checkpoint(tmp_path, True, overwrite=True) is None
    # a run that was killed before its first checkpoint starts again
    (tmp_path / "config.json").unlink()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}')
    assert find_checkpoint(tmp_path, True, False) is None


def test_a_damaged_checkpoint_is_put_aside_when_the_run_goes_on_before_it(tmp_path):
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 10, "counts.json")
    start_folder(tmp_path, tmp_path / "checkpoint-5", overwrite=False)
    assert sorted(os.listdir(tmp_path)) == ["abandoned-checkpoint-10", "checkpoint-5"]


def test_the_state_of_deepspeed_is_a_folder(tmp_path):
    folder = checkpoint(tmp_path, 5, "optimizer.bin")
    (folder / "pytorch_model").mkdir()
    assert missing_parts(folder) == []


def test_weights_in_parts_are_whole_if_all_of_the_index_exist(tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert not has_weights(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").touch()
    assert has_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert not has_weights(tmp_path)


def test_checkpoints_are_ordered_by_step_and_other_folders_are_none(tmp_path):
    for step in (100, 9, 20):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert steps(checkpoints(tmp_path)) == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert model_step(tmp_path) == 100
    prune(tmp_path, 1, best_step=9)
    assert steps(checkpoints(tmp_path)) == ["checkpoint-9", "checkpoint-100"]
    prune(tmp_path, None)
    assert len(checkpoints(tmp_path)) == 2


def test_what_a_folder_can_be_used_for(tmp_path):
    assert find_checkpoint(tmp_path / "new", None, False) is None and find_checkpoint(tmp_path, True, False) is None
    run = checkpoint(tmp_path / "run", 5).parent
    with pytest.raises(ValueError, match="holds another run: give another output_dir"):
        find_checkpoint(run, "false", False)
    assert find_checkpoint(run, False, overwrite=True) is None
    other = checkpoint(tmp_path / "other", 7)
    with pytest.raises(ValueError, match="holds another run than"):
        find_checkpoint(run, str(other), False)
    assert find_checkpoint(run, str(other), overwrite=True) == find_checkpoint(tmp_path / "new", other, False) == other
    with pytest.raises(ValueError, match="it does not exist.: those in .* are .*checkpoint-5"):
        find_checkpoint(run, "nowhere", False)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not a folder that can be written to"):
        find_checkpoint(tmp_path / "file" / "run", None, False)


def as_an_ordinary_user(function) -> str:
    """What a function returns, or the text of its ValueError, when somebody other than root calls it."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            text = str(function())
        except ValueError as error:
            text = str(error)
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as result:
        return result.read()


@pytest.mark.skipif(not hasattr(os, "fork") or os.getuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_needs_to_write_to_the_nearest_folder_only():
    with tempfile.TemporaryDirectory() as root:
        own, hidden = Path(root) / "own", Path(root) / "hidden"
        os.chmod(root, 0o755)
        for folder, mode in ((own, 0o777), (hidden, 0o700)):
            folder.mkdir()
            folder.chmod(mode)
        for run in (own, own / "new", own / "new" / "run"):
            assert as_an_ordinary_user(lambda run=run: find_checkpoint(run, None, False)) == "None"
        for run, named in ((Path(root) / "new", root), (hidden / "run", hidden), (hidden / "a" / "run", hidden)):
            error = as_an_ordinary_user(lambda run=run: find_checkpoint(run, None, False))
            assert error == f"{named} is not a folder that can be written to: give another output_dir."


def test_folders_above_need_not_be_written_to(tmp_path, monkeypatch):
    """As for an ordinary user, whose home lies in folders of root's."""
    monkeypatch.setattr(os, "access", lambda path, mode: tmp_path in (path, *Path(path).parents))
    for folder in (tmp_path, tmp_path / "new", tmp_path / "a" / "new"):
        assert find_checkpoint(folder, None, False) is None
    with pytest.raises(ValueError, match=f"^{tmp_path.parent} is not a folder that can be written to"):
        find_checkpoint(tmp_path.parent / "new", None, False)


def test_a_checkpoint_that_lies_on_another_disk_belongs_to_the_run_that_links_to_it(tmp_path):
    run = tmp_path / "run"
    for step in (5, 10):
        checkpoint(tmp_path / "disk", step, checksums=True)
        run.mkdir(exist_ok=True)
        (run / f"checkpoint-{step}").symlink_to(tmp_path / "disk" / f"checkpoint-{step}")
    assert find_checkpoint(run, True, False) == run / "checkpoint-10"
    assert find_checkpoint(run, str(run / "checkpoint-5"), False) == run / "checkpoint-5"
    start_folder(run, run / "checkpoint-5", overwrite=True)
    assert sorted(os.listdir(run)) == ["abandoned-checkpoint-10", "checkpoint-5"]
    prune(run, 1)
    start_folder(run, None, overwrite=True)
    assert os.listdir(run) == [] and len(checkpoints(tmp_path / "disk")) == 2


def test_going_back_puts_later_checkpoints_aside(tmp_path):
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    (tmp_path / "abandoned-checkpoint-3").mkdir()
    (tmp_path / "config.json").touch()
    (tmp_path / ".unfinished-checkpoint-4").mkdir()
    start_folder(tmp_path, tmp_path / "checkpoint-2", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["abandoned-checkpoint-3", "checkpoint-1", "checkpoint-2"]
    assert (tmp_path / "abandoned-checkpoint-3" / "counts.json").exists()


def test_a_model_replaces_another_with_its_configuration_last(tmp_path):
    run, new = tmp_path / "run", tmp_path / "new"
    for folder, files in (
        (
            run,
            (
                "config.json",
                "model-00001-of-00002.safetensors",
                "model.safetensors.index.json",
                "metrics.jsonl",
                "checksums.json",
            ),
        ),
        (new, ("config.json", "model.safetensors")),
    ):
        folder.mkdir()
        for name in files:
            (folder / name).write_text(folder.name)
    replace_model(run, new)
    assert sorted(os.listdir(run)) == ["config.json", "metrics.jsonl", "model.safetensors"] and not new.exists()
    assert (run / "config.json").read_text() == "new"


# Names that look like those of a run, to a pattern with a star.
USERS = {
    *("model_mine.safetensors", "model-small.safetensors", "model.safetensors.bak", "checkpoint-notes.txt"),
    *("checkpoint-best/weights.bin", "abandoned-checkpoint-plan.md", "latency-mine.json", "image_ids-mine.jsonl"),
    *("report/thesis.md", "report/loss-of-sleep.png", "profile/notes.txt", "gram_teacher/where_from.txt"),
}
OF_THE_RUN = {
    *("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "metrics.jsonl"),
    *("latency-cpu-b1.json", "latency-cuda-b8-compiled.json", "image_ids-0.jsonl", "checkpoint-5/any/thing"),
    *("report/index.html", "report/pareto-latency-1-dark.png", "report/curve-2.png", "profile/trace.json"),
    *("gram_teacher/config.json", "gram_teacher/model.safetensors", "abandoned-checkpoint-7/counts.json"),
}


def fill(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_overwriting_a_run_leaves_files_whose_names_only_look_like_its_own(tmp_path):
    fill(tmp_path, USERS | OF_THE_RUN)
    start_folder(tmp_path, None, overwrite=True)
    assert files(tmp_path) == USERS


def test_a_new_run_and_its_model_leave_the_files_of_users(tmp_path):
    fill(tmp_path / "run", USERS)
    fill(tmp_path / "new", new := {"config.json", "model.safetensors"})
    assert find_checkpoint(tmp_path / "run", None, overwrite=False) is None
    start_folder(tmp_path / "run", None, overwrite=False)
    replace_model(tmp_path / "run", tmp_path / "new")
    assert files(tmp_path / "run") == USERS | new


def test_weights_without_a_configuration_are_not_replaced_unasked(tmp_path):
    fill(tmp_path, {"model.safetensors"})
    for resume in (None, True):
        with pytest.raises(ValueError, match="holds (another run|a model but no checkpoint)"):
            find_checkpoint(tmp_path, resume, overwrite=False)
    assert find_checkpoint(tmp_path, None, overwrite=True) is None


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("name", "kind"), [("metrics.jsonl/a", "folder"), ("config.json/a", "folder"), ("checkpoint-3", "file")]
)
def test_a_folder_where_a_run_keeps_a_file_is_refused_before_anything_changes(tmp_path, name, kind, overwrite):
    checkpoint(tmp_path, 5)
    fill(tmp_path, {name})
    for resume in (None, True, str(tmp_path / "checkpoint-5")):
        with pytest.raises(ValueError, match=f"{name.partition('/')[0]} is a {kind}, but a run keeps a .* this name"):
            find_checkpoint(tmp_path, resume, overwrite)


def test_a_recipe_of_somebody_else_is_not_replaced(tmp_path):
    run = tmp_path / "run"
    check_recipe_is_own(run, None, overwrite=False)
    fill(run, {"config.yaml"})
    elsewhere = checkpoint(tmp_path / "other", 5)
    for found in (None, elsewhere):
        with pytest.raises(ValueError, match="config.yaml was not written by a run, whose recipe would replace it"):
            check_recipe_is_own(run, found, overwrite=False)
    check_recipe_is_own(run, None, overwrite=True)
    check_recipe_is_own(run, checkpoint(run, 5), overwrite=False)  # a run that was copied without all of its records
    fill(run, {"training_args.json"})  # a run that was killed before its first checkpoint starts again
    check_recipe_is_own(run, None, overwrite=False)


def test_the_home_folder_is_known_in_the_path_of_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    folder = checkpoint(tmp_path / "run", 5)
    assert find_checkpoint(tmp_path / "new", "~/run/checkpoint-5", False) == folder


def test_a_folder_of_runs_is_named_as_such(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match=r"holds several runs: give one of them, such as .*first \(first, second\)"):
        resolve_run(tmp_path)
