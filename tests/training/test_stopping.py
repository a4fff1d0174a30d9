"""Runs that end before their last step: by signals, and because they diverge."""

import os
import signal
import subprocess
import threading

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from poa_hf import PoaTrainer
from poa_hf.data.workers import batch_loader
from poa_hf.training.stopping import TrainingDivergedError, TrainingInterrupted

from .processes import in_processes, train
from .test_trainer import arguments, images, metrics, new_model

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


class Send(TrainerCallback):
    """Sends this process a signal at one event of one step."""

    def __init__(self, number: int, step: int, event: str = "on_step_begin"):
        self.number, self.step = number, step
        setattr(self, event, self.send)

    def send(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


@pytest.fixture(autouse=True)
def usual_handlers():
    """The tests may run where SIGINT is ignored, as in the background of a shell."""
    former = [signal.signal(number, signal.SIG_DFL) for number in SIGNALS]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in zip(SIGNALS, former, strict=True):
        signal.signal(number, handler)


def weights(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    PoaTrainer(new_model(drop_path_rate=0.3), arguments(folder), images()).train()
    return folder


@pytest.mark.parametrize(
    ("number", "event", "step", "saved"),
    [
        (signal.SIGINT, "on_step_begin", 1, 2),
        (signal.SIGTERM, "on_train_begin", 0, 1),
        (signal.SIGUSR1, "on_step_end", 2, 2),  # as while evaluating
        (signal.SIGTERM, "on_log", 2, 3),  # when the step has been ended already
        (signal.SIGTERM, "on_save", 2, 3),
    ],
)
def test_a_signal_saves_the_step_and_the_resumed_run_is_the_same(tmp_path, whole, caplog, number, event, step, saved):
    options = dict(save_steps=2) if event == "on_save" else {}
    former = [signal.getsignal(each) for each in SIGNALS]
    trainer = PoaTrainer(
        new_model(drop_path_rate=0.3), arguments(tmp_path, **options), images(), [Send(number, step, event)]
    )
    with pytest.raises(TrainingInterrupted) as stop:
        trainer.train()
    assert stop.value.code == 128 + number and stop.value.signal == number and isinstance(stop.value, SystemExit)
    expected = f"Stopped by {number.name} after step {saved} of 4, which is saved: go on with "
    assert caplog.messages == [str(stop.value)] == [expected + "train(resume_from_checkpoint=True)."]
    assert [signal.getsignal(each) for each in SIGNALS] == former
    assert (tmp_path / f"checkpoint-{saved}").is_dir() and not (tmp_path / "config.json").exists()
    resumed = PoaTrainer(new_model(drop_path_rate=0.3), arguments(tmp_path), images())
    resumed.train(resume_from_checkpoint=True)
    assert weights(tmp_path) == weights(whole) and [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_signal_during_accumulation_ends_after_the_whole_step(tmp_path):
    class InTheFirstPart(PoaTrainer):
        def compute_loss(self, *args, **kwargs):
            if self.state.global_step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # so that the second part's does not count
            return super().compute_loss(*args, **kwargs)

    args = arguments(tmp_path, gradient_accumulation_steps=2)
    with pytest.raises(TrainingInterrupted, match="after step 2 of 4"):
        InTheFirstPart(new_model(), args, images()).train()


def test_a_signal_after_the_last_step_changes_nothing(tmp_path, whole):
    state = PoaTrainer(
        new_model(drop_path_rate=0.3), arguments(tmp_path), images(), [Send(signal.SIGTERM, 4, "on_step_end")]
    ).train()
    assert state.global_step == 4 and weights(tmp_path) == weights(whole)


def test_a_second_signal_has_its_usual_effect(tmp_path):
    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            os.kill(os.getpid(), signal.SIGUSR1)
            self.handlers = [signal.getsignal(each) for each in SIGNALS]

    look = Look()
    with pytest.raises(TrainingInterrupted):
        PoaTrainer(new_model(), arguments(tmp_path), images(), [look]).train()
    assert look.handlers == [signal.SIG_DFL] * 3


def test_ignored_signals_stay_ignored_and_other_threads_install_nothing(tmp_path):
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        PoaTrainer(new_model(), arguments(tmp_path / "a"), images(), [Send(signal.SIGINT, 1)]).train()
    finally:
        signal.signal(signal.SIGINT, former)
    thread = threading.Thread(target=PoaTrainer(new_model(), arguments(tmp_path / "b"), images()).train)
    thread.start()
    thread.join()
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


def stopped_together(folder: str, number: int, rank: int) -> None:
    sent = [Send(number, 1)] if int(os.environ["RANK"]) == rank else []
    options = {"max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    with pytest.raises(TrainingInterrupted, match=f"Stopped by {number.name} after step 2 of 6") as stop:
        train(folder, {}, options, callbacks=sent)
    assert stop.value.code == 128 + number


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 0)])
def test_processes_stop_together_when_one_receives_a_signal(tmp_path, number, rank):
    in_processes(2, stopped_together, str(tmp_path), number, rank)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


class NotFinite(PoaTrainer):
    """From a step on, no loss is finite."""

    since = 4

    def compute_loss(self, *args, **kwargs):
        loss, output = super().compute_loss(*args, **kwargs)
        return (loss * torch.nan if self.state.global_step + 1 >= self.since else loss), output


def test_a_diverged_run_keeps_the_checkpoint_from_before(tmp_path, caplog):
    args = arguments(tmp_path, max_steps=20, save_steps=1, save_total_limit=2, max_nonfinite_steps=5)
    with pytest.raises(TrainingDivergedError) as diverged:
        NotFinite(new_model(), args, images()).train()
    before = tmp_path / "checkpoint-3"
    assert str(diverged.value) == (
        "The loss was not finite for 5 steps in a row, up to step 8: lower learning_rate from 0.004 and resume from "
        f"{before}, the last checkpoint before them (train(resume_from_checkpoint=True))."
    )
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-3", "checkpoint-7", "checkpoint-8",
    ]  # fmt: skip
    caplog.clear()
    again = arguments(tmp_path, max_steps=5, learning_rate=0.001)
    state = PoaTrainer(new_model(), again, images()).train(resume_from_checkpoint=True)
    assert state.global_step == 5
    for step in (8, 7):
        assert f"The loss was not finite at {tmp_path}/checkpoint-{step}: resuming from checkpoint-3 instead." in (
            caplog.messages
        )
        assert (tmp_path / f"abandoned-checkpoint-{step}").is_dir()


def test_a_run_that_diverges_at_once_says_to_start_anew(tmp_path):
    class FromTheStart(NotFinite):
        since = 1

    args = arguments(tmp_path, save_steps=1, max_nonfinite_steps=3)
    with pytest.raises(TrainingDivergedError, match="no checkpoint is from before them: start anew with a lower"):
        FromTheStart(new_model(), args, images()).train()


class Pids(IterableDataset):
    def __iter__(self):
        while True:
            yield os.getpid()


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="this system does not tell who sends a signal")
def test_workers_leave_signals_to_the_main_process(tmp_path):
    batches = iter(batch_loader(Pids(), 1))
    worker = next(batches)
    for number in SIGNALS:
        subprocess.run(["kill", f"-{number.name.removeprefix('SIG')}", str(worker)], check=True)
    assert [next(batches) for _ in range(20)] == [worker] * 20  # more than were made ahead
    os.kill(worker, signal.SIGTERM)  # by the main process: as it ends a worker that hangs
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        for _ in batches:
            pass
