"""A step is queued on the device without waiting for it, and one that is not finite is undone there."""

from contextlib import ExitStack

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from poa_hf import PoaTrainer
from poa_hf.training import monitoring
from poa_hf.training.monitoring import DataWait, LogWindow, NonfiniteSteps
from poa_hf.training.optimization import build_optimizer, step_unless

from ..conftest import ROOT
from .test_trainer import arguments, images, new_model


class Queue(TorchDispatchMode):
    """Stands in for the queue of a GPU, as tensors on the meta device stand in for those there: whatever would have to
    wait for their values raises there, and copies from the host must not wait either."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._fused_adamw_.default, torch.ops.aten._fused_sgd_.default):
            return None  # PyTorch has them for GPUs, and for CPUs, but not for the meta device
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and result.device != args[0].device:
            assert kwargs.get("non_blocking"), f"a copy of {tuple(args[0].shape)} waits for the device"
        return result


@pytest.fixture
def meta_device(monkeypatch):
    """The meta device as one to train on, where values may not come from Python numbers, by a copy."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from parts.step_waits import stand_in_for_a_gpu

    def refuse():
        raise AssertionError("a tensor of Python numbers is copied to the device, which waits for it")

    with ExitStack() as stack:
        stand_in_for_a_gpu(stack, refuse)
        yield torch.device("meta")


@pytest.mark.parametrize("part", ["item", "mask", "nonzero", "numbers", "copy"])
def test_what_waits_for_the_device_is_noticed(meta_device, part):
    values = torch.ones(3, device=meta_device)
    waits = {
        "item": lambda: bool((values > 0).any()),
        "mask": lambda: values[values > 0],
        "nonzero": lambda: values.nonzero(),
        "numbers": lambda: torch.tensor([1.0], device=meta_device),
        "copy": lambda: torch.ones(2).to(meta_device),
    }
    with Queue(), pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        waits[part]()


@pytest.mark.parametrize("options", [dict(), dict(num_local_crops=0), dict(gradient_accumulation_steps=2)])
@pytest.mark.parametrize("step", [0, 3])
def test_a_step_waits_for_nothing_on_the_device(tmp_path, monkeypatch, meta_device, step, options):
    """The trainer's own step, from crops on the host to the new parameters, with everything on a device whose values
    cannot be read."""
    args = arguments(tmp_path, max_steps=9, logging_steps=9, **options)
    trainer = PoaTrainer(new_model(drop_path_rate=0.3), args, images())
    trainer.model.to(meta_device).train()
    trainer.optimizer_step.optimizer = build_optimizer(trainer.model, args)
    monkeypatch.setattr(type(trainer.accelerator), "device", meta_device)
    flags = []
    monkeypatch.setattr(trainer.nonfinite, "add", lambda step, flag: flags.append(flag))  # a copy to the host
    window = LogWindow()
    batches = iter(trainer.loader)
    with Queue():
        trainer.optimizer_step(batches, step, window)
    assert flags[0].device == meta_device and all(total.device == meta_device for total in window.sums.values())
    assert "ibot_loss_1" in window.sums


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: nothing to wait for")
def test_a_step_waits_for_nothing_on_a_gpu(tmp_path):
    args = arguments(tmp_path, max_steps=9, logging_steps=9, bf16=True)
    trainer = PoaTrainer(new_model(drop_path_rate=0.3), args, images())
    batches, window = iter(trainer.loader), LogWindow()
    for step in range(4):  # the first steps set libraries up
        if step == 2:
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.optimizer_step(batches, step, window)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    trainer.nonfinite.settle()
    assert trainer.nonfinite.count == 0 and trainer.nonfinite.last_step == 4


def test_a_skipped_step_changes_nothing_to_the_last_bit():
    model = new_model()
    optimizer = build_optimizer(model, arguments("unused"))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for value, skip in ((1.0, False), (float("nan"), True), (1.0, False)):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, value) if parameter.requires_grad else None
        before = [p.clone() for p in model.parameters()]
        state = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
        step_unless(torch.tensor(skip), optimizer)
        model.update_teacher(0.9, torch.tensor(skip))
        same = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
        assert all(same) if skip else not any(same)
        for parameter, kept in state.items():
            assert all(torch.equal(optimizer.state[parameter][k], v) == skip for k, v in kept.items())
    assert {float(s["step"]) for s in optimizer.state.values()} == {2.0}


def test_the_teacher_is_kept_from_a_student_that_is_not_finite():
    model = new_model()
    before = [p.clone() for p in model.teacher.parameters()]
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.fill_(float("nan"))
    model.update_teacher(0.9, torch.tensor(True))
    assert all(torch.equal(a, b) for a, b in zip(before, model.teacher.parameters(), strict=True))


def test_a_gpu_waits_for_data_from_the_end_of_its_work_only(monkeypatch):
    """By events of a GPU that is not there: each says when it was passed, in seconds from the start."""

    class Event:
        def __init__(self, passed, now):
            self.passed, self.now, self.synchronised = passed, now, False

        def query(self):
            return self.passed <= clock[self.now]

        def synchronize(self):
            self.synchronised = True

        def elapsed_time(self, end):
            assert end.synchronised
            return 1000 * (end.passed - self.passed)

    # the host waits from 1 s to 5 s; the device's work ends before, meanwhile and afterwards
    for work_ends, expected in ((0.5, 4.0), (3.0, 2.0), (6.0, 0.0)):
        clock, wait = [1.0, 5.0], DataWait()
        events, times = iter([Event(work_ends, 1), Event(5.1, 1)]), iter(clock)
        monkeypatch.setattr(monitoring, "_timed_event", lambda device, events=events: next(events))
        monkeypatch.setattr(monitoring.time, "perf_counter", lambda times=times: next(times))
        with wait.waiting(torch.device("cuda")):
            pass
        assert wait.seconds() == pytest.approx(expected, abs=0.11) and wait.seconds() == wait.seconds()


def test_flags_of_a_device_are_read_one_step_later(caplog):
    class Event:
        waited = 0

        def synchronize(self):
            self.waited += 1

    steps, events = NonfiniteSteps(is_main=True), [Event() for _ in range(4)]
    for number, (skipped, event) in enumerate(zip([True, True, False, True], events, strict=True), start=1):
        steps._flags._unread.append((number, torch.tensor(skipped), event))
        steps._count(wait=False)
        assert steps.last_step == number - 1 and event.waited == 0
    assert (steps.count, steps.in_a_row) == (2, 0)
    steps.settle()
    assert (steps.count, steps.in_a_row, steps.last_step) == (3, 1, 4)
    assert [record.args[0] for record in caplog.records] == [1, 2, 4] and all(event.waited == 1 for event in events)
