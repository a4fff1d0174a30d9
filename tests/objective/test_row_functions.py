"""Losses of rows of logits are the same compiled, for any number of rows, and are compiled once."""

import pytest
import torch
from torch.nn import functional as F

from poa_hf.models.compiled_blocks import BlockCompiler
from poa_hf.objective import losses
from poa_hf.objective.losses import SinkhornKnopp, prototype_losses
from poa_hf.objective.row_functions import PLAIN

PROTOTYPES, BOTTLENECK = 24, 8


def outcome(functions, num_rows, same_view, dtype, temperature):
    """Return the losses of a student and their gradients, from targets that Sinkhorn-Knopp gives."""
    generator = torch.Generator().manual_seed(num_rows)

    def directions(count):
        return F.normalize(torch.randn(count, BOTTLENECK, generator=generator), dim=1).to(dtype)

    student, teacher, prototypes = directions(num_rows), directions(num_rows), directions(PROTOTYPES)
    weights = torch.rand(num_rows, generator=generator)
    assign = SinkhornKnopp(teacher @ prototypes.T, temperature, functions=functions)
    gradients = torch.zeros(num_rows, BOTTLENECK), torch.zeros(PROTOTYPES, BOTTLENECK)
    found = prototype_losses(
        student, prototypes, lambda rows: assign(teacher[rows] @ prototypes.T), 0.1, weights,
        (teacher, weights) if same_view else None, gradients, functions,
    )  # fmt: skip
    return [tensor for tensor in (*found, *gradients) if tensor is not None]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_compiled_losses_are_the_same_for_any_number_of_rows(monkeypatch, backend, dtype):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 16 * PROTOTYPES)  # the last chunk is smaller than the others
    compiler = BlockCompiler(backend=backend)
    compiled = compiler.row_functions()
    # fewer rows, as many as prototypes, a last chunk of one row, one row alone, none; the temperature rises in a run
    for step, num_rows in enumerate((40, 24, 16, 33, 2, 1, 0)):
        for same_view in (False, True):
            arguments = num_rows, same_view, dtype, 0.04 + step / 200
            # bfloat16 rounds slopes that differ in the last bit of float32 to neighbours
            tolerance = 1e-5 if dtype == torch.float32 else 1e-3
            torch.testing.assert_close(
                outcome(compiled, *arguments), outcome(PLAIN, *arguments), rtol=tolerance, atol=tolerance / 10
            )
    assert (compiler.compilations, compiler.recompilations) == (6, 0)


def test_compiled_losses_without_gradients_are_the_same(monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_LOGITS", 16 * PROTOTYPES)
    features, prototypes, targets = torch.randn(20, BOTTLENECK), torch.randn(PROTOTYPES, BOTTLENECK), torch.rand(20, 24)
    functions = BlockCompiler(backend="aot_eager").row_functions()
    found, _ = prototype_losses(
        features, prototypes, lambda rows: targets[rows], 0.1, torch.ones(20), functions=functions
    )
    expected = -(targets.double() * (features.double() @ prototypes.double().T / 0.1).log_softmax(-1)).sum(-1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
