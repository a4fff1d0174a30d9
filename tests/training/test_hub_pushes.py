"""A run that is pushed to the Hub while it trains, to a Hub that works, fails, hangs or refuses."""

import json
import re
import time
from pathlib import Path

import pytest
import yaml
from transformers import TrainerCallback
from transformers.trainer_utils import HubStrategy

from poa_hf import PoaTrainer, PoaTrainingArguments
from poa_hf.cli.main import main
from poa_hf.training import hub_pushes, push_thread
from poa_hf.training.stopping import TrainingInterrupted

from ..conftest import QUICKSTART, TINY
from ..loopback_hub.hub import Account
from .processes import in_processes, train
from .test_trainer import arguments, images, new_model

COMMIT = "/commit/"


@pytest.fixture
def short(monkeypatch):
    """Patience of seconds instead of minutes."""
    monkeypatch.setattr(push_thread, "GRACE", 2.0)
    monkeypatch.setattr(push_thread, "PAUSE_AT_END", 0.2)
    monkeypatch.setattr(hub_pushes, "_AFTER_A_SIGNAL", 1.0)


@pytest.fixture
def titles(hub):
    """Titles of the commits of the one repository, oldest first."""
    return lambda repo_id="me/run": [c.title for c in reversed(hub.model(repo_id).branches["main"].history())][1:]


class Patient(TrainerCallback):
    """Waits after each checkpoint until something has happened, so that pushes come where the test wants them."""

    def __init__(self, *conditions):
        self.conditions = list(conditions)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step and self.conditions:
            condition = self.conditions.pop(0)
            deadline = time.monotonic() + 60
            while not condition():
                assert time.monotonic() < deadline
                time.sleep(0.01)


def pushed_run(folder, callbacks=(), train=True, **options):
    args = arguments(folder, push_to_hub=True, **{"max_steps": 2, "save_steps": 1, **options})
    trainer = PoaTrainer(new_model(), args, images(), callbacks)
    if train:
        trainer.train()
    return trainer


def folders(repo) -> set[str]:
    return {path.split("/")[0] for path in repo.files() if "/" in path}


def test_the_model_of_each_save_and_the_last_one_are_pushed(hub, titles, tmp_path, capsys):
    waits = Patient(lambda: hub.count("POST", COMMIT) == 1)
    trainer = pushed_run(tmp_path / "run", [waits])
    assert trainer.args.hub_model_id == "me/run"
    assert titles()[0] == "Training in progress, step 1" and titles()[-1] == "End of training"
    files = hub.model("me/run").files()
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert {"README.md", "config.json", "metrics.jsonl", "preprocessor_config.json", "training_args.json"} <= set(files)
    assert folders(hub.model("me/run")) == set() and not hub.model("me/run").private
    assert "No checkpoint is here" in files["README.md"].decode()
    said = capsys.readouterr().out
    assert "hub     pushed to me/run, every_save" in said
    assert re.search(r"Step 1 pushed to http://127.0.0.1:\d+/me/run \([\d.]+ k?M?B in ", said), said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"hub_model_id": "datasets/me/x"},
            "hub_model_id is 'datasets/me/x': give 'me/x', as runs are pushed to repos",
        ),
        (
            {"hub_model_id": "my run"},
            "hub_model_id is 'my run', which the Hub can have no repository of: write me/my-r",
        ),
        ({"name": "my run"}, "The Hub can have no repository called 'my run', as output_dir is: give hub_m"),
        ({}, "push_to_hub needs a token for the Hub: run `hf auth login`"),
    ],
)
def test_what_cannot_be_pushed_is_refused_without_the_hub(tmp_path, hub, monkeypatch, options, message):
    if not options:
        monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match=re.escape(message)):
        pushed_run(tmp_path / options.pop("name", "run"), **options)
    assert not hub.requests and not (tmp_path / "run").exists()


def test_a_hub_that_is_offline_is_refused(tmp_path, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="huggingface_hub is offline by HF_HUB_OFFLINE: unset it, or leave"):
        pushed_run(tmp_path / "run", train=False)


def test_checkpoints_of_deepspeed_are_not_pushed(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ValueError, match="hub_strategy is 'checkpoint', but DeepSpeed writes its checkpoints as pickl"):
        pushed_run(tmp_path / "run", hub_strategy="checkpoint")


