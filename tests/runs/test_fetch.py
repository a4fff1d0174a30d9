"""A run of the Hub, brought to this machine: the newest sound checkpoint, and nothing that could run."""

import json
import pickle

import pytest
import torch

from poa_hf.runs.checkpoints import checkpoint_folders
from poa_hf.runs.checksums import write_checksums
from poa_hf.runs.fetch import fetch_run
from poa_hf.runs.run_repo import checkpoint_files, kept_model_files
from poa_hf.runs.soundness import checkpoint_damage

from .folders import checkpoint, flip_bit

LOG = '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n'


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def pushed(hub, tmp_path, folders: dict[str, int], change=None, repo_id="me/run"):
    """Push checkpoints by name of their folder, each after a change of a copy of it; `change` is by step."""
    files = {"config.yaml": b"seed: 3\n", "training_args.json": b"{}", "metrics.jsonl": LOG.encode()}
    for folder, step in folders.items():
        made = checkpoint(tmp_path / f"made-{len(list(tmp_path.iterdir()))}", step, checksums=True)
        contents = {
            name: content if isinstance(content, bytes) else content.read_bytes()
            for name, content in checkpoint_files(made).items()
        }
        if change and step in change:
            change[step](contents)
        files |= {f"{folder}/{name}": content for name, content in contents.items()}
    if ("model", repo_id) not in hub.repos:
        hub.add_repo(repo_id, private=True)
    hub.commit(hub.model(repo_id), files)
    present = hub.model(repo_id).branches["main"].files
    for path in [path for path in present if path.split("/")[0] in folders and path not in files]:
        del present[path]


def steps(folder):
    return [path.name for path in checkpoint_folders(folder)]


@pytest.mark.parametrize("folders", [{"last-checkpoint": 4}, {"checkpoint-2": 2, "checkpoint-4": 4, "checkpoint-3": 3}])
def test_the_newest_checkpoint_and_the_records_are_fetched(hub, tmp_path, folders):
    pushed(hub, tmp_path, folders)
    run = tmp_path / "run"
    fetch_run("me/run", run)
    assert steps(run) == ["checkpoint-4"] and checkpoint_damage(run / "checkpoint-4") is None
    assert (run / "config.yaml").read_text() == "seed: 3\n" and (run / "metrics.jsonl").read_text() == LOG
    assert {path.name for path in run.iterdir()} == {
        "checkpoint-4", "config.yaml", "training_args.json", "metrics.jsonl",
    }  # fmt: skip
    before = len(hub.requests)
    fetch_run("me/run", run)  # again: nothing is downloaded
    assert not [request for request in hub.requests[before:] if "optimizer" in request.path]


def missing(name):
    def damage(contents):
        del contents[name]

    damage.__name__ = f"without {name}"
    return damage


def cut(contents):
    contents["optimizer.bin"] = contents["optimizer.bin"][:100]


def flipped(contents):
    content = bytearray(contents["model.safetensors"])
    content[-5] ^= 4
    contents["model.safetensors"] = bytes(content)


def no_json(contents):
    contents["trainer_state.json"] = b"{"


def no_checksums(contents):
    contents["checksums.json"] = b'{"files": 3}'


def of_another_step(contents):
    contents["trainer_state.json"] = contents["trainer_state.json"].replace(b'"global_step": 4', b'"global_step": 40')


def with_a_stranger(contents):
    listed = json.loads(contents["checksums.json"])
    listed["files"]["../../evil.py"] = {"size": 1, "sha256": "0" * 64}
    contents["checksums.json"] = json.dumps(listed).encode()


FAST = [missing("optimizer.bin"), flipped, with_a_stranger]
MORE = [
    *map(missing, ["checksums.json", "trainer_state.json", "config.json", "data_state_0.json"]),
    *(cut, no_json, no_checksums, of_another_step),
]


