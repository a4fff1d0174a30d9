"""Compiled blocks compute what blocks compute, and each kind is compiled once."""

import copy
import logging

import pytest
import torch

from poa_hf import (
    PoaConfig,
    PoaDinov2RegistersConfig,
    PoaDinov3ViTConfig,
    PoaForPreTraining,
    PoaResNetConfig,
    PoaSwinConfig,
    PoaViTConfig,
)
from poa_hf.models import compiled_blocks
from poa_hf.models.activation_checkpointing import enable_activation_checkpointing
from poa_hf.models.compiled_blocks import BlockCompiler, CompilationUnavailable, check_compiler

from ..conftest import run_python

HEADS = dict(num_prototypes=[16], head_hidden_size=16, head_bottleneck_size=8)
BACKBONES = {
    "vit": PoaViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, min_hidden_size=16,
                        min_num_hidden_layers=1, image_size=32, patch_size=16, drop_path_rate=0.3),
    "dinov2_registers": PoaDinov2RegistersConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                                                 min_hidden_size=16, min_num_hidden_layers=1, image_size=32,
                                                 patch_size=16, drop_path_rate=0.3, use_swiglu_ffn=True),
    "dinov3": PoaDinov3ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, min_hidden_size=16,
                                 min_num_hidden_layers=1, image_size=32, patch_size=16, num_register_tokens=2,
                                 use_gated_mlp=True, drop_path_rate=0.3, pos_embed_rescale=2.0),
    "swin": PoaSwinConfig(image_size=32, embed_dim=16, depths=[2, 1], num_heads=[2, 4], min_embed_dim=8,
                          min_depths=[1, 1], window_size=2, drop_path_rate=0.3),
    "resnet": PoaResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], base_width=8, num_groups=4,
                              min_base_width=4, min_depths=[1, 1]),
}  # fmt: skip
families = pytest.mark.parametrize(
    "family", ["vit", *(pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES if name != "vit")]
)


def new_model(family="vit", seed=0):
    torch.manual_seed(seed)
    model = PoaForPreTraining(PoaConfig(backbone_config=copy.deepcopy(BACKBONES[family]), **HEADS)).train()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    return model


def step(model, size, dtype=None, num_images=4):
    """Return the loss and all gradients of a step, which are the same at each call."""
    torch.manual_seed(1)
    grid = 32 // model.config.backbone_config.patch_grid
    global_crops, local_crops = torch.randn(2 * num_images, 3, 32, 32), torch.randn(2 * num_images, 3, 16, 16)
    masks = torch.rand(2 * num_images, grid * grid) < 0.4
    model.zero_grad()
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model(global_crops.to(model.dtype), local_crops.to(model.dtype), masks, size, 0.07).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | gradients


@families
@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_steps_are_the_same_and_all_sizes_share_their_code(family, checkpointing):
    model = new_model(family)
    if checkpointing:
        enable_activation_checkpointing(model.student)
    space = model.config.backbone_config.space
    sizes = [size for size in space if size != space.full]
    plain = [step(model, size) for size in sizes]
    compiler = BlockCompiler(backend="aot_eager")
    model.compile_blocks(compiler)
    names = list(model.state_dict())
    for size, expected in zip(sizes, plain, strict=True):
        found = step(model, size)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():  # the keys' biases have gradients of rounding only
            assert (found[name] - tensor).norm() <= 1e-5 * tensor.norm() + 1e-6, name
    # students see two kinds of crops, the teacher the global ones
    teacher = len({compiled_blocks.block_kind(model.teacher.get_submodule(name)) for name in block_names(model)})
    blocks = [key for key in compiler._functions if not callable(key[0])]  # the others are functions of the losses
    assert len(blocks) == 2 * model.student.num_block_kinds() + teacher
    assert compiler.compilations == len(compiler._functions) and compiler.recompilations == 0 and compiler.seconds > 0
    assert list(model.state_dict()) == names
    model.compile_blocks(None)
    torch.testing.assert_close(step(model, sizes[0]), plain[0], rtol=0, atol=0)