def other_content(hub):
    hub.add_repo("me/run", {"config.json": b"{}", "pytorch_model.bin": b"x", "README.md": b"mine"})


def a_supernet(hub):
    hub.add_repo("me/run", {"config.json": b"{}", "training_args.json": b"{}", "sizes.json": b"{}"})


def another_run(hub):
    hub.add_repo("me/run", {"training_args.json": b"{}", "metrics.jsonl": b'{"step": 1, "loss": 7.0}\n'})


def only_readers(hub):
    hub.accounts["hf_me"] = Account("me", role="read")


def no_such_token(hub):
    hub.accounts.clear()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrange", "options", "message"),
    [
        (other_content, {}, "me/run on the Hub holds something other than a run: give another hub_model_id."),
        (a_supernet, {}, "me/run on the Hub holds something other than a run: give another hub_model_id."),
        (another_run, {}, "me/run on the Hub already holds a run: go on with it by poa resume me/run, give another"),
        (only_readers, {}, "This token of me may only read 'me': use one that may write."),
        (no_such_token, {}, "The Hub does not accept this token"),
        (
            None,
            {"hub_model_id": "you/run"},
            "'you' is not a namespace of me, whose token this is: leave push_to",
        ),
        (None, {"hub_model_id": "read-only-org/run"}, "This token of me may only read 'read-only-org'"),
        (None, {"hub_token": "hf_wrong"}, "The Hub does not accept this token"),
    ],
)
def test_what_the_hub_refuses_is_a_sentence_before_training(tmp_path, hub, arrange, options, message):
    if arrange is not None:
        arrange(hub)
    before = hub.state()
    with pytest.raises(ValueError, match=re.escape(message)):
        pushed_run(tmp_path / "run", **options)
    assert hub.state() == before
    assert not (tmp_path / "run").exists()


def test_a_token_is_written_nowhere(tmp_path):
    secret = "hf_secret"
    args = PoaTrainingArguments(output_dir=str(tmp_path), hub_token=secret, push_to_hub=True)
    texts = [repr(args), str(args), json.dumps(args.to_dict()), args.to_json_string(), str(args.to_sanitized_dict())]
    assert not any(secret in text for text in texts)
    assert args.to_dict()["hub_token"] == "<HUB_TOKEN>" and args.hub_token == secret


@pytest.mark.parametrize("strategy", ["end", HubStrategy.CHECKPOINT])
def test_strategies_are_those_of_transformers(strategy):
    assert PoaTrainingArguments(hub_strategy=strategy).hub_strategy == getattr(strategy, "value", strategy)
    assert PoaTrainingArguments().hub_strategy == "every_save"
    with pytest.raises(ValueError, match="hub_strategy is 'always': choose one of every_save, checkpoint, all_checkp"):
        PoaTrainingArguments(hub_strategy="always")


@pytest.mark.slow
@pytest.mark.parametrize("private", [True, False, None])
def test_the_token_and_the_visibility_reach_the_hub(tmp_path, hub, monkeypatch, private, poa):
    monkeypatch.delenv("HF_TOKEN")
    hub.accounts = {"hf_secret": Account("me")}
    options = [*TINY.split(), "--save_steps", "1", "--push_to_hub", "--hub_token", "hf_secret"]
    options += [] if private is None else ["--hub_private_repo", str(private).lower()]
    poa("pretrain", "--config", QUICKSTART, *options, "--output_dir", tmp_path / "run")
    assert hub.model("me/run").private == bool(private)
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    contents = [path.read_bytes() for path in written] + list(hub.model("me/run").files().values())
    assert not any(b"hf_secret" in content for content in contents)
    assert yaml.safe_load(hub.model("me/run").files()["config.yaml"])["hub_model_id"] == "me/run"


