"""The equations beside the authors' values and their definitions."""

import math

import pytest
import torch
from safetensors.torch import load_file

from poa_hf.objective.losses import SinkhornKnopp, koleo

from ..conftest import GOLDEN


@pytest.fixture(scope="module")
def components():
    return load_file(GOLDEN / "components.safetensors")


def assignments_of(logits, temperature, iterations=3):
    return SinkhornKnopp(logits, temperature, iterations)(logits)


def test_sinkhorn_knopp_is_the_authors(components):
    assignments = assignments_of(components["sinkhorn/logits"], temperature=0.05)
    torch.testing.assert_close(assignments, components["sinkhorn/assignments"], rtol=1e-5, atol=1e-7)


def test_koleo_is_the_authors(components):
    torch.testing.assert_close(koleo(components["koleo/features"]), components["koleo/loss"], rtol=1e-6, atol=0)


def test_sinkhorn_knopp_balances_prototypes_and_sums_to_one():
    logits = torch.randn(64, 8)
    many = assignments_of(logits, 0.5, iterations=200)
    torch.testing.assert_close(many.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(many.sum(dim=0), torch.full((8,), 8.0), rtol=1e-4, atol=0)


def test_sinkhorn_knopp_survives_large_logits_and_no_rows():
    assert assignments_of(torch.randn(6, 5) * 100, 0.04).isfinite().all()
    assert assignments_of(torch.empty(0, 5), 0.04).shape == (0, 5)
    assert assignments_of(torch.randn(6, 5).bfloat16(), 0.04).dtype == torch.float32


def test_koleo_from_the_definition():
    features = torch.randn(10, 6)
    unit = [f / f.norm() for f in features]
    nearest = [min((unit[i] - unit[j]).norm().item() for j in range(10) if j != i) for i in range(10)]
    assert koleo(features).item() == pytest.approx(-sum(math.log(d) for d in nearest) / 10, rel=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
def test_koleo_of_too_few_images_is_zero_with_a_gradient(rows):
    features = torch.randn(rows, 4, requires_grad=True)
    koleo(features).backward()
    assert koleo(features).item() == 0 and features.grad.abs().sum() == 0
