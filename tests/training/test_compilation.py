"""`--compile`: when blocks are compiled, what happens without a compiler, and resuming a compiled run."""

import functools
import shutil

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainer
from poa_hf.data.augmentation import coloured
from poa_hf.data.crops import CropArguments, draw_augmentation
from poa_hf.models.compiled_blocks import BlockCompiler, CompilationUnavailable
from poa_hf.training import compilation
from poa_hf.training.compilation import block_compiler, compiled_colours, expected_compilations

from ..conftest import QUICKSTART, TINY, run_python
from .test_gram import anchored
from .test_trainer import arguments, images, metrics, new_model


@pytest.fixture
def quick_compiler(monkeypatch):
    """A compiler that is there, and takes no C++ compiler's time."""
    monkeypatch.setattr(compilation, "BlockCompiler", functools.partial(BlockCompiler, backend="aot_eager"))
    monkeypatch.setattr(compilation, "check_compiler", lambda device: None)


@pytest.fixture
def no_compiler(monkeypatch):
    def fail(device):
        raise CompilationUnavailable("no working C++ compiler was found")

    monkeypatch.setattr(compilation, "check_compiler", fail)


def test_blocks_are_compiled_where_it_pays_or_is_asked_for(tmp_path, quick_compiler):
    model, cpu, cuda = new_model(), torch.device("cpu"), torch.device("cuda")
    for choice, on_cpu, on_cuda in (("auto", False, True), ("blocks", True, True), ("off", False, False)):
        args = arguments(tmp_path, compile=choice)
        assert (block_compiler(model, args, cpu) is not None) == on_cpu
        assert (block_compiler(model, args, cuda) is not None) == on_cuda


def test_without_a_compiler_auto_warns_and_blocks_is_refused(tmp_path, no_compiler, caplog):
    model, device = new_model(), torch.device("cuda")
    assert block_compiler(model, arguments(tmp_path), device) is None
    assert "Blocks are not compiled, as PyTorch cannot compile on this machine (no working C++" in caplog.text
    with pytest.raises(ValueError, match=r"compile is blocks.*no working C\+\+ compiler was found.*--compile off"):
        block_compiler(model, arguments(tmp_path, compile="blocks"), device)


def test_colours_are_compiled_on_gpus_and_are_among_what_is_expected(tmp_path, quick_compiler):
    model = new_model()
    for options, kinds in (({}, 2), ({"pack_crops": True}, 2), ({"num_local_crops": 0}, 1)):
        args = arguments(tmp_path, compile="blocks", **options)
        on_cpu, on_cuda = (block_compiler(model, args, torch.device(name)) for name in ("cpu", "cuda"))
        assert on_cuda.expected == on_cpu.expected + kinds and on_cpu.expected == expected_compilations(model, args)
        assert compiled_colours(on_cpu, torch.device("cpu")) is compiled_colours(None, torch.device("cuda")) is None
    pixels = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    drawn = draw_augmentation(np.random.default_rng(0), CropArguments(num_local_crops=2))
    parameters = {name: torch.from_numpy(values) for name, values in drawn.items()}
    colour_all = compiled_colours(on_cuda, torch.device("cuda"))
    torch.testing.assert_close(colour_all(pixels, parameters), coloured(pixels, parameters))
    assert on_cuda.compilations == 1 and on_cuda.seconds > 0


def test_eleven_widths_serve_the_143_sizes_of_the_published_vit(tmp_path):
    """Blocks: 11 widths with two kinds of crops, and the teacher's. Losses: 5 for each of 4 heads, and balancing."""
    with torch.device("meta"):
        model = PoaForPreTraining(PoaConfig())
    space = model.config.backbone_config.space
    assert len(list(space)) == 143 and len({size.width for size in space}) == 11
    assert expected_compilations(model, arguments(tmp_path)) == (11 * 2 + 1) + (5 * 4 + 1)
    assert expected_compilations(model, arguments(tmp_path, pack_crops=True)) == (11 + 1) + (5 * 4 + 1)


def test_only_auto_falls_back(tmp_path, quick_compiler):
    made = {choice: block_compiler(new_model(), arguments(tmp_path, compile=choice), torch.device("cuda"))
            for choice in ("auto", "blocks")}  # fmt: skip
    assert made["auto"].falls_back and not made["blocks"].falls_back


def test_other_values_are_refused_and_the_old_name_warns(tmp_path):
    with pytest.raises(ValueError, match="compile is 'model': choose one of auto, blocks, off"):
        arguments(tmp_path, compile="model")
    with pytest.warns(DeprecationWarning, match="compile='blocks'"):
        assert arguments(tmp_path, torch_compile=True).compile == "blocks"


class Stop(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_compiled_run_is_resumed_to_the_bit_and_equals_a_plain_one(tmp_path, quick_compiler):
    def train(folder, resume=None, callbacks=(), **overrides):
        args = arguments(tmp_path / folder, save_steps=2, **overrides)
        trainer = PoaTrainer(new_model(drop_path_rate=0.3), args, images(), callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model.state_dict()

    whole = train("whole", compile="blocks")
    with pytest.raises(KeyboardInterrupt):
        train("parts", compile="blocks", callbacks=[Stop()])
    parts = train("parts", compile="blocks", resume=True)
    assert all(torch.equal(whole[name], tensor) for name, tensor in parts.items())
    torch.testing.assert_close(train("plain"), whole, rtol=1e-3, atol=1e-5)
    line = metrics(tmp_path / "whole")[-1]
    assert line["compile_seconds"] > 0 and "compile_seconds" not in metrics(tmp_path / "plain")[-1]


@pytest.mark.slow
def test_a_compiled_run_with_a_gram_teacher_equals_a_plain_one(tmp_path, quick_compiler):
    trained = [
        PoaTrainer(anchored(), arguments(tmp_path / f"{choice} {pack}", compile=choice, pack_crops=pack), images())
        for choice, pack in (("off", False), ("blocks", False), ("blocks", True))
    ]
    for trainer in trained:
        trainer.train()
    plain, *compiled = (trainer.model.state_dict() for trainer in trained)
    for each in compiled:
        torch.testing.assert_close(each, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_number_of_compilations_is_known_beforehand(tmp_path, quick_compiler):
    args = arguments(tmp_path, compile="blocks", max_steps=12, save_steps=12)
    trainer = PoaTrainer(new_model(), args, images())
    trainer.train()
    compiler = trainer.model._compiler
    assert 0 < compiler.compilations <= expected_compilations(trainer.model, args) == compiler.expected
    assert compiler.recompilations == 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_the_command_compiles_resumes_to_the_bit_and_finds_its_code_again(tmp_path, monkeypatch):
    """With the machine's compiler, in a process for each run and a home of their own."""
    home, whole, parts = (tmp_path / name for name in ("home", "whole", "parts"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)

    def poa(*words):
        run_python("-m", "poa_hf", *map(str, words), env={"HOME": str(home)}, timeout=600)

    small = ["--model.backbone_config.min_hidden_size", "64", "--logging_steps", "1", "--save_steps", "1"]
    options = ["--config", QUICKSTART, *TINY.split(), *small, "--compile", "blocks"]
    poa("pretrain", *options, "--output_dir", whole)
    assert any((home / ".cache" / "poa_hf" / "inductor").rglob("*.so"))
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoint-2")
    (parts / "config.json").unlink()
    poa("resume", parts)
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    first, again = (metrics(run)[-1]["compile_seconds"] for run in (whole, parts))
    assert again < first / 2, "what was compiled before was compiled again"
