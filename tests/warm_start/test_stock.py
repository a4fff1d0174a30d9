"""Stock models of many classes, files and shapes as the full size: the same function, by the stock model itself."""

import copy

import pytest
import torch
from transformers import (
    AutoConfig,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTModel,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Backbone,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SwinConfig,
    SwinForMaskedImageModeling,
    SwinModel,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTMSNConfig,
    ViTMSNForImageClassification,
    ViTMSNModel,
)

from poa_hf import PoaConfig, PoaForPreTraining, init_from, warm_start_config

HEADS = dict(head_hidden_size=24, head_bottleneck_size=8, num_prototypes=[12])
SIZE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
VIT = dict(**SIZE, intermediate_size=64, image_size=32, patch_size=8)
DINOV2 = dict(**SIZE, image_size=56, patch_size=14, layerscale_value=0.1)
SWIN = dict(embed_dim=16, depths=[2, 2], num_heads=[2, 4], image_size=32, window_size=2, patch_size=4)
MAE = dict(**VIT, mask_ratio=0.0, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
DEPTH = dict(reassemble_factors=[1, 1], neck_hidden_sizes=[8, 8], fusion_hidden_size=8, head_hidden_size=8,
             reassemble_hidden_size=32, patch_size=14)  # fmt: skip


def registers(**fields):
    return Dinov2WithRegistersConfig(**{**DINOV2, "num_register_tokens": 3, **fields})


def dinov3(**fields):
    return DINOv3ViTConfig(**SIZE, intermediate_size=85, image_size=[64, 48], num_register_tokens=2, **fields)


def depth_anything():
    backbone = Dinov2Config(**DINOV2, out_indices=[1, 2], reshape_hidden_states=False)
    return DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=backbone, **DEPTH))


# What was saved, and the stock encoder in it.
SOURCES = {
    "dinov2 backbone": (lambda: Dinov2Backbone(Dinov2Config(**DINOV2)), Dinov2Model),
    "vit_mae": (lambda: ViTMAEModel(ViTMAEConfig(**MAE)), ViTMAEModel),
    "vit_mae pre-training": (lambda: ViTMAEForPreTraining(ViTMAEConfig(**MAE)), ViTMAEModel),
    "vit_msn": (lambda: ViTMSNModel(ViTMSNConfig(**VIT)), ViTMSNModel),
    "vit_msn classifier": (lambda: ViTMSNForImageClassification(ViTMSNConfig(**VIT, qkv_bias=False)), ViTMSNModel),
    "registers": (lambda: Dinov2WithRegistersModel(registers()), Dinov2WithRegistersModel),
    "registers classifier": (
        lambda: Dinov2WithRegistersForImageClassification(registers(use_swiglu_ffn=True, qkv_bias=False)),
        Dinov2WithRegistersModel,
    ),
    "registers backbone": (lambda: Dinov2WithRegistersBackbone(registers(mlp_ratio=2)), Dinov2WithRegistersModel),
    "dinov3_vit": (lambda: DINOv3ViTModel(dinov3(use_gated_mlp=True, hidden_act="silu")), DINOv3ViTModel),
    "dinov3_vit backbone": (
        lambda: DINOv3ViTBackbone(dinov3(key_bias=True, mlp_bias=False, patch_size=14, rope_theta=50.0)),
        DINOv3ViTModel,
    ),
    "depth_anything": (depth_anything, Dinov2Model),
    "swin masked": (lambda: SwinForMaskedImageModeling(SwinConfig(**SWIN, encoder_stride=8)), SwinModel),
}  # fmt: skip