def block_names(model):
    return model.student.slice_rules.block_names(model.student)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_bfloat16_is_as_close_to_float64_as_without_compilation(backend):
    model = new_model()
    size = next(iter(model.config.backbone_config.space))
    exact = step(copy.deepcopy(model).double(), size)
    eager = step(model, size, torch.bfloat16)
    model.compile_blocks(BlockCompiler(backend=backend))
    compiled = step(model, size, torch.bfloat16)

    def error(found):
        names = [name for name in exact if not name.endswith("k_proj.bias")]  # whose gradient is 0
        return sum((found[n] - exact[n]).norm() / exact[n].norm() for n in names) / len(names)

    assert 0 < error(compiled) < 1.2 * error(eager) < 0.2


@pytest.mark.slow
def test_inductor_computes_the_same():
    model = new_model()
    size = next(iter(model.config.backbone_config.space))
    expected = step(model, size)
    model.compile_blocks(BlockCompiler())
    torch.testing.assert_close(step(model, size), expected, rtol=1e-4, atol=1e-5)


def test_a_kind_that_is_compiled_again_is_counted(caplog):
    caplog.set_level(logging.INFO, "poa_hf")
    compiler = BlockCompiler(expected=1, backend="aot_eager")

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.factors = [1.0]

        def forward(self, values):
            return values * self.factors[0]

    model = torch.nn.ModuleDict({"block": Block()})
    compiler.attach(model, ["block"])
    values = torch.ones(3)
    model["block"](values), model["block"](values)
    assert (compiler.compilations, compiler.recompilations) == (1, 0)
    model["block"].factors[0] = 2.0
    assert model["block"](values).tolist() == [2.0] * 3
    assert (compiler.compilations, compiler.recompilations) == (2, 1)
    assert "compiling block 1 of 1" in caplog.text and "compiled again" in caplog.text


def fails(graph, inputs):
    raise NotImplementedError("no kernel for this attention")


def test_what_cannot_be_compiled_runs_as_it_is_or_is_refused(caplog):
    model = new_model()
    size = next(iter(model.config.backbone_config.space))
    expected = step(model, size)
    model.compile_blocks(BlockCompiler(backend=fails, falls_back=True))
    torch.testing.assert_close(step(model, size), expected, rtol=0, atol=0)
    warnings = len(caplog.records)
    assert 0 < warnings and "block 1 cannot be compiled (" in caplog.text and "no kernel for this" in caplog.text
    step(model, size)
    assert len(caplog.records) == warnings, "it was tried again"
    model.compile_blocks(BlockCompiler(backend=fails))
    with pytest.raises(
        ValueError, match="^compile is blocks, but block 1 cannot be compiled .*no kernel.*--compile off"
    ):
        step(model, size)


def test_code_is_kept_unless_the_user_says_where(monkeypatch, tmp_path):
    """In a process of its own, whose variable the compiler sets when it is imported."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    code = "import os, torch._dynamo; from poa_hf.models.compiled_blocks import keep_code; keep_code(); "
    code += "from torch._inductor.runtime.cache_dir_utils import cache_dir; print(cache_dir())"
    for variables, expected in (
        ({}, tmp_path / ".cache" / "poa_hf" / "inductor"),
        ({"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "own")}, tmp_path / "own"),
    ):
        assert run_python("-c", code, env={"HOME": str(tmp_path), **variables}).stdout == f"{expected}\n"


def test_functions_are_compiled_once_for_each_kind_of_input():
    compiler = BlockCompiler(backend="aot_eager")
    twice = compiler.function("colours", lambda values, more: values * 2 + more["shift"])
    for length in (3, 4, 3):
        values, shift = torch.rand(length), torch.rand(length)
        torch.testing.assert_close(twice(values, {"shift": shift}), values * 2 + shift)
    assert (compiler.compilations, compiler.recompilations) == (2, 0)


def test_evaluation_and_extraction_stay_as_they_are():
    model = new_model()
    compiler = BlockCompiler(backend="aot_eager")
    model.compile_blocks(compiler)
    images = torch.randn(2, 3, 32, 32)
    model.teacher(images, sub_network="16x1"), model.teacher(images), model.student.extract("16x1")(images)
    assert compiler.compilations == 0
    assert torch.equal(copy.deepcopy(model).teacher(images).pooler_output, model.teacher(images).pooler_output)


def test_without_a_compiler_the_reason_is_one_sentence(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("Failed to find a working C++ compiler.\nPlease specify one via CXX.")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(CompilationUnavailable, match="^Failed to find a working C\\+\\+ compiler$"):
        check_compiler(torch.device("cpu"))
