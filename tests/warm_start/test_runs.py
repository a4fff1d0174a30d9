"""Whole runs that start from models of the families with registers: trained, extracted, published."""

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import (
    AutoModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)

from poa_hf import PoaForPreTraining

from .test_stock import SIZE, with_own_weights

SOURCES = {
    "dinov2_with_registers": lambda: Dinov2WithRegistersModel(
        Dinov2WithRegistersConfig(**SIZE, image_size=56, patch_size=14, num_register_tokens=4, layerscale_value=0.1)
    ),
    "dinov3_vit": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(
            **SIZE, intermediate_size=64, image_size=64, patch_size=16, num_register_tokens=4, use_gated_mlp=True,
            layerscale_value=0.1,
        )
    ),
}  # fmt: skip
SMALL = (
    "--model.num_prototypes [12,20] --model.head_hidden_size 24 --model.head_bottleneck_size 8 --disable_tqdm "
    "--dataset_name textures --per_device_train_batch_size 4 --dataloader_num_workers 0 --num_local_crops 2"
).split()


@pytest.fixture(params=SOURCES)
def source(request, tmp_path):
    with_own_weights(SOURCES[request.param]()).save_pretrained(tmp_path / request.param)
    return str(tmp_path / request.param)


def test_a_run_starts_from_the_source_and_its_sizes_are_stock_models(tmp_path, source, poa):
    run = str(tmp_path / "run")
    limits = "--max_steps 2 --warmup_steps 1 --freeze_backbone_steps 2 --no_order_units".split()
    poa("pretrain", "--init_from", source, *SMALL, *limits, "--output_dir", run)
    model, stock = PoaForPreTraining.from_pretrained(run).eval(), AutoModel.from_pretrained(source).eval()
    images = torch.randn(2, 3, 64, 96) if stock.config.patch_size == 16 else torch.randn(2, 3, 56, 84)
    with torch.no_grad():
        expected = stock(images).last_hidden_state
        for backbone in (model.student, model.teacher):  # only the heads were trained
            assert torch.equal(backbone(images).last_hidden_state, expected)
    check_sizes(model, run, ["16x1"], images, tmp_path / "extracted", poa)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [None, "their-vit"], ids=["ordered", "ordered and distilled"])
def test_all_sizes_of_a_longer_run_are_extracted_and_published(tmp_path, source, poa, hub, teacher):
    run = str(tmp_path / "run")
    limits = "--max_steps 20 --warmup_steps 4 --masked_prediction_start_step 5 --order_images 16".split()
    if teacher is not None:
        fields = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
        ViTModel(ViTConfig(**fields, image_size=64, patch_size=16)).save_pretrained(tmp_path / teacher)
        limits += ["--foreign_teacher", str(tmp_path / teacher)]
    poa("pretrain", "--init_from", source, *SMALL, *limits, "--output_dir", run)
    model = PoaForPreTraining.from_pretrained(run).eval()
    assert model.config.warm_started_from == AutoModel.from_pretrained(source).config.model_type
    stock = AutoModel.from_pretrained(source).state_dict()
    changed = [n for n, tensor in model.teacher.state_dict().items() if not torch.equal(tensor, stock[n])]
    assert len(changed) > len(stock) / 2
    sizes = [str(size) for size in model.config.backbone_config.space]
    check_sizes(model, run, sizes, torch.randn(1, 3, 112, 112), tmp_path / "extracted", poa)
    poa("push", run, "--all", "--namespace", "me", "--license", "mit")
    assert len(hub.repos) == len(sizes) + 1
    published = [repo for _, repo in hub.repos if "supernet" not in repo]
    for repo in published:
        card = ModelCard.load(repo).text
        assert (
            "| units in order of importance before sub-networks were trained | by the features of 16 images |" in card
        )
        assert ("distilled from their-vit" in card) == (teacher is not None) and str(tmp_path) not in card
        loaded = AutoModel.from_pretrained(repo)
        size = f"{loaded.config.hidden_size}x{loaded.config.num_hidden_layers}"
        extracted = AutoModel.from_pretrained(tmp_path / "extracted" / size).state_dict()
        assert all(torch.equal(tensor, extracted[name]) for name, tensor in loaded.state_dict().items())


@torch.no_grad()
def check_sizes(model, run, sizes, images, folder, poa):
    """Extract sizes as stock models of the source's class, which compute what the run's teacher does."""
    poa("extract", run, "--size", ",".join(sizes), "--output", str(folder))
    for size in sizes:
        extracted = AutoModel.from_pretrained(folder / size if len(sizes) > 1 else folder).eval()
        assert type(extracted) is model.teacher.stock_class
        expected = model.teacher(images, sub_network=size).last_hidden_state
        assert torch.equal(extracted(images).last_hidden_state, expected)
