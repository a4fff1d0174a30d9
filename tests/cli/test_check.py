import os
import shutil

import pytest

from poa_hf.cli.main import main
from poa_hf.runs.checkpoints import start_folder

from ..runs.folders import flip_bit


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run that has ended, with two checkpoints, two evaluations and the owner's card."""
    from poa_hf import PoaTrainer
    from poa_hf.runs.evaluations import save_evaluations

    from ..runs.test_evaluations import record
    from ..training.test_trainer import arguments, images, new_model

    run = tmp_path_factory.mktemp("check") / "run"
    PoaTrainer(new_model(), arguments(run, save_steps=2), images()).train()
    save_evaluations(run, [record(), record(step=8)])
    (run / "card.yaml").write_text("contact: me@example.org\n")
    return run


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def test_a_sound_run_has_a_line_for_each_part(run, capsys, monkeypatch):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["check", str(run)]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["checkpoint-2", "sound"],
        ["checkpoint-4", "sound"],
        ["model", "sound"],
        ["training_args.json", lines[3][1]],
        ["metrics.jsonl", "4 lines"],
        ["compute.json", "up to step 4"],
        ["evaluations.json", "2 records"],
        ["card.yaml", "1 fields"],
    ]
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["check", str(run / "checkpoint-2")]) == 0
    assert capsys.readouterr().out.split() == ["checkpoint-2", "sound"]
    monkeypatch.chdir(run / "checkpoint-2")
    for name, parts in ((".", ["checkpoint-2"]), ("..", [name for name, _ in lines])):
        assert main(["check", name]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == parts


@pytest.mark.parametrize(
    "name, part",
    [
        ("checkpoint-2/model.safetensors", "checkpoint-2"),
        ("checkpoint-4/optimizer.bin", "checkpoint-4"),
        ("checkpoint-4/data_state_0.json", "checkpoint-4"),
        ("checkpoint-4/checksums.json", "checkpoint-4"),
        ("model.safetensors", "model"),
        ("preprocessor_config.json", "model"),
    ],
)
def test_a_flipped_bit_makes_a_part_damaged(run, capsys, name, part):
    flip_bit(run / name, 0.5)
    assert main(["check", str(run)]) == 2
    out, error = capsys.readouterr()
    damaged = [line for line in out.splitlines() if " damaged: " in line]
    assert len(damaged) == 1 and damaged[0].startswith(part)
    # a flipped bit in a checksum makes another file differ from it
    assert name.rpartition("/")[2] in damaged[0] or (name.endswith("checksums.json") and "checksum" in damaged[0])
    assert error.startswith(f"poa: {run} has damaged parts ({part}): ") and error.count("\n") == 1


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("evaluations.json", "[\n{,\n]", "line 2, column 2 is not JSON"),
        ("metrics.jsonl", '{"step": 1}\nx\n{"step": 2}\n', "broken lines: 2"),
        ("training_args.json", "[]", "it holds list, not an object"),
        ("card.yaml", "licence: [", "line 1 is not valid YAML"),
        ("config.yaml", "- a\n", "must hold `key: value` lines"),
        ("compute.json", '{"parts": [{"\\u001b[2J": 1}]}', "it does not hold the devices and times of a run"),
        ("evaluations.json", '[{"\\u001b[2J": 1}]', "record 1 is not an evaluation: it got an unexpected"),
        ("latency-cpu-b1.json", "", "line 1, column 1 is not JSON"),
        ("skipped_images.jsonl", '{"step": 1}\n{"image": "a"}\n{"step": 2}\n', "broken lines: 2"),
        ("image_ids-12.jsonl", "[]\n", "broken lines: 1"),
        ("unit_order.json", "{", "is not JSON"),
    ],
)
def test_a_damaged_record_is_named_with_the_place(run, capsys, name, content, said):
    (run / name).write_text(content)
    assert main(["check", str(run)]) == 2
    out, error = capsys.readouterr()
    (line,) = [line for line in out.splitlines() if line.startswith(name)]
    assert line.isprintable() and " damaged: " in line and said in line and name in error.partition("damaged parts")[2]


def test_checkpoints_of_earlier_versions_are_read_without_checksums(run, capsys):
    for folder in (run, run / "checkpoint-2"):
        (folder / "checksums.json").unlink()
    assert main(["check", str(run)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    without = "readable, but without checksums to compare it with"
    assert [lines[part] for part in ("checkpoint-2", "checkpoint-4", "model")] == [without, "sound", without]


def test_a_resumed_run_has_no_model_until_it_ends(run, capsys):
    start_folder(run, run / "checkpoint-4", overwrite=False)
    assert (run / "model.safetensors").exists() and main(["check", str(run)]) == 0
    assert "model" not in [line.split()[0] for line in capsys.readouterr().out.splitlines()]


def test_a_lost_configuration_is_damage(run, capsys):
    (run / "config.json").unlink()
    assert main(["check", str(run)]) == 2
    assert "model                 damaged: it lacks config.json" in capsys.readouterr().out


def test_what_is_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("empty", "file", "nowhere", "checkpoint-5"):
        assert main(["check", str(tmp_path / name)]) == 2
        assert f"{name} is no run: give the output_dir of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command, name",
    [
        *((command, "model.safetensors") for command in ("evaluate", "extract", "report", "push", "select")),
        *((command, "config.json") for command in ("report", "select")),
    ],
)
def test_no_command_uses_a_damaged_model(run, capsys, tmp_path, name, command):
    path = run / name
    if name == "config.json":  # another number, but a good configuration
        path.write_text(path.read_text().replace('"koleo_weight": 0.1', '"koleo_weight": 0.2'))
    else:
        flip_bit(path)
    options = {
        "evaluate": ["--dataset_name", "textures"],
        "extract": ["--size", "small", "--output", str(tmp_path / "out")],
        "push": ["--size", "small", "--namespace", "me", "--dry_run"],
        "report": ["--dataset_name", "textures", "--images", "1"],
        "select": [],
    }
    status = main([command, str(run), *options[command]])
    error = capsys.readouterr().err
    said = f"The model in {run} is damaged ({name} has another content"
    if command == "select" and name == "model.safetensors":  # costs do not depend on the weights
        assert status == 0
    else:
        assert status == 2 and said in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_files_follow_the_umask(tmp_path, monkeypatch):
    """As Path.write_text makes them, whatever a library would give its files."""
    from poa_hf import PoaTrainer

    from ..training.test_trainer import arguments, images, new_model

    former = os.umask(0o027)
    try:
        PoaTrainer(new_model(), arguments(tmp_path / "run", max_steps=1), images()).train()
        for command in (["extract", "--size", "small", "--output", str(tmp_path / "small")], ["report"], ["select"]):
            assert main([command[0], str(tmp_path / "run"), *command[1:]]) == 0
    finally:
        os.umask(former)
    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    wrong = {str(path): oct(mode) for path, mode in modes.items() if mode != (0o750 if path.is_dir() else 0o640)}
    assert not wrong and any(path.name == "report" for path in modes)