@pytest.mark.parametrize(
    "damage", [*FAST, *(pytest.param(each, marks=pytest.mark.slow) for each in MORE)], ids=lambda each: each.__name__
)
@pytest.mark.parametrize("place", ["beside", pytest.param("earlier", marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_passed_over(hub, tmp_path, caplog, damage, place):
    if place == "beside":
        pushed(hub, tmp_path, {"checkpoint-2": 2, "checkpoint-4": 4}, {4: damage})
    else:
        pushed(hub, tmp_path, {"last-checkpoint": 2})
        pushed(hub, tmp_path, {"last-checkpoint": 4}, {4: damage})
    fetch_run("me/run", tmp_path / "run")
    assert steps(tmp_path / "run") == ["checkpoint-2"]
    assert checkpoint_damage(checkpoint_folders(tmp_path / "run")[0]) is None
    assert any("is damaged (" in text and "step 2 is taken instead." in text for text in caplog.messages)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_pickled_code_does_not_run(hub, tmp_path):
    folder = checkpoint(tmp_path / "evil", 4)
    (folder / "optimizer.bin").write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    (folder / "random_states_0.pkl").write_bytes(pickle.dumps(Canary(tmp_path / "ran")))
    write_checksums(folder)
    files = {f"last-checkpoint/{path.name}": path.read_bytes() for path in folder.iterdir()}
    hub.add_repo("me/run", {"config.yaml": b"seed: 3\n", "training_args.json": b"{}", **files})
    with pytest.raises(ValueError, match="random_states_0.pkl' is no part of a checkpoint"):
        fetch_run("me/run", tmp_path / "run")
    del files["last-checkpoint/random_states_0.pkl"]
    (folder / "random_states_0.pkl").unlink()
    torch.save({"state": {}, "param_groups": [Canary(tmp_path / "ran")]}, folder / "optimizer.bin")
    write_checksums(folder)
    files = {f"last-checkpoint/{path.name}": path.read_bytes() for path in folder.iterdir()}
    hub.add_repo("me/other", {"config.yaml": b"seed: 3\n", "training_args.json": b"{}", **files})
    with pytest.raises(ValueError, match="me/other has no sound checkpoint .* holds other objects than tensors"):
        fetch_run("me/other", tmp_path / "run")
    assert not (tmp_path / "ran").exists() and not checkpoint_folders(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "me/nothing",
            "me/nothing is neither a folder nor a repository on the Hub that can be read: give the folder of",
        ),
        ("me/run@v7", "me/run has no revision 'v7' on the Hub: give one that exists."),
        ("me/model", "me/model holds no checkpoint that a run can be resumed from: push with hub_strategy checkpoint"),
    ],
)
def test_what_cannot_be_fetched_is_a_sentence(hub, tmp_path, name, message):
    pushed(hub, tmp_path, {"last-checkpoint": 4})
    hub.add_repo("me/model", {"config.json": b"{}", "model.safetensors": b"x"})
    with pytest.raises(ValueError, match=message):
        fetch_run(name, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_private_run_takes_a_token(hub, tmp_path, monkeypatch):
    pushed(hub, tmp_path, {"last-checkpoint": 4})
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="log in with `hf auth login` if it is private"):
        fetch_run("me/run", tmp_path / "run")
    fetch_run("me/run", tmp_path / "run", token="hf_me")
    assert steps(tmp_path / "run") == ["checkpoint-4"]


def test_a_revision_is_an_earlier_state_of_the_run(hub, tmp_path):
    pushed(hub, tmp_path, {"last-checkpoint": 2})
    earlier = hub.model("me/run").branches["main"].oid
    pushed(hub, tmp_path, {"last-checkpoint": 4})
    fetch_run(f"me/run@{earlier}", tmp_path / "run")
    assert steps(tmp_path / "run") == ["checkpoint-2"]
    fetch_run("me/run", tmp_path / "run")  # the same run, which has gone on elsewhere
    assert steps(tmp_path / "run") == ["checkpoint-2", "checkpoint-4"]


def test_the_gram_teacher_comes_along(hub, tmp_path):
    made = tmp_path / "made" / "gram_teacher"
    made.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "evil.pkl"):
        (made / name).write_text("{}")
    assert kept_model_files(made.parent).keys() == {"gram_teacher/config.json", "gram_teacher/model.safetensors"}
    pushed(hub, tmp_path, {"last-checkpoint": 4})
    hub.commit(hub.model("me/run"), {f"gram_teacher/{path.name}": path.read_bytes() for path in made.iterdir()})
    fetch_run("me/run", tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "gram_teacher").iterdir()} == {"config.json", "model.safetensors"}


def test_a_folder_with_another_run_is_left_alone(hub, tmp_path):
    pushed(hub, tmp_path, {"last-checkpoint": 4})
    run = tmp_path / "run"
    checkpoint(run, 2, checksums=True)
    for log in (None, LOG.replace("2.5", "2.75")):
        if log is not None:
            (run / "metrics.jsonl").write_text(log)
        with pytest.raises(ValueError, match="run holds another run than me/run: go on with it by poa resume"):
            fetch_run("me/run", run)
        assert steps(run) == ["checkpoint-2"] and not (run / "config.yaml").exists()
    (run / "metrics.jsonl").write_text(LOG)
    flip_bit(checkpoint(run, 4, checksums=True) / "optimizer.bin")
    fetch_run("me/run", run)  # the damaged checkpoint is replaced
    assert checkpoint_damage(run / "checkpoint-4") is None


def test_an_interrupted_download_goes_on(hub, tmp_path):
    pushed(hub, tmp_path, {"last-checkpoint": 4})
    fault = hub.inject("GET", "/optimizer.bin|/storage/", times=None, status=403)
    with pytest.raises(ValueError, match="could not be downloaded, because the Hub answered 403"):
        fetch_run("me/run", tmp_path / "run")
    assert not checkpoint_folders(tmp_path / "run")
    fault.times = 0
    fetch_run("me/run", tmp_path / "run")
    assert checkpoint_damage(tmp_path / "run" / "checkpoint-4") is None
