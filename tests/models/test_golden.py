"""Parity with the authors' code, in float32 (fixtures/golden/README.md)."""

import math

import pytest
import torch

from poa_hf.official.names import parameter_names
from poa_hf.official.weights import to_our_layout

from ..conftest import golden, golden_model, golden_sub_network

STEPS = range(3)


@pytest.mark.parametrize("branch", ["student", "teacher"])
@pytest.mark.parametrize("index", STEPS)
def test_features(family, index, branch):
    tensors, _ = golden(family)
    model = getattr(golden_model(family), branch).eval()
    sub_network = golden_sub_network(family, index)
    with torch.no_grad():
        outputs = [model(tensors[f"batch/{kind}_crops"], sub_network=sub_network) for kind in ("global", "local")]
    (features, patches), (local_features, _) = (model.image_tokens(output) for output in outputs)
    expected = {name.rpartition("/")[2]: t for name, t in tensors.items() if name.startswith(f"feat{index}/{branch}/")}
    torch.testing.assert_close(features, expected["global_cls"], rtol=0, atol=1e-5)
    torch.testing.assert_close(local_features, expected["local_cls"], rtol=0, atol=1e-5)
    if "global_patch" in expected:
        torch.testing.assert_close(patches[:1], expected["global_patch"], rtol=0, atol=1e-5)


def run_step(family, index):
    tensors, content = golden(family)
    model = golden_model(family).train()
    output = model(
        tensors["batch/global_crops"],
        tensors["batch/local_crops"],
        tensors["batch/masks"],
        golden_sub_network(family, index),
        content["teacher_temperature"],
    )
    return content["steps"][index], model, output


@pytest.mark.parametrize("index", STEPS)
def test_losses(family, index):
    step, _, output = run_step(family, index)
    assert output.losses.keys() == step["losses"].keys()
    for name, value in step["losses"].items():
        assert output.losses[name].item() == pytest.approx(value, rel=1e-5), name
    losses = step["losses"]
    total = 2 * losses["koleo_loss"] + sum(
        (
            losses[f"dino_local_crops_loss_{h}"]
            + losses[f"dino_global_crops_loss_{h}"]
            + 0.2 * (losses[f"distill_local_crops_loss_{h}"] + losses[f"distill_global_crops_loss_{h}"])
            + 2 * losses[f"ibot_loss_{h}"]
        )
        / 2
        for h in range(2)
    )
    assert output.loss.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("index", STEPS)
def test_gradients(family, index):
    step, model, output = run_step(family, index)
    output.loss.backward()
    parameters = dict(model.named_parameters())
    probed = set()
    for name, (norm, wave) in step["grad_probe"].items():
        parts = parameter_names(name, f"poa_{family}")
        gradient = torch.cat([parameters[part].grad for part in parts])
        gradient = to_our_layout(name, gradient).double().flatten()  # its own inverse: here it gives theirs
        k = torch.arange(gradient.numel(), dtype=torch.float64)
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), name
        assert (gradient * torch.cos(0.37 * k)).sum().item() == pytest.approx(wave, rel=1e-4, abs=1e-6), name
        probed.update(parts)
    assert probed == {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert all(parameter_names(name, f"poa_{family}") == [] for name in step["no_grad"])
    assert all(math.isfinite(p.grad.sum()) for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for name, p in parameters.items() if name.startswith("teacher"))
