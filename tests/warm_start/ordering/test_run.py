"""The order of units before sub-networks are trained, in one process and in two."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from poa_hf import PoaForPreTraining, PoaTrainer, PoaTrainingArguments, TextureDataset, UnitOrder
from poa_hf.warm_start.ordering.run import OrderWhenElasticStarts

from ...conftest import run_python, tiny_config
from ...training.test_processes import ENVIRONMENT, launch
from ...training.test_trainer import arguments, metrics

# Each process orders the model and writes what it has then.
SCRIPT = """
import os, sys
from safetensors.torch import save_file
from transformers import set_seed
from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainingArguments, TextureDataset, init_from, warm_start_config
from poa_hf.warm_start.ordering.run import order_before_training

source, output = sys.argv[1:]
set_seed(0)
model = PoaForPreTraining(PoaConfig(backbone_config=warm_start_config(source), num_prototypes=[8], head_hidden_size=16))
init_from(model, source)
crops = PoaTrainingArguments(global_crop_size=28, local_crop_size=14, dataloader_num_workers=0, seed=3)
folder = os.path.join(output, os.environ.get("RANK", "0"))
order_before_training(model, TextureDataset(), crops, num_images=40).save(folder + ".json")
save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder + ".safetensors")
"""


@pytest.mark.slow
def test_two_processes_have_the_order_of_one(tmp_path):
    torch.manual_seed(1)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=28, layerscale_value=0.5
    )
    Dinov2Model(config).save_pretrained(tmp_path / "source")
    script = tmp_path / "order.py"
    script.write_text(SCRIPT)
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    run_python(str(script), str(tmp_path / "source"), str(one), env=ENVIRONMENT)
    launch(2, str(tmp_path / "source"), str(two), script=str(script))
    assert len({Path(path).read_text() for path in (one / "0.json", two / "0.json", two / "1.json")}) == 1
    orders = json.loads((one / "0.json").read_text())["orders"]
    assert orders["channels"] != sorted(orders["channels"])
    expected = load_file(one / "0.safetensors")
    for rank in (0, 1):
        weights = load_file(two / f"{rank}.safetensors")
        assert weights.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(weights[name], tensor), (rank, name)


def test_units_are_ordered_once_when_sub_networks_begin_to_be_trained(tmp_path):
    """The full size, which learns alone here, goes on as it would have: its moments have moved with its weights."""

    def train(name, order, resume=None, **options):
        torch.manual_seed(0)
        model = PoaForPreTraining(tiny_config(intact_weight=1.0, koleo_weight=0.1))
        args = arguments(
            tmp_path / name, max_steps=5, learning_rate=0.05, elastic_start_step=2, save_steps=1,
            save_total_limit=None, **options,
        )  # fmt: skip
        callbacks = [OrderWhenElasticStarts(TextureDataset(), 40)] if order else []
        PoaTrainer(model, args, TextureDataset(length=64), callbacks).train(resume)
        return model

    plain, ordered = train("plain", order=False), train("ordered", order=True)
    lines = [metrics(tmp_path / name) for name in ("plain", "ordered")]
    for a, b in zip(*lines, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4) and b["grad_norm"] == pytest.approx(a["grad_norm"], 1e-3)
    order = UnitOrder.load(tmp_path / "ordered" / "unit_order.json")
    assert ordered.config.units_ordered_on == 40 and plain.config.units_ordered_on is None
    assert any(list(units) != sorted(units) for units in order.orders.values())
    order.apply(plain)
    for (name, expected), found in zip(plain.named_parameters(), ordered.parameters(), strict=True):
        if "key.bias" not in name:  # their gradient is nothing but rounding, which AdamW makes steps of
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-4, msg=name)
    # resumed before that step, it is ordered then; after it, not again
    for checkpoint in (1, 2, 3):
        again = train("ordered", True, str(tmp_path / "ordered" / f"checkpoint-{checkpoint}"))
        assert all(map(torch.equal, again.state_dict().values(), ordered.state_dict().values())), checkpoint


@pytest.mark.parametrize("engine", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_engines_that_keep_parts_of_weights_refuse_to_order_late(monkeypatch, engine):
    model = SimpleNamespace(config=SimpleNamespace(units_ordered_on=None))
    if engine == DistributedType.FSDP:  # on CPUs, Accelerate does not call it so
        monkeypatch.setattr("poa_hf.warm_start.ordering.run.FSDPModule", SimpleNamespace)
        engine = DistributedType.MULTI_CPU
    monkeypatch.setattr("poa_hf.warm_start.ordering.run.PartialState", lambda: SimpleNamespace(distributed_type=engine))
    callback, args = OrderWhenElasticStarts(TextureDataset(), 40), PoaTrainingArguments(elastic_start_step=7)
    with pytest.raises(ValueError, match="at elastic_start_step 7 where (FSDP|DeepSpeed) keeps parts of the weights"):
        callback.on_train_begin(args, None, None, model=model)
    model.config.units_ordered_on = 40  # by another engine, before
    callback.on_train_begin(args, None, None, model=model)