@pytest.mark.slow
def test_the_last_checkpoint_or_all_of_them_are_pushed(tmp_path, hub, titles):
    one_by_one = [lambda n=n: hub.count("POST", COMMIT) == n for n in (1, 2)]
    last = pushed_run(tmp_path / "last", [Patient(*one_by_one)], max_steps=3, hub_strategy="checkpoint")
    assert folders(hub.model("me/last")) == {"last-checkpoint"}
    state = json.loads(hub.model("me/last").files()["last-checkpoint/trainer_state.json"])
    assert state["global_step"] == 3 == last.state.global_step
    hub.clear()
    pushed_run(tmp_path / "all", [Patient(*one_by_one)], max_steps=3, hub_strategy="all_checkpoints")
    assert folders(hub.model("me/all")) == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
    assert [path.name for path in sorted((tmp_path / "all").glob("checkpoint-*"))] == ["checkpoint-2", "checkpoint-3"]
    hub.clear()
    pushed_run(tmp_path / "end", hub_strategy="end")
    assert titles("me/end") == ["End of training"] and folders(hub.model("me/end")) == set()


@pytest.mark.slow
def test_no_pickle_and_no_path_is_pushed(tmp_path, hub):
    folder = tmp_path / "secretuser" / "run"
    pushed_run(folder, hub_strategy="all_checkpoints")
    files = hub.model("me/run").files()
    assert not [path for path in files if path.endswith((".pkl", ".pt", ".pickle"))]
    assert not [path for path, content in files.items() if b"secretuser" in content]


@pytest.mark.slow
def test_a_failing_hub_is_said_once_and_made_good(tmp_path, hub, titles, caplog):
    fault = hub.inject("POST", COMMIT, times=2, status=503)
    waits = Patient(lambda: fault.struck == 2, lambda: hub.count("POST", COMMIT) > 2)
    pushed_run(tmp_path / "run", [waits], max_steps=3, hub_strategy="checkpoint")
    warnings = [record.getMessage() for record in caplog.records if "push" in record.getMessage()]
    assert len(warnings) == 1 and warnings[0].startswith("Step 1 could not be pushed to ")
    assert "/me/run: the Hub answered 503" in warnings[0]
    assert warnings[0].endswith("training goes on, and it is tried again.")
    assert titles()[-1] == "End of training"
    assert hub.model("me/run").files()["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("status", [503, 403, None])
def test_a_hub_that_takes_nothing_does_not_stop_the_run(tmp_path, hub, caplog, short, status):
    if status is None:
        hub.inject("POST", COMMIT, times=None, hold="before")
    else:
        hub.inject("POST", COMMIT, times=None, status=status)
    begun = time.monotonic()
    trainer = pushed_run(tmp_path / "run", max_steps=4, hub_strategy="checkpoint")
    assert trainer.state.global_step == 4 and time.monotonic() - begun < 30
    last = caplog.messages[-1]
    assert last.startswith("Step 4 was not pushed to me/run (") and "trainer.push_to_hub() pushes it." in last
    assert folders(hub.model("me/run")) == set()
    hub.clear()
    assert trainer.push_to_hub() == f"{hub.endpoint}/me/run"
    assert folders(hub.model("me/run")) == {"last-checkpoint"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"status": 503}, {"hold": "before"}], ids=["fails", "hangs"])
