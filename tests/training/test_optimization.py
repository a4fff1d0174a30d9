import json
import math

import pytest
import torch
from safetensors.torch import load_file

from poa_hf import PoaForPreTraining, PoaTrainingArguments
from poa_hf.official.names import parameter_names
from poa_hf.training.optimization import (
    build_optimizer,
    cosine_schedule,
    hyperparameters_at,
    linear_schedule,
    parameter_multipliers,
    set_hyperparameters,
)

from ..conftest import GOLDEN, golden_config, tiny_config


def test_schedules_are_the_authors():
    golden = load_file(GOLDEN / "components.safetensors")
    args = PoaTrainingArguments(
        max_steps=200,
        learning_rate=4e-3,
        warmup_steps=20,
        freeze_last_layer_steps=5,
        teacher_temperature_warmup_steps=60,
        masked_prediction_start_step=30,
    )
    steps = [hyperparameters_at(step, args, global_batch_size=1024) for step in range(200)]

    def check(name, values):
        torch.testing.assert_close(
            torch.tensor(values, dtype=torch.float64), golden[f"schedule/{name}"], rtol=1e-12, atol=1e-15
        )

    check("lr", [s.learning_rate for s in steps])
    check("weight_decay", [s.weight_decay for s in steps])
    check("momentum", [s.teacher_momentum for s in steps])
    check("teacher_temperature", [s.teacher_temperature for s in steps[:60]])
    assert all(s.teacher_temperature == 0.07 for s in steps[59:])
    assert [s.last_layer_learning_rate > 0 for s in steps] == [False] * 5 + [True] * 195
    assert [s.predict_masked_patches for s in steps] == [False] * 30 + [True] * 170


def test_schedules_at_their_edges():
    assert cosine_schedule(0, 1.0, 0.5, 10) == 1.0 and cosine_schedule(10, 1.0, 0.5, 10) == 0.5
    assert cosine_schedule(0, 1.0, 0.5, 10, warmup_steps=1) == 0.0
    assert cosine_schedule(99, 1.0, 0.5, 10, warmup_steps=20) == 0.5
    assert linear_schedule(0, 0.04, 0.07, 0) == linear_schedule(5, 0.04, 0.07, 1) == 0.07


def test_learning_rate_grows_with_the_square_root_of_the_batch():
    args = PoaTrainingArguments(max_steps=100, warmup_steps=2)
    assert hyperparameters_at(1, args, 1600).learning_rate == pytest.approx(4e-3 * math.sqrt(1600 / 1024))


def test_parameter_groups_are_the_authors(family):
    content = json.loads((GOLDEN / "param_groups.json").read_text())[family]
    model = PoaForPreTraining(golden_config(family))
    ours = parameter_multipliers(model, content["layerwise_decay"], content["patch_embed_lr_mult"])
    seen = set()
    for official, expected in content["params"].items():
        for name in parameter_names(official, f"poa_{family}"):
            assert ours[name] == pytest.approx(expected), name
            seen.add(name)
    assert seen == ours.keys() == {name for name, p in model.named_parameters() if p.requires_grad}


def test_each_parameter_is_optimised_once_with_its_own_values():
    model = PoaForPreTraining(tiny_config())
    args = PoaTrainingArguments(max_steps=100, warmup_steps=0, freeze_last_layer_steps=10)
    optimizer = build_optimizer(model, args)
    names = {id(p): name for name, p in model.named_parameters()}
    multipliers = parameter_multipliers(model, args.layerwise_decay, args.patch_embed_lr_mult)
    for step in (0, 50):
        values = hyperparameters_at(step, args, 1024)
        set_hyperparameters(optimizer, values)
        seen = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                rate, decay, is_last = multipliers[name]
                frozen = is_last and step < 10
                assert group["lr"] == pytest.approx(0.0 if frozen else rate * values.learning_rate)
                assert group["weight_decay"] == pytest.approx(decay * values.weight_decay)
                seen.append(name)
        assert sorted(seen) == sorted(multipliers)
