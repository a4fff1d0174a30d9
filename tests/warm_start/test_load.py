import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTModel,
)

from poa_hf import (
    GnResNetConfig,
    GnResNetForImageClassification,
    GnResNetModel,
    PoaConfig,
    PoaForPreTraining,
    init_from,
    warm_start_config,
)

from ..conftest import golden_config, golden_model, golden_weights, tiny_backbone, tiny_config

HEADS = dict(head_hidden_size=24, head_bottleneck_size=8, num_prototypes=[12, 20])
VIT = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4)
SOURCES = {
    "dinov2": lambda: Dinov2Model(Dinov2Config(**VIT, image_size=56, patch_size=[14, 14], layerscale_value=0.1)),
    "dinov2 classifier": lambda: Dinov2ForImageClassification(Dinov2Config(**VIT, image_size=56, mlp_ratio=2)),
    "dinov2 without mask token": lambda: Dinov2Model(Dinov2Config(**VIT, image_size=56, use_mask_token=False)),
    "dinov2 with swiglu": lambda: Dinov2Model(Dinov2Config(**VIT, image_size=56, use_swiglu_ffn=True)),
    "vit": lambda: ViTModel(ViTConfig(**VIT, intermediate_size=96, image_size=[28, 28], patch_size=7)),
    "vit classifier": lambda: ViTForImageClassification(
        ViTConfig(**VIT, intermediate_size=64, image_size=28, patch_size=7, hidden_act="gelu_new")
    ),
    "vit without biases": lambda: ViTModel(
        ViTConfig(**VIT, intermediate_size=32, image_size=28, patch_size=7, qkv_bias=False, layer_norm_eps=1e-3)
    ),
    "swin": lambda: SwinModel(SwinConfig(**SWIN)),
    "swin classifier": lambda: SwinForImageClassification(SwinConfig(**SWIN, use_absolute_embeddings=True)),
    "gn_resnet": lambda: GnResNetModel(GnResNetConfig(**RESNET)),
    "gn_resnet classifier": lambda: GnResNetForImageClassification(GnResNetConfig(**RESNET, hidden_act="silu")),
}
SWIN = dict(embed_dim=16, depths=[2, 4, 2], num_heads=[2, 4, 8], image_size=32, window_size=2, patch_size=4)
RESNET = dict(embedding_size=8, hidden_sizes=[16, 32, 64], depths=[1, 2, 3], base_width=8, num_groups=4, image_size=64)


def saved(tmp_path, name: str):
    """A stock model with weights that are all of their own, and its folder."""
    torch.manual_seed(1)
    model = SOURCES[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "source")
    return getattr(model, model.base_model_prefix, model), tmp_path / "source"


def started(source, **fields):
    torch.manual_seed(2)
    model = PoaForPreTraining(PoaConfig(backbone_config=warm_start_config(source, **fields), **HEADS))
    return model, init_from(model, source)


def features(model, images: torch.Tensor) -> torch.Tensor:
    resizes = isinstance(model, ViTModel) or getattr(model.config, "use_absolute_embeddings", False)
    with torch.no_grad():
        return model(images, **({"interpolate_pos_encoding": True} if resizes else {})).last_hidden_state


@pytest.mark.parametrize("name", SOURCES)
def test_student_and_teacher_compute_what_the_source_does(tmp_path, name):
    stock, folder = saved(tmp_path, name)
    model, _ = started(folder)
    for size in (1, 1.5, 2) if "swin" in name else (0.5, 1, 1.5):
        side = int(size * model.config.backbone_config.image_size)
        images = torch.randn(2, 3, side, side)
        expected = features(copy.deepcopy(stock), images)  # a stock Swin changes itself where maps are small
        for backbone in (model.student.eval(), model.teacher):
            with torch.no_grad():
                assert torch.equal(backbone(images).last_hidden_state, expected)
    full = model.teacher.extract()
    with torch.no_grad():
        assert torch.equal(features(full, images), expected)
    sizes = model.config.backbone_config.space
    assert len(sizes) > 3
    with torch.no_grad():
        for size in (sizes.smallest, sizes.spread[1]):
            assert torch.isfinite(model.teacher(images, sub_network=size).last_hidden_state).all()


@pytest.mark.parametrize("name", ["dinov2", "vit", "swin classifier"])
def test_another_image_size_resizes_position_embeddings_once_as_the_source_would_at_each_call(tmp_path, name):
    stock, folder = saved(tmp_path, name)
    size = 2 * warm_start_config(folder).image_size
    model, start = started(folder, image_size=size)
    assert start.resized == {"dinov2": (4, 8), "vit": (4, 8), "swin classifier": (8, 16)}[name]
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model.teacher(images).last_hidden_state, features(stock, images))
    assert "resized from" in str(start)


