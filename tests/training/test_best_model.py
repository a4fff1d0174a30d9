"""Which evaluation is the best, and that its model is the one that is left, on any number of processes."""

from pathlib import Path

import pytest

from .processes import in_processes, launch_environment, train
from .test_stock_callbacks import Accuracies


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
