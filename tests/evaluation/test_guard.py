"""The guard of a warm start: the full size is not to fall below what it was."""

import logging

import pytest
import torch

from poa_hf import PoaTrainer, WarmStartGuard

from ..training.test_trainer import arguments, images, metrics, new_model
from .test_callback import textures


class Spoiled(WarmStartGuard):
    """Measures a teacher whose full size is good, but spoiled from a step to another one."""

    spoiled = range(3, 6)

    def _measure(self, args, state, model):
        values = super()._measure(args, state, model)
        return values | {self.full: 0.3 if state.global_step in self.spoiled else 0.9}


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if "has lost" in r.getMessage()]


def run(tmp_path, callback, **overrides):
    args = arguments(tmp_path, **{"learning_rate": 1e-6, "save_steps": 4, "max_steps": 8, **overrides})
    trainer = PoaTrainer(new_model(), args, images(), callbacks=[callback])
    return trainer


def test_the_start_is_measured_and_a_fall_is_said_once_for_as_long_as_it_lasts(tmp_path, caplog):
    trainer = run(tmp_path, Spoiled(textures(), every_steps=1, sizes=["small"], k=5))
    with caplog.at_level(logging.WARNING, logger="poa_hf"):
        state = trainer.train()
    (message,) = warnings(caplog)
    start = state.log_history[0]
    assert start["step"] == 0 and start["knn_start"] == start["knn_32x3"] and "knn_16x1" in start
    # 40 test images: the root of (0.9 * 0.1 + 0.3 * 0.7) / 40
    assert "lost 60.0 points" in message and "(90.0 % to 30.0 % at step 3; " in message and "difference 8.7)" in message
    assert "lower learning_rate" in message
    assert all(line["knn_start"] == start["knn_start"] for line in metrics(tmp_path))


def test_it_knows_after_a_resume_what_the_start_was_and_that_it_has_warned(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="poa_hf"):
        run(tmp_path, Spoiled(textures(), every_steps=1, sizes=["small"], k=5)).train()
        caplog.clear()
        callback = Spoiled(textures(), every_steps=1, sizes=["small"], k=5)
        run(tmp_path, callback).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert callback.start == 0.9 and not warnings(caplog)
    assert [line["knn_start"] for line in metrics(tmp_path)] == [0.9] * 8


def test_training_is_not_changed_by_it(tmp_path):
    weights = []
    for name, callbacks in (("without", []), ("with", [WarmStartGuard(textures(), 2, ["small"], k=5)])):
        model = new_model(drop_path_rate=0.3)
        PoaTrainer(model, arguments(tmp_path / name), images(), callbacks=callbacks).train()
        weights.append(model.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize(("now", "fallen"), [(0.9, False), (0.48, False), (0.40, True)])
def test_it_warns_beyond_the_margin_and_two_standard_errors(now, fallen):
    guard = WarmStartGuard(textures(), every_steps=1, margin=0.01)
    guard.num_test_images = 1000
    # the difference's standard error is about 0.022: 0.5 may fall to about 0.445
    assert guard._has_fallen(0.5, now) is fallen


def test_a_run_that_was_not_measured_at_its_start_says_so(tmp_path, caplog):
    PoaTrainer(new_model(), arguments(tmp_path, save_steps=2), images()).train()
    with caplog.at_level(logging.WARNING, logger="poa_hf"):
        callback = WarmStartGuard(textures(), every_steps=2, k=5)
        trainer = PoaTrainer(new_model(), arguments(tmp_path), images(), callbacks=[callback])
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "was not evaluated at its start" in caplog.text
    with pytest.raises(ValueError, match="margin is 2"):
        WarmStartGuard(textures(), every_steps=2, margin=2)