def test_what_is_new_and_what_is_left_out_is_told(tmp_path):
    stock, folder = saved(tmp_path, "vit classifier")
    model, start = started(folder)
    assert set(start.dropped) == {"classifier.weight", "classifier.bias"} and not start.heads
    assert "LayerScale of 1 in 4 blocks" in str(start) and "new: embeddings.mask_token" in str(start)
    assert all((p == 1).all() for n, p in model.teacher.named_parameters() if "layer_scale" in n)
    assert model.config.backbone_config.layer_norm_eps == 1e-12
    assert model.config.warm_started_from == "source"
    model.save_pretrained(tmp_path / "saved")
    assert PoaConfig.from_pretrained(tmp_path / "saved").warm_started_from == "source"
    torch.manual_seed(3)
    ViTModel(ViTConfig(**VIT, intermediate_size=64, image_size=28, patch_size=7)).save_pretrained(tmp_path / "pooler")
    assert set(started(tmp_path / "pooler")[1].dropped) == {"pooler.dense.weight", "pooler.dense.bias"}


def test_a_mask_token_of_the_source_is_taken(tmp_path):
    torch.manual_seed(1)
    config = ViTConfig(**VIT, intermediate_size=64, image_size=28, patch_size=7, encoder_stride=7)
    source = ViTForMaskedImageModeling(config).eval()
    torch.nn.init.normal_(source.vit.embeddings.mask_token)
    source.save_pretrained(tmp_path)
    model, start = started(tmp_path)
    assert not [name for name in start.new if "mask" in name] and start.dropped == (
        "decoder.0.bias",
        "decoder.0.weight",
    )
    token = model.student.embeddings.mask_token
    assert torch.equal(token.flatten(), source.vit.embeddings.mask_token.flatten())
    images, masks = torch.randn(2, 3, 28, 28), torch.rand(2, 16) < 0.5
    with torch.no_grad():
        expected = source.vit(images, bool_masked_pos=masks).last_hidden_state
        assert torch.equal(model.teacher(images, bool_masked_pos=masks).last_hidden_state, expected)


def test_sizes_are_slices_of_the_source_by_the_methods_rule(tmp_path):
    """Against a stock ViT made by hand: the first heads, blocks 0 and 3, linear weights times fan-in over fan-in."""
    stock, folder = saved(tmp_path, "vit")
    model, _ = started(folder)
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=28,
                       patch_size=7)  # fmt: skip
    small, full = ViTModel(config, add_pooling_layer=False).eval(), stock.state_dict()
    with torch.no_grad():
        for name, tensor in small.state_dict().items():
            source = full[name.replace("layers.1.", "layers.3.")]
            scale = source.shape[1] / tensor.shape[1] if name.endswith("weight") and source.ndim == 2 else 1
            tensor.copy_(scale * source[tuple(slice(0, n) for n in tensor.shape)])
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        ours = model.teacher(images, sub_network="16x2").last_hidden_state
    torch.testing.assert_close(ours, features(small, images), rtol=1e-5, atol=1e-5)


def test_the_space_has_the_published_proportions():
    large = space_of(Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518))
    assert (str(large.smallest), str(large.full), len(large)) == ("384x12", "1024x24", 143)
    base = space_of(ViTConfig())
    assert (str(base.smallest), str(base.full)) == ("320x6", "768x12")
    swin = space_of(SwinConfig(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32]))
    assert (str(swin.smallest), str(swin.full)) == ("96x2-2-6-2", "128x2-2-18-2")
    tiny = space_of(SwinConfig())  # 3/4 of three heads would be all of them
    assert (str(tiny.smallest), str(tiny.full)) == ("64x2-2-2-2", "96x2-2-6-2")
    resnet = space_of(GnResNetConfig())
    assert (str(resnet.smallest), str(resnet.full)) == ("32x3-2-1-3", "64x3-4-6-3")


def space_of(config):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return warm_start_config(folder).space


def test_a_runs_supernet_gives_its_teacher_its_space_and_heads_that_fit(tmp_path):
    torch.manual_seed(1)
    source = PoaForPreTraining(tiny_config())
    for part in (source.teacher, source.teacher_head):
        for parameter in part.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    source.save_pretrained(tmp_path / "run")
    torch.manual_seed(2)
    model = PoaForPreTraining(tiny_config(warm_start_config(tmp_path / "run", sampling_bias=1)))
    assert init_from(model, tmp_path / "run").heads
    for ours, theirs in ((model.student, source.teacher), (model.teacher_head, source.teacher_head)):
        assert all(torch.equal(t, theirs.state_dict()[n]) for n, t in ours.state_dict().items())
    assert model.config.backbone_config.space.smallest == source.config.backbone_config.space.smallest
    assert model.config.backbone_config.sampling_bias == 1
    other = PoaForPreTraining(tiny_config(warm_start_config(tmp_path / "run"), num_prototypes=[7]))
    heads = {name: tensor.clone() for name, tensor in other.student_head.state_dict().items()}
    start = init_from(other, tmp_path / "run")
    assert not start.heads and start.dropped == ("teacher_head",)
    assert all(torch.equal(tensor, heads[name]) for name, tensor in other.student_head.state_dict().items())
    source.teacher.save_pretrained(tmp_path / "backbone")
    alone = PoaForPreTraining(tiny_config(warm_start_config(tmp_path / "backbone")))
    init_from(alone, tmp_path / "backbone")
    assert all(torch.equal(t, source.teacher.state_dict()[n]) for n, t in alone.teacher.state_dict().items())


