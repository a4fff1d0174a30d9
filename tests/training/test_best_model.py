"""Which evaluation is the best, and that its model is the one that is left, on any number of processes."""

from pathlib import Path

import pytest
from transformers import TrainerState

from poa_hf import PoaTrainer
from poa_hf.training.callbacks import EvaluationCallback
from poa_hf.training.flow import keep_best

from .processes import in_processes, launch_environment, train
from .test_stock_callbacks import Accuracies
from .test_trainer import arguments, images, metrics, new_model


def train_evaluated(folder: str, values_of_ranks: list[list[float]], best: int, options: dict) -> None:
    """A run with these evaluations on each process, every second step, whose best one is known."""
    import os

    values = values_of_ranks[int(os.environ["RANK"])]
    options = {"per_device_train_batch_size": 2, "load_best_model_at_end": True, "quiet": True, **options}
    trainer = train(folder, {}, options, callbacks=[Accuracies(*values)])
    assert trainer.state.best_global_step == best
    assert trainer.state.best_model_checkpoint == str(Path(folder) / f"checkpoint-{best}")


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("engine", [None, pytest.param("fsdp2.yaml", marks=pytest.mark.slow)], ids=["ddp", "fsdp2"])
def test_the_best_model_is_left_by_two_processes_and_after_a_resume(engine, tmp_path):
    environment = launch_environment(engine) if engine else None
    folder = str(tmp_path)
    falling, other = [0.5, 0.25], [0.5, 0.75]  # what the second process measures does not count
    in_processes(2, train_evaluated, folder, [falling, other], 2, {"max_steps": 4}, environment=environment)
    assert weights(tmp_path) == weights(tmp_path / "checkpoint-2") != weights(tmp_path / "checkpoint-4")
    options = {"max_steps": 8, "resume_from_checkpoint": "true"}
    higher = [0.625, 0.375]
    in_processes(2, train_evaluated, folder, [higher, higher], 6, options, environment=environment)
    assert weights(tmp_path) == weights(tmp_path / "checkpoint-6") != weights(tmp_path / "checkpoint-8")


class Spread(EvaluationCallback):
    """Measures something of its own at the end."""

    def evaluate(self, args, state, model):
        return {"spread": 2.0}


def test_an_evaluation_may_measure_something_else_if_no_best_one_is_wanted(tmp_path):
    trainer = PoaTrainer(new_model(), arguments(tmp_path, max_steps=2, quiet=True), images(), callbacks=[Spread()])
    state = trainer.train()
    assert state.global_step == 2 and state.best_global_step is None and metrics(tmp_path)[-1]["spread"] == 2
    args = arguments(tmp_path / "named", max_steps=2, quiet=True, metric_for_best_model="eval_spread")
    assert PoaTrainer(new_model(), args, images(), callbacks=[Spread()]).train().best_metric == 2


@pytest.mark.parametrize(
    "options",
    [{"load_best_model_at_end": True}, {"save_strategy": "best"}, {"metric_for_best_model": "knn_16x1"}],
    ids=lambda options: next(iter(options)),
)
def test_a_best_one_that_is_wanted_must_be_measured(options, tmp_path):
    with pytest.raises(ValueError, match="which was not measured: choose one of spread."):
        keep_best({"spread": 2.0}, arguments(tmp_path, **options), TrainerState())


@pytest.mark.parametrize(
    ("values", "best"),
    [([float("nan"), 0.3, 0.2], 0.3), ([0.3, float("nan"), 0.2], 0.3), ([0.1, float("inf"), 0.2], 0.2)],
)
def test_a_value_that_is_not_finite_is_never_the_best(values, best, tmp_path):
    state, args = TrainerState(), arguments(tmp_path)
    for state.global_step, value in enumerate(values):
        assert keep_best({"knn_mean": value}, args, state) is (state.best_global_step == state.global_step)
    assert state.best_metric == best and state.best_global_step == values.index(best)