def with_own_weights(model):
    """The model with weights that differ from every initial value."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def started(folder, **fields):
    model = PoaForPreTraining(PoaConfig(backbone_config=warm_start_config(folder, **fields), **HEADS))
    return model, init_from(model, folder)


def encoder_of(folder, encoder):
    """The stock encoder in a checkpoint, in float32."""
    config, options = AutoConfig.from_pretrained(folder), {}
    if config.model_type == "depth_anything":
        config, options = config.backbone_config, {"key_mapping": {"^backbone.": ""}}
    return encoder.from_pretrained(folder, config=config, dtype=torch.float32, **options).eval()


@torch.no_grad()
def tokens(stock, images: torch.Tensor, resizes: bool = True) -> torch.Tensor:
    """The stock model's tokens; those of MAE in their order, as it shuffles its patches without noise."""
    options = {}
    if isinstance(stock, ViTMAEModel):
        patches = (images.shape[2] // stock.config.patch_size) * (images.shape[3] // stock.config.patch_size)
        options["noise"] = torch.arange(patches).expand(len(images), -1)
    if resizes and not isinstance(stock, Dinov2Model | Dinov2WithRegistersModel | DINOv3ViTModel):
        options["interpolate_pos_encoding"] = True
    return copy.deepcopy(stock)(images, **options).last_hidden_state


@torch.no_grad()
def ours(model, images: torch.Tensor) -> torch.Tensor:
    return model.teacher(images).last_hidden_state


@pytest.mark.parametrize("name", SOURCES)
def test_the_encoder_in_a_checkpoint_of_any_class_is_the_full_size(tmp_path, name):
    make, encoder = SOURCES[name]
    with_own_weights(make()).save_pretrained(tmp_path)
    stock = encoder_of(tmp_path, encoder)
    model, start = started(tmp_path)
    assert start.model_type == stock.config.model_type and start.resized is None
    side = 4 * model.config.backbone_config.patch_grid
    for size in (side, 2 * side):
        images = torch.randn(2, 3, size, size)
        expected = tokens(stock, images)
        assert torch.equal(ours(model, images), expected)
        with torch.no_grad():
            assert torch.equal(model.student.eval()(images).last_hidden_state, expected)
    images = torch.randn(1, 3, side, 2 * side)
    assert torch.equal(ours(model, images), tokens(stock, images))


@pytest.mark.parametrize(
    "name", ["dinov2 backbone", "registers classifier", "dinov3_vit", "vit_mae pre-training", "swin masked"]
)
def test_half_precision_and_several_files_give_the_same_weights_in_float32(tmp_path, name):
    make, encoder = SOURCES[name]
    for dtype in (torch.bfloat16, torch.float16):
        with_own_weights(make()).to(dtype).save_pretrained(tmp_path / str(dtype), max_shard_size="20KB")
        assert len(list((tmp_path / str(dtype)).glob("model-*.safetensors"))) > 1
        stock = encoder_of(tmp_path / str(dtype), encoder)
        model, _ = started(tmp_path / str(dtype))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        side = model.config.backbone_config.image_size
        images = torch.randn(1, 3, side, side)
        assert torch.equal(ours(model, images), tokens(stock, images))


def test_the_decoder_of_mae_and_the_mask_token_in_it_are_left_out(tmp_path):
    with_own_weights(SOURCES["vit_mae pre-training"][0]()).save_pretrained(tmp_path)
    _, start = started(tmp_path)
    assert all(name.startswith("decoder.") for name in start.dropped) and "decoder.mask_token" in start.dropped
    assert "embeddings.mask_token" in start.new


def test_dropout_and_stochastic_depth_are_those_of_the_run(tmp_path):
    config = Dinov2Config(**DINOV2, drop_path_rate=0.4, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    config.save_pretrained(tmp_path / "stock")
    started_from_stock = warm_start_config(tmp_path / "stock")
    assert (started_from_stock.drop_path_rate, started_from_stock.hidden_dropout_prob) == (0.2, 0)
    assert started_from_stock.attention_probs_dropout_prob == 0
    own = warm_start_config(tmp_path / "stock", drop_path_rate=0.3, hidden_dropout_prob=0.05, sampling_bias=2)
    own.save_pretrained(tmp_path / "elastic")  # as the backbone of a run: it goes on as it was
    again = warm_start_config(tmp_path / "elastic")
    assert again.to_diff_dict() == own.to_diff_dict()


@pytest.mark.parametrize("make", [DeiTModel, DeiTForImageClassificationWithTeacher])
def test_the_distillation_token_of_a_deit_becomes_a_register(tmp_path, make):
    with_own_weights(make(DeiTConfig(**VIT))).save_pretrained(tmp_path)
    stock = DeiTModel.from_pretrained(tmp_path).eval()
    images = torch.randn(2, 3, 32, 32)
    model, start = started(tmp_path)
    assert model.config.backbone_config.model_type == "poa_dinov2_with_registers" and start.resized is None
    assert torch.equal(ours(model, images), tokens(stock, images))
    images = torch.randn(2, 3, 48, 48)
    model, start = started(tmp_path, image_size=48)
    assert start.resized == (4, 6)
    assert torch.equal(ours(model, images), tokens(stock, images))
    with_own_weights(DeiTModel(DeiTConfig(**{**VIT, "image_size": [32, 48]}))).save_pretrained(tmp_path / "wide")
    stock, images = DeiTModel.from_pretrained(tmp_path / "wide").eval(), torch.randn(1, 3, 32, 48)
    expected = tokens(stock, images, resizes=False)
    assert (ours(started(tmp_path / "wide")[0], images) - expected).norm() < 2e-6 * expected.norm()


def test_the_augmentation_of_rotary_positions_is_the_sources_unless_it_is_turned_off(tmp_path):
    dinov3(pos_embed_jitter=1.5, pos_embed_rescale=3.0).save_pretrained(tmp_path)
    config = warm_start_config(tmp_path)
    assert (config.pos_embed_shift, config.pos_embed_jitter, config.pos_embed_rescale) == (None, 1.5, 3.0)
    assert warm_start_config(tmp_path, pos_embed_rescale=None).pos_embed_rescale is None
    assert warm_start_config(tmp_path, min_hidden_size=None, image_size=None).image_size == 64