@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
def test_the_authors_files_are_read(tmp_path, family):
    save_file(
        {name: tensor.contiguous() for name, tensor in golden_weights(family).items()}, tmp_path / "w.safetensors"
    )
    torch.save({"teacher": golden_weights(family)}, tmp_path / "w.pth")
    for file in ("w.safetensors", "w.pth"):
        model = PoaForPreTraining(golden_config(family))
        assert init_from(model, tmp_path / file).heads
        expected = golden_model(family)
        for ours in (model.student, model.teacher):
            assert all(torch.equal(t, expected.student.state_dict()[n]) for n, t in ours.state_dict().items())


def damaged(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def without_a_block(tensors):
    for name in [name for name in tensors if "layer.2." in name]:
        del tensors[name]


def infinite(tensors):
    tensors["layernorm.weight"][3] = float("inf")


def other_shape(tensors):
    tensors["layernorm.weight"] = torch.ones(31)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_block, "source lacks 18 parameters .encoder.layer.2.* it is not a whole checkpoint"),
        (infinite, "layernorm.weight of source holds values that are not finite"),
        (other_shape, "weights of source cannot be loaded"),
    ],
)
def test_a_damaged_source_is_refused_and_the_model_left_as_it_was(tmp_path, change, message):
    _, folder = saved(tmp_path, "dinov2")
    damaged(folder, change)
    model = PoaForPreTraining(PoaConfig(backbone_config=warm_start_config(folder), **HEADS))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as refusal:
        init_from(model, folder)
    assert "\n" not in str(refusal.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_truncated_file_is_refused(tmp_path):
    _, folder = saved(tmp_path, "dinov2")
    model = PoaForPreTraining(PoaConfig(backbone_config=warm_start_config(folder), **HEADS))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="weights of source cannot be loaded"):
        init_from(model, folder)


def test_a_window_that_does_not_fit_the_images_is_refused(tmp_path):
    SwinConfig(**{**SWIN, "window_size": 12}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="window_size 12 does not fit"):
        warm_start_config(tmp_path)


def test_a_folder_or_name_with_nothing_in_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds neither a model .* nor a run's checkpoints"):
        warm_start_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet50_gn"}))
    with pytest.raises(ValueError, match="has no model_type in its config.json"):
        warm_start_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json of .* cannot be read"):
        warm_start_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", "hidden_size": "wide"}))
    with pytest.raises(ValueError, match="cannot be used .*hidden_size"):
        warm_start_config(tmp_path)
    for missing in ("./nowhere", "checkpoint.pth", ""):
        with pytest.raises(ValueError, match="There is nothing at"):
            warm_start_config(missing)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("dinov2", {"patch_size": 7, "image_size": 56}, "patch_size is 7, but source has 14: .*something else"),
        ("dinov2", {"hidden_size": 64}, "hidden_size is 64, but source has 32"),
        ("dinov2", {"use_swiglu_ffn": True}, "use_swiglu_ffn is True, but source has False"),
        ("vit", {"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06, but source has 1e-12"),
        ("vit", {"mlp_ratio": 4}, "mlp_ratio is 4, but source has 3"),
        ("swin", {"window_size": 4}, "window_size is 4, but source has 2: .*position bias"),
        ("swin", {"depths": [2, 2, 2]}, r"depths is \[2, 2, 2\], but source has \[2, 4, 2\]"),
        ("swin", {"model_type": "poa_vit"}, "model_type is poa_vit, but source is a 'swin' model: .* poa_swin"),
        ("gn_resnet", {"base_width": 16}, "base_width is 16, but source has 8"),
    ],
)
def test_a_configuration_of_another_architecture_is_refused(tmp_path, name, fields, message):
    _, folder = saved(tmp_path, name)
    with pytest.raises(ValueError, match=message):
        warm_start_config(folder, **fields)


def test_a_model_of_another_architecture_is_refused(tmp_path):
    _, folder = saved(tmp_path, "dinov2")
    with pytest.raises(ValueError, match="num_hidden_layers is 3, but source has 4"):
        init_from(PoaForPreTraining(tiny_config(tiny_backbone(image_size=56, patch_size=14))), folder)
    fields = dict(min_hidden_size=16, num_attention_heads=4, mlp_ratio=4, hidden_act="gelu")
    assert warm_start_config(folder, **fields).min_hidden_size == 16