def test_a_hub_that_is_away_at_the_start_is_asked_again(tmp_path, hub, caplog, monkeypatch, options):
    monkeypatch.setattr(hub_pushes, "_SECONDS_AT_START", 0.5)
    fault = hub.inject("GET", "whoami", times=None, **options)
    trainer = pushed_run(tmp_path / "run", train=False)
    fault.times = 3
    fault.struck = 0
    trainer.train()
    assert [text for text in caplog.messages if text.startswith("run cannot be pushed to yet (")]
    assert hub.model("me/run").files()["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_checkpoint_that_is_being_pushed_stays(tmp_path, hub):
    fault = hub.inject("POST", COMMIT, hold="before")
    seen = []

    class Look(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 1:
                return
            fault.reached.wait(30)
            seen.append(sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")))
            if state.global_step == 4:
                fault.release()

    options = dict(max_steps=4, save_total_limit=1, hub_strategy="checkpoint")
    pushed_run(tmp_path / "run", [Patient(fault.reached.is_set), Look()], **options)
    # step 1 is being pushed, and the newest waits; those that waited before it are gone
    assert seen == [["checkpoint-1", "checkpoint-2"], ["checkpoint-1", "checkpoint-2", "checkpoint-3"],
                    ["checkpoint-1", "checkpoint-3", "checkpoint-4"]]  # fmt: skip
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-4"]


@pytest.mark.slow
def test_never_two_pushes_at_once_and_the_newest_first(tmp_path, hub, titles):
    fault = hub.inject("POST", COMMIT, hold="before")
    release = Patient(fault.reached.is_set, lambda: True, lambda: True, lambda: True, lambda: fault.release() is None)
    pushed_run(tmp_path / "run", [release], max_steps=6, save_total_limit=1)
    assert titles()[0] == "Training in progress, step 1" and titles()[-1] == "End of training"
    assert len(titles()) <= 4  # those in between were left out
    commits = [request for request in hub.requests if COMMIT in request.path]
    assert len(commits) == len(titles())


@pytest.mark.slow
def test_a_run_that_is_stopped_says_what_was_not_pushed(tmp_path, hub, caplog, short, monkeypatch):
    import os
    import signal

    hub.inject("POST", COMMIT, times=None, hold="before")

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)

    begun = time.monotonic()
    with pytest.raises(TrainingInterrupted):
        pushed_run(tmp_path / "run", [Stop()], max_steps=4, hub_strategy="checkpoint")
    assert time.monotonic() - begun < 25
    assert any(text.startswith("Step 1 was not pushed to me/run") for text in caplog.messages)


def _push_with_two(endpoint, folder):
    from huggingface_hub import constants

    constants.ENDPOINT = endpoint
    options = dict(push_to_hub=True, hub_strategy="checkpoint", hub_token="hf_me", max_steps=2, save_steps=1)
    trainer = train(folder, {}, options | dict(per_device_train_batch_size=2))
    assert trainer.args.hub_model_id == "me/run"
    try:
        train(f"{folder}-2", {}, options | dict(hub_model_id="you/run", per_device_train_batch_size=2))
    except ValueError as error:
        assert "'you' is not a namespace of me" in str(error)
    else:
        raise AssertionError("it was not refused")


@pytest.mark.slow
def test_two_processes_push_once(tmp_path, hub, titles):
    in_processes(2, _push_with_two, hub.endpoint, str(tmp_path / "run"), environment={"HF_TOKEN": "hf_me"})
    assert hub.count("GET", "whoami") == 2  # of the main process of each run
    assert titles()[-1] == "End of training" and len(titles()) <= 3
    assert {path for path in hub.model("me/run").files() if "data_state" in path} == {
        "last-checkpoint/data_state_0.json", "last-checkpoint/data_state_1.json",
    }  # fmt: skip


@pytest.mark.slow
def test_push_to_hub_without_the_argument(tmp_path, hub, titles):
    args = arguments(tmp_path / "run", max_steps=1)
    trainer = PoaTrainer(new_model(), args, images())
    trainer.train()
    assert hub.repos == {}
    assert trainer.push_to_hub("A model") == f"{hub.endpoint}/me/run"
    assert titles() == ["A model"]
    hub.commit(hub.model("me/run"), {"README.md": b"my own page"})
    trainer.push_to_hub()
    assert hub.model("me/run").files()["README.md"] == b"my own page"


@pytest.mark.slow
def test_a_finished_run_is_pushed_by_poa_resume(tmp_path, hub, poa, short, caplog):
    fault = hub.inject("POST", COMMIT, times=None, status=503)
    options = [*TINY.split(), "--save_steps", "1", "--push_to_hub", "--hub_strategy", "checkpoint"]
    run = tmp_path / "run"
    assert main(["pretrain", "--config", QUICKSTART, *options, "--output_dir", str(run)]) == 0
    assert f"it is in {run}, and poa resume {run} pushes it." in caplog.messages[-1]
    fault.times = 0
    said = poa("resume", run)
    assert f"{run} is already at step 2 of 2" in said and "Step 2 pushed to" in said
    assert folders(hub.model("me/run")) == {"last-checkpoint"}
    assert Path(run, "model.safetensors").read_bytes() == hub.model("me/run").files()["model.safetensors"]
    poa("extract", "me/run", "--size", "small", "--output", tmp_path / "small")
    assert (tmp_path / "small" / "model.safetensors").exists()
