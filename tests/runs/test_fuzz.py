"""Whatever lies in a run's folder, reading it gives a result or one sentence, which is a ValueError or an OSError."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poa_hf import PoaTrainer, load_run
from poa_hf.elastic import ElasticSpace
from poa_hf.runs.checkpoints import find_checkpoint
from poa_hf.runs.comparison import choose, compare, images_of, one_per_measure
from poa_hf.runs.evaluations import load_evaluations, save_evaluations
from poa_hf.runs.facts import RunFacts
from poa_hf.runs.inspection import inspect_run
from poa_hf.runs.json_lines import JsonLines, broken_lines, read_lines
from poa_hf.runs.metrics import display_order

from ..training.test_trainer import arguments, images, new_model
from .test_evaluations import record

SPACE = ElasticSpace(widths=(16, 32), depths=((1,), (2,)))
TIMES = dict(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**400, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def sentence(error: Exception) -> None:
    text = " ".join(str(error).split())
    assert 10 < len(text) < 1500, text


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("fuzz") / "run"
    PoaTrainer(new_model(), arguments(run, max_steps=2, save_steps=1), images()).train()
    save_evaluations(run, [record(), record(size="16x1", settings={"k": 10})])
    return run


def mutate(draw, folder, names) -> None:
    """Damage a few files of a folder, as disks, people and programs do."""
    for _ in range(draw(st.integers(1, 3))):
        path = folder / draw(st.sampled_from(names))
        if not path.is_file():
            continue
        content = path.read_bytes()
        match draw(st.sampled_from(["delete", "cut", "flip", "swap", "bytes", "json", "field", "folder", "link"])):
            case "delete":
                path.unlink()
            case "cut":
                path.write_bytes(content[: draw(st.integers(0, max(0, len(content) - 1)))])
            case "flip" if content:
                at = draw(st.integers(0, len(content) - 1))
                path.write_bytes(
                    content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
                )
            case "swap":
                other = folder / draw(st.sampled_from(names))
                if other.is_file():
                    path.write_bytes(other.read_bytes())
                    other.write_bytes(content)
            case "bytes":
                path.write_bytes(draw(st.binary(max_size=64)))
            case "json":
                path.write_text(json.dumps(draw(JSON)))
            case "field" if path.suffix == ".json":
                try:
                    fields = json.loads(content)
                except ValueError:
                    continue
                if isinstance(fields, dict) and fields:
                    fields[draw(st.sampled_from(sorted(fields)))] = draw(JSON)
                    path.write_text(json.dumps(fields))
            case "folder":
                path.unlink()
                path.mkdir()
            case "link":
                path.unlink()
                path.symlink_to(path.name)  # to itself


def damaged_run(draw, finished_run, target) -> tuple[Path, bool]:
    """A copy of a run whose last checkpoint is damaged, and whether the checkpoint still has a file of checksums."""
    shutil.copytree(finished_run, target)
    checkpoint = target / "checkpoint-2"
    if draw(st.booleans()):
        (checkpoint / "checksums.json").unlink()
    mutate(draw, checkpoint, sorted(os.listdir(checkpoint)))
    return checkpoint, (checkpoint / "checksums.json").exists()


@given(data=st.data())
@settings(max_examples=50, **TIMES)
def test_damaged_checkpoints(finished_run, tmp_path_factory, data):
    run = tmp_path_factory.mktemp("one") / "run"
    checkpoint, _ = damaged_run(data.draw, finished_run, run)
    for resume in (True, str(checkpoint)):
        try:
            found = find_checkpoint(run, resume, overwrite=False, thorough=True)
            assert found in (checkpoint, run / "checkpoint-1")
        except ValueError as error:
            sentence(error)
            assert resume is not True and str(checkpoint) in str(error)  # checkpoint-1 is sound
    for part in inspect_run(run):
        assert "\n" not in part.state and (part.is_sound or part.name == "checkpoint-2")
    shutil.rmtree(run)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=8, **TIMES)
def test_runs_with_damaged_checkpoints_go_on_or_say_why(finished_run, tmp_path_factory, data):
    resume_one(finished_run, tmp_path_factory, data)


@pytest.mark.slow
@pytest.mark.timeout(900)
@given(data=st.data())
@settings(max_examples=40, **TIMES)
def test_many_runs_with_damaged_checkpoints_go_on_or_say_why(finished_run, tmp_path_factory, data):
    resume_one(finished_run, tmp_path_factory, data)


def resume_one(finished_run, tmp_path_factory, data) -> None:
    run = tmp_path_factory.mktemp("one") / "run"
    _, has_checksums = damaged_run(data.draw, finished_run, run)
    try:
        trainer = PoaTrainer(new_model(), arguments(run, max_steps=2, resume_from_checkpoint=True), images())
        assert trainer.train().global_step == 2
        assert all(part.is_sound for part in inspect_run(run))
    except ValueError as error:
        sentence(error)
        assert not has_checksums  # then nothing hides that another checkpoint is to be used
    shutil.rmtree(run)


@given(data=st.data())
@settings(max_examples=100, **TIMES)
def test_damaged_evaluations(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "evaluations.json"
    path.unlink(missing_ok=True)
    save_evaluations(path, [record(size="16x1"), record(size="32x2", task="lowshot", metric="lowshot_accuracy")])
    content = json.loads(path.read_text())
    if data.draw(st.booleans()):
        for name in data.draw(st.lists(st.sampled_from(sorted(content[1])), min_size=1, max_size=2)):
            value = data.draw(JSON)
            content[1][name] = (
                {data.draw(st.sampled_from(["k", "label_share"])): value} if name == "settings" else value
            )
        path.write_text(json.dumps(content))
    elif data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(JSON)))
    else:
        path.write_bytes(data.draw(st.binary(max_size=100)))
    try:
        records = load_evaluations(path)
        save_evaluations(path, [record()])
    except ValueError as error:
        assert str(path) in str(error)
        sentence(error)
        return
    for comparison in one_per_measure(compare(records, SPACE, 7)):
        names = (comparison.title, comparison.description, images_of(comparison.example))
        assert all(isinstance(name, str) for name in names)
    choose(compare(records, SPACE))
    sorted(records, key=display_order)


@given(lines=st.lists(st.binary(max_size=30) | JSON.map(lambda value: json.dumps(value).encode()), max_size=8))
@settings(max_examples=100, **TIMES)
def test_damaged_logs(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    path.write_bytes(b"\n".join([b'{"step": 1, "loss": 2.5}', *lines, b'{"step": 2}\n']))
    found = read_lines(path)
    assert found[0] == {"step": 1, "loss": 2.5} and found[-1] == {"step": 2}
    assert all(isinstance(line["step"], int) for line in found)
    JsonLines(path, 1, enabled=True).write({"step": 2, "loss": 2.0})
    assert broken_lines(path) == [] and read_lines(path)[-1] == {"step": 2, "loss": 2.0}


@given(data=st.data())
@settings(max_examples=100, **TIMES)
def test_damaged_safetensors_headers(finished_run, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(finished_run / "config.json", folder)
    content = (finished_run / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, tensors = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
    match data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "name", "length", "bytes", "metadata"])):
        case "name":
            header[data.draw(st.text(max_size=8))] = header.pop(name)
        case "length":
            length = data.draw(st.sampled_from([0, 1, length - 1, length + 1, 1 << 20, 1 << 40, 2**64 - 1]))
        case "bytes":
            tensors = tensors[: data.draw(st.integers(0, len(tensors)))]
        case "metadata":
            header["__metadata__"] = data.draw(JSON)
        case field:
            kinds = {
                "dtype": st.sampled_from(["F16", "BF16", "F64", "I8", "U64", "F8_E5M2", "C64", "?"]),
                "shape": st.lists(st.integers(0, 10**12), max_size=5) | JSON,
                "data_offsets": st.lists(st.integers(0, 10**12), min_size=2, max_size=2) | JSON,
            }
            header[name][field] = data.draw(kinds[field])
    text = json.dumps(header).encode()
    length = len(text) if length == struct.unpack("<Q", content[:8])[0] else length
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + text + tensors)
    try:
        load_run(folder)
    except (ValueError, OSError) as error:
        sentence(error)
        assert str(folder) in str(error)


@given(data=st.data())
@settings(max_examples=25, **TIMES)
def test_damaged_runs(finished_run, tmp_path_factory, data):
    run = tmp_path_factory.mktemp("one") / "run"
    shutil.copytree(finished_run, run)
    (run / "config.yaml").write_text("dataset_name: textures\nmodel: {}\n")
    mutate(data.draw, run, sorted(os.listdir(run)))
    for part in inspect_run(run):
        assert part.name and "\n" not in part.state
    try:
        facts = RunFacts.read(run)
        assert facts.comparisons is not None and facts.log is not None
        assert facts.images_seen is None or facts.images_seen > 0
        assert facts.peak_learning_rate is None or facts.peak_learning_rate > 0
    except (ValueError, OSError) as error:
        sentence(error)
    shutil.rmtree(run)
