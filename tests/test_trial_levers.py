"""Levers that the screening tries and that are no options yet."""

import pytest
import torch

from poa_hf import PoaForPreTraining
from poa_hf.objective.heads import ProjectionHeads

from .conftest import ROOT, tiny_config


@pytest.fixture
def trial_levers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from parts import trial_levers

    return trial_levers


def moved(trial_levers, **levers):
    """The student after two steps of AdamW whose gradients are random, and before them."""
    torch.manual_seed(0)
    student = PoaForPreTraining(tiny_config()).student
    before = {name: value.clone() for name, value in student.state_dict().items()}
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.3)
    if levers:
        levers = {"rate": 1.0, "decay": 1.0} | levers
        trial_levers.slow_down(optimizer, trial_levers.smallest_entries(student), **levers)
    for _ in range(2):
        for parameter in student.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return before, student


def shared(trial_levers, student, values):
    return {cut.source: cut.leading(values[cut.source]) for _, cut in trial_levers.smallest_entries(student)}


def test_what_all_sizes_share_moves_by_a_part(trial_levers):
    before, plain = moved(trial_levers)
    _, stopped = moved(trial_levers, rate=0.0)
    now, then = shared(trial_levers, stopped, stopped.state_dict()), shared(trial_levers, stopped, before)
    assert then.keys() < set(before), "blocks that the smallest size leaves out are not its"
    assert all(torch.equal(now[name], then[name]) for name in then)
    for name, value in plain.state_dict().items():
        other = torch.ones_like(value, dtype=torch.bool)
        for _, cut in trial_levers.smallest_entries(plain):
            if cut.source == name:
                cut.leading(other).fill_(False)
        assert torch.equal(value[other], stopped.state_dict()[name][other]), name


def test_what_all_sizes_share_shrinks_less(trial_levers):
    _, without = moved(trial_levers, decay=0.0)
    torch.manual_seed(0)
    student = PoaForPreTraining(tiny_config()).student
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(2):
        for parameter in student.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    expected = shared(trial_levers, student, student.state_dict())
    for name, value in shared(trial_levers, without, without.state_dict()).items():
        torch.testing.assert_close(value, expected[name], msg=name)


def test_scale_of_heads(trial_levers, monkeypatch):
    from poa_hf.objective import heads

    monkeypatch.setattr(heads, "slice_plan", heads.slice_plan)  # put back after the test
    full = PoaForPreTraining(tiny_config()).student_head
    assert isinstance(full, ProjectionHeads)
    small = full.in_features // 2
    name = next(name for name, cut in full.sliced(small).plan.items() if cut.scale != 1)
    as_in_the_paper = full.sliced(small).tensors[name]
    trial_levers.scale_heads(0.5)
    torch.testing.assert_close(full.sliced(small).tensors[name], as_in_the_paper / 2**0.5)
