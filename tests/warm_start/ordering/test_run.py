"""The order of units before the first step, in one process and in two."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from ...conftest import run_python
from ...training.test_processes import ENVIRONMENT, launch

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
