"""The elastic ConvNeXt of docs/new_family.md, run as it stands there."""

import importlib
import re
import sys

import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, AutoModel, ConvNextModel

from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainer, PoaTrainingArguments, SubNetwork
from poa_hf.data.textures import TextureDataset
from poa_hf.publishing.export import extract_to
from poa_hf.training.optimization import parameter_multipliers

from .conftest import ROOT


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """The page's two files in a package of their own."""
    folder = tmp_path_factory.mktemp("family")
    package = folder / "elastic_convnext"
    package.mkdir()
    (package / "__init__.py").touch()
    page = (ROOT / "docs" / "new_family.md").read_text()
    files = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.S)
    for name, code in files:
        (package / name).write_text(code)
    assert len(files) == 2
    assert sum(len([line for line in code.splitlines() if line.strip()]) for _, code in files) < 80
    sys.path.insert(0, str(folder))
    try:
        config = importlib.import_module("elastic_convnext.configuration_poa_convnext").PoaConvNextConfig
        model = importlib.import_module("elastic_convnext.modeling_poa_convnext").PoaConvNextModel
    finally:
        sys.path.remove(str(folder))
    AutoConfig.register("poa_convnext", config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    yield config, model
    CONFIG_MAPPING._extra_content.pop("poa_convnext")
    MODEL_MAPPING._extra_content.pop(config)


def small(family, **heads) -> PoaForPreTraining:
    backbone = family[0](
        hidden_sizes=[24, 48, 96], depths=[2, 3, 1], num_stages=3, patch_size=2, image_size=32, min_width=8,
        min_depths=[1, 1, 1], layer_scale_init_value=0.5,
    )  # fmt: skip
    return PoaForPreTraining(
        PoaConfig(backbone_config=backbone, head_hidden_size=16, head_bottleneck_size=8, num_prototypes=[8], **heads)
    )


@torch.no_grad()
def test_every_size_is_a_stock_convnext(family, tmp_path):
    model = small(family).teacher.eval()
    assert len(model.config.space) == 3 * 2 * 3
    pixels = torch.randn(2, 3, 32, 32)
    for size in model.config.space:
        extracted = model.extract(size)
        assert type(extracted) is ConvNextModel
        ours, stock = model(pixels, sub_network=size), extracted(pixels)
        assert torch.equal(ours.last_hidden_state, stock.last_hidden_state) and ours[1].shape == (2, 4 * size.width)
        assert torch.equal(ours.pooler_output, stock.pooler_output)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(pixels, sub_network=size)[0], ours[0])


def test_layers_learn_by_their_place(family):
    multipliers = parameter_multipliers(small(family), layerwise_decay=0.5, patch_embed_lr_mult=0.1)

    def place(name):
        return multipliers[f"student.{name}"].learning_rate

    assert place("layernorm.weight") == 1 and place("encoder.stages.2.layers.0.dwconv.weight") == 0.5
    assert place("encoder.stages.1.downsampling_layer.1.weight") == place("encoder.stages.1.layers.0.pwconv1.weight")
    assert place("embeddings.patch_embeddings.weight") == pytest.approx(0.1 * 0.5**7)
    assert place("mask_token") == 0.5**7


@pytest.mark.slow
def test_trains_and_extracts(family, tmp_path):
    args = PoaTrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=4, per_device_train_batch_size=4, global_crop_size=32,
        local_crop_size=16, num_local_crops=2, dataloader_num_workers=0, masked_prediction_start_step=0, warmup_steps=1,
        freeze_last_layer_steps=0, logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    model = small(family)
    before = {name: p.clone() for name, p in model.student.named_parameters()}
    PoaTrainer(model, args, train_dataset=TextureDataset()).train()
    assert all(not torch.equal(before[name], p) for name, p in model.student.named_parameters())
    trained = PoaForPreTraining.from_pretrained(tmp_path / "run")
    extract_to(trained, SubNetwork(8, (1, 1, 1)), tmp_path / "small")
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = trained.eval().teacher(pixels, sub_network="small").pooler_output
        assert torch.equal(AutoModel.from_pretrained(tmp_path / "small")(pixels).pooler_output, expected)
