"""What a run says on standard output."""

import logging
import re
import sys

import pytest
from datasets import Dataset

from poa_hf import PoaTrainer
from poa_hf.training import checks
from poa_hf.training.console import ConsoleCallback, evaluation_table, log_line, start_facts

from ..conftest import ROOT, run_python
from .test_trainer import arguments, images, metrics, new_model


def test_a_run_says_what_it_does_how_it_goes_and_what_is_next(tmp_path, capsys):
    args = arguments(tmp_path, max_steps=8, logging_steps=4, gradient_accumulation_steps=2, learning_rate=0.01)
    trainer = PoaTrainer(new_model(), args, images(32), callbacks=[ConsoleCallback("birds")])
    trainer.train()
    facts, _, rest = capsys.readouterr().out.partition("\n\n")
    said = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in facts.splitlines())
    space = trainer.model.config.backbone_config.space
    parameters = sum(p.numel() for p in trainer.model.student.parameters())
    assert f"{len(space)} sizes" in said["model"] and f"{parameters:,} parameters" in said["model"]
    assert said["images"] == "birds: 32 images"
    assert said["steps"] == "8 of 8 images (4 an accumulation), 2.00 epochs"
    assert said["rate"].startswith(f"{0.01 * (8 / 1024) ** 0.5:.2e} ")
    assert "1 process, float32, blocks not compiled" in said["device"] and said["start"] == "step 0"
    first, second, *end = rest.splitlines()
    last = metrics(tmp_path)[-1]
    assert first.startswith("step 4/8  epoch 1.00  loss ") and second.startswith("step 8/8  epoch 2.00  loss ")
    assert f"loss {last['loss']:.3f} " in second and second.count("images/s") == 1
    distilled = sum(value for name, value in last.items() if name.startswith("distill_")) / 2  # two heads
    assert f"distill {distilled:.2f}" in second
    assert end[0].startswith(f"Step 8 written to {tmp_path} after ") and end[1] == f"next: poa report {tmp_path}"
    assert end[2] == f"      poa evaluate {tmp_path} --dataset_name DATASET"  # it does not know of labels
    assert last["epoch"] == 2 and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", last["time"])


def test_a_quiet_run_says_nothing_and_a_resumed_one_where_it_starts(tmp_path, capsys):
    PoaTrainer(new_model(), arguments(tmp_path, quiet=True, max_steps=2, save_steps=1), images()).train()
    assert capsys.readouterr().out == ""
    PoaTrainer(new_model(), arguments(tmp_path, max_steps=4), images()).train(resume_from_checkpoint=True)
    assert "start   step 2, where a checkpoint ends\n" in capsys.readouterr().out


def test_facts_of_a_stream_have_its_files_and_no_epochs(tmp_path):
    stream = Dataset.from_dict({"image": images()}).to_iterable_dataset(num_shards=2)
    trainer = PoaTrainer(new_model(), arguments(tmp_path), stream)
    facts = start_facts(trainer.model, trainer.loader, trainer.args, trainer.state)
    assert facts["images"] == "a stream of 2 files" and "epochs" not in facts["steps"]


def test_a_line_of_skipped_steps_has_no_loss_and_a_gpu_its_memory():
    logs = {"step": 5, "learning_rate": 1e-3, "images_per_second": 3.0, "data_wait": 0.5}
    assert log_line(logs, 10, 7200, 5e9) == (
        "step  5/10  loss none, as all steps were skipped  lr 1.0e-03  3 images/s  wait 50%  left 2 h  5 GB"
    )


def test_changes_are_shown_for_the_same_sizes_only():
    assert "change" not in evaluation_table({"knn_a": 0.5}, 1, {"knn_b": 0.4}, False)
    assert evaluation_table({"knn_a": 0.5}, 1, {"knn_a": 0.4}, False).splitlines()[-1].split() == ["change", "+10.0"]


@pytest.mark.parametrize(
    "command", ["accelerate launch --cpu --num_processes 2", "accelerate launch --num_processes=2"]
)
def test_one_process_instead_of_two_is_said(command, monkeypatch, caplog):
    class Process:
        def __init__(self, *args):
            self.words = command.split() if args else ["python", "train.py"]

        def cmdline(self):
            return [f"/bin/{self.words[0]}", *self.words[1:]]

        def parents(self):
            return [Process(1)]

    monkeypatch.setattr(checks.psutil, "Process", Process)
    checks.warn_of_missing_processes(2)
    assert not caplog.messages
    checks.warn_of_missing_processes(1)
    assert "asked for 2 processes and started one" in caplog.messages[0]


def test_fewer_images_than_a_step_takes_is_said(tmp_path, caplog):
    PoaTrainer(new_model(), arguments(tmp_path, per_device_train_batch_size=8), images(6))
    assert any("has 6 images, but a step takes 8" in message for message in caplog.messages)


def test_the_log_level_is_that_of_the_library(tmp_path):
    logger = logging.getLogger("poa_hf")
    before = logger.level
    try:
        PoaTrainer(new_model(), arguments(tmp_path, log_level="error"), images())
        assert logger.level == logging.ERROR
    finally:
        logger.setLevel(before)
    with pytest.raises(ValueError, match="log_level is 'loud': choose one of debug, info"):
        arguments(tmp_path, log_level="loud")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_a_bar_is_shown_on_terminals_only(tmp_path):
    program = tmp_path / "train.py"
    program.write_text(
        "import fcntl, os, struct, sys, termios\n"
        "if os.isatty(0):\n"
        "    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 200, 0, 0))\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.training.test_trainer import PoaTrainer, arguments, images, new_model\n"
        "PoaTrainer(new_model(), arguments(sys.argv[1], disable_tqdm=False), images()).train()\n"
    )
    assert "step/s" not in run_python(str(program), str(tmp_path / "a")).stderr
    on_terminal = "import pty, sys; sys.exit(pty.spawn([sys.executable, *sys.argv[1:]]) != 0)"
    shown = run_python("-c", on_terminal, str(program), str(tmp_path / "b")).stdout
    assert re.search(r"\d/4 \[.*step/s", shown)
    # the bar is taken away before a line, so that each line starts on a row of its own
    assert all(
        line.lstrip("\r\x1b[A ").startswith("step ") for line in shown.splitlines() if "loss " in line and "lr " in line
    )
