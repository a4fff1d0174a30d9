"""Parity with the authors' code, in float32 (fixtures/golden/README.md)."""

import math

import pytest
import torch

from poa_hf import SubNetwork
from poa_hf.official import parameter_names

STEPS = range(3)


@pytest.mark.parametrize("branch", ["student", "teacher"])
@pytest.mark.parametrize("index", STEPS)
def test_features(golden_vit, golden_model, index, branch):
    tensors, content = golden_vit
    sub_network = SubNetwork(*content["steps"][index]["sub_network"])
    model = getattr(golden_model, branch).eval()
    with torch.no_grad():
        global_ = model(tensors["batch/global_crops"], sub_network=sub_network)
        local = model(tensors["batch/local_crops"], sub_network=sub_network)
    expected = {name.rpartition("/")[2]: t for name, t in tensors.items() if name.startswith(f"feat{index}/{branch}/")}
    torch.testing.assert_close(global_.pooler_output, expected["global_cls"], rtol=0, atol=1e-5)
    torch.testing.assert_close(local.pooler_output, expected["local_cls"], rtol=0, atol=1e-5)
    if "global_patch" in expected:
        torch.testing.assert_close(global_.last_hidden_state[:1, 1:], expected["global_patch"], rtol=0, atol=1e-5)


def run_step(golden_vit, golden_model, index):
    tensors, content = golden_vit
    step = content["steps"][index]
    golden_model.train()
    output = golden_model(
        tensors["batch/global_crops"],
        tensors["batch/local_crops"],
        tensors["batch/masks"],
        SubNetwork(*step["sub_network"]),
        content["teacher_temperature"],
    )
    return step, output


@pytest.mark.parametrize("index", STEPS)
def test_losses(golden_vit, golden_model, index):
    step, output = run_step(golden_vit, golden_model, index)
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
def test_gradients(golden_vit, golden_model, index):
    step, output = run_step(golden_vit, golden_model, index)
    output.loss.backward()
    parameters = dict(golden_model.named_parameters())
    probed = set()
    for name, (norm, wave) in step["grad_probe"].items():
        parts = parameter_names(name, "poa_vit")
        gradient = torch.cat([parameters[part].grad for part in parts]).double().flatten()
        k = torch.arange(gradient.numel(), dtype=torch.float64)
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), name
        assert (gradient * torch.cos(0.37 * k)).sum().item() == pytest.approx(wave, rel=1e-4, abs=1e-6), name
        probed.update(parts)
    assert probed == {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert all(math.isfinite(p.grad.sum()) for p in golden_model.parameters() if p.requires_grad)
    assert all(p.grad is None for name, p in parameters.items() if name.startswith("teacher"))
