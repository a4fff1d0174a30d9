"""Compiled blocks in several processes: gradients are those of one process that compiles nothing; resuming is exact."""

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from poa_hf import PoaTrainingArguments
from poa_hf.models.compiled_blocks import BlockCompiler
from poa_hf.training import compilation
from poa_hf.training.engines import new_accelerator, prepare

from .processes import in_processes, launch_environment, losses, train
from .test_gradient_averaging import SIZES, gradients_of, new_model, share

FSDP2 = launch_environment("fsdp2.yaml")
slow = pytest.mark.slow
# Fewer kinds of blocks to compile.
SMALL = {"intact_weight": 1.0}


def compute(folder: str, compiled: bool, fields: dict) -> None:
    """Save the gradients of the second of two steps, for which DDP makes other buckets than for the first."""
    model, accelerator = new_model(**fields), new_accelerator(PoaTrainingArguments(output_dir=folder))
    rank, processes = accelerator.process_index, accelerator.num_processes
    compiler = BlockCompiler(backend="aot_eager")
    model.compile_blocks(compiler if compiled else None)
    wrapped, _ = prepare(accelerator, model, PoaTrainingArguments(output_dir=folder))
    for step in range(2):
        model.zero_grad()
        batch = share(step, 0 if fields else 2, rank, processes)
        wrapped(**batch, sub_network=SIZES[0], teacher_temperature=0.05).loss.backward()
    assert (compiler.compilations > 0) == compiled and compiler.recompilations == 0
    torch.save(gradients_of(model), Path(folder) / f"gradients-{rank}.pt")


@pytest.mark.parametrize(
    ("environment", "fields"),
    [(None, SMALL), pytest.param(None, {}, marks=slow), pytest.param(FSDP2, {}, marks=slow)],
    ids=["ddp-small", "ddp", "fsdp2"],
)
def test_gradients_are_those_of_one_process_without_a_compiler(environment, fields, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    in_processes(1, compute, str(alone), False, fields)
    in_processes(2, compute, str(together), True, fields, environment=environment)
    plain = torch.load(alone / "gradients-0.pt")
    for rank in range(2):
        found = torch.load(together / f"gradients-{rank}.pt")
        assert found.keys() == plain.keys()
        for name, gradient in plain.items():
            if "k_proj.bias" not in name:  # no attention depends on it: its gradient is nothing but rounding
                error = (found[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-6)
                assert error < 1e-5, (name, float(error))


def train_compiled(folder: str, options: dict) -> None:
    """A run that compiles without a C++ compiler, which would take minutes."""
    compilation.BlockCompiler = functools.partial(BlockCompiler, backend="aot_eager")
    compilation.check_compiler = lambda device: None
    shared = {"compile": "blocks", "per_device_train_batch_size": 4, "max_steps": 4, "save_steps": 2}
    trainer = train(folder, {}, {**shared, **options})
    assert trainer.model.compiles_blocks


@slow
@pytest.mark.parametrize("environment", [None, FSDP2], ids=["ddp", "fsdp2"])
def test_resuming_is_exact(environment, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    in_processes(2, train_compiled, str(whole), {}, environment=environment)
    options = {"resume_from_checkpoint": str(whole / "checkpoint-2")}
    in_processes(2, train_compiled, str(resumed), options, environment=environment)
    expected, found = losses(whole), losses(resumed)
    assert list(found) == [3, 4] and all(found[step] == expected[step] for step in found)
    weights, others = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@slow
def test_accumulated_steps_in_bfloat16_are_those_without_a_compiler(tmp_path):
    compiled, plain = tmp_path / "compiled", tmp_path / "plain"
    options = {"bf16": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 3}
    in_processes(2, train_compiled, str(compiled), options)
    in_processes(2, train, str(plain), {}, {**options, "compile": "off"})
    expected, found = losses(plain), losses(compiled)
    assert list(found) == list(expected) == [1, 2, 3]
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-2), step
