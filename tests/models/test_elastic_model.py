"""What holds for the elastic models of every family: export, fields set late, and files of stock models."""

import pytest
import torch
from torch import nn

from poa_hf import (
    PoaConfig,
    PoaDinov2RegistersConfig,
    PoaDinov2RegistersModel,
    PoaDinov3ViTConfig,
    PoaDinov3ViTModel,
    PoaForPreTraining,
    PoaResNetConfig,
    PoaResNetModel,
    PoaSwinConfig,
    PoaSwinModel,
    PoaViTConfig,
    PoaViTModel,
)
from poa_hf.models.activation_checkpointing import enable_activation_checkpointing

VIT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=16, image_size=32, patch_size=8)
SWIN = dict(
    embed_dim=16, depths=[1, 2], num_heads=[2, 4], min_embed_dim=8, min_depths=[1, 1], image_size=32, window_size=2
)
RESNET = dict(
    embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2], base_width=16, num_groups=8, min_depths=[1, 1],
    image_size=32,
)  # fmt: skip
# the model, its configuration, its smallest size, and the field of its smallest width
MODELS = {
    "vit": (PoaViTModel, PoaViTConfig, VIT, "16x1", "min_hidden_size"),
    "registers": (PoaDinov2RegistersModel, PoaDinov2RegistersConfig, VIT, "16x1", "min_hidden_size"),
    "dinov3": (PoaDinov3ViTModel, PoaDinov3ViTConfig, VIT, "16x1", "min_hidden_size"),
    "swin": (PoaSwinModel, PoaSwinConfig, SWIN, "8x1-1", "min_embed_dim"),
    "resnet": (PoaResNetModel, PoaResNetConfig, RESNET, "8x1-1", "min_base_width"),
}
HEADS = dict(num_prototypes=[16], head_hidden_size=16, head_bottleneck_size=8)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


@pytest.fixture(params=MODELS)
def made(request):
    model_class, config_class, fields, smallest, width = MODELS[request.param]
    return model_class(config_class(**fields)).eval(), smallest, width


def test_the_full_size_is_exported_as_a_strict_graph(made):
    model, _, _ = made
    program = torch.export.export(model, (), {"pixel_values": IMAGES}, strict=True).module()
    with torch.no_grad():
        assert torch.equal(program(pixel_values=IMAGES)[0], model(IMAGES)[0])


def test_a_smaller_size_is_exported_as_a_program_that_runs(made):
    model, smallest, _ = made
    given = {"pixel_values": IMAGES, "sub_network": smallest}
    program = torch.export.export(model, (), given, strict=False).module()
    assert torch.equal(program(**given)[0], model(**given)[0])  # with gradients: the parameters need them


def test_sizes_given_beside_a_saved_model_are_checked_as_those_in_it(made, tmp_path):
    model, _, width = made
    model.save_pretrained(tmp_path)
    for wrong in (9, 4096):
        with pytest.raises(ValueError, match=rf"^{width} {wrong} is "):
            type(model).from_pretrained(tmp_path, **{width: wrong})
    full = model.config.space.full.width
    assert type(model).from_pretrained(tmp_path, **{width: full}).config.space.widths == (full,)


def test_sizes_that_were_set_after_the_configuration_was_made_are_checked_by_the_model(made):
    model, _, width = made
    config = type(model.config).from_dict(model.config.to_dict())
    setattr(config, width, 9)
    with pytest.raises(ValueError, match=rf"^{width} 9 is not a positive multiple"):
        type(model)(config)
    with pytest.raises(ValueError, match=rf"^{width} 9 is not a positive multiple"):
        PoaConfig(backbone_config=config)


def test_stock_files_are_loaded_whole_or_refused(made, tmp_path):
    model, _, _ = made
    model.extract().save_pretrained(tmp_path)
    try:
        loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    except ValueError as error:
        assert "warm_start_config and init_from" in str(error)
    else:
        assert info["missing_keys"] <= {"mask_token"}
        with torch.no_grad():
            assert torch.equal(loaded.eval()(IMAGES)[0], model(IMAGES)[0])


def test_layers_wrapped_after_the_first_use_are_refused_in_a_sentence(made):
    model, smallest, _ = made
    model(IMAGES, sub_network=smallest)
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and "0." in n)
    model.set_submodule(name, nn.Sequential(layer))
    with pytest.raises(ValueError, match="is not there as a plain weight"):
        model(IMAGES, sub_network=smallest)


@pytest.fixture(scope="module")
def pretraining():
    return PoaForPreTraining(PoaConfig(backbone_config=PoaViTConfig(**VIT), **HEADS))


@pytest.mark.parametrize(
    ("crops", "local", "masks", "size", "message"),
    [
        (6, 5, (6, 16), "16x1", "^6 global crops, 5 local crops and 6 masks do not belong"),
        (5, 6, (5, 16), "16x1", "^5 global crops, 6 local crops and 5 masks do not belong"),
        (6, 6, (4, 16), "16x1", "^6 global crops, 6 local crops and 4 masks do not belong"),
        (6, 6, (6, 9), "16x1", r"^bool_masked_pos \(6, 9\) does not fit these images: give \(6, 16\)"),
        (6, 6, (6, 16), None, "^None is not a size"),
        (6, 6, (6, 16), ("16x1", 3), "^3 is not a size"),
    ],
)
def test_crops_masks_and_sizes_that_do_not_belong_together_are_refused(pretraining, crops, local, masks, size, message):
    with pytest.raises(ValueError, match=message):
        pretraining(torch.rand(crops, 3, 32, 32), torch.rand(local, 3, 16, 16), torch.ones(masks).bool(), size, 0.07)


def test_masks_of_images_that_are_no_multiple_of_the_patch(pretraining):
    """Stock patches leave out what remains at the border."""
    images, model = torch.rand(2, 3, 38, 45), pretraining.teacher
    masks = torch.zeros(2, 4 * 5, dtype=torch.bool)
    plain = model(images)
    assert torch.equal(model(images, bool_masked_pos=masks).last_hidden_state, plain.last_hidden_state)
    with pytest.raises(ValueError, match=r"does not fit these images: give \(2, 20\)"):
        model(images, bool_masked_pos=torch.zeros(2, 26, dtype=torch.bool))


def test_fields_of_pretraining_are_checked_wherever_they_come_from(pretraining, tmp_path):
    pretraining.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="^intact_weight is 5.0"):
        PoaForPreTraining.from_pretrained(tmp_path, intact_weight=5.0)
    with pytest.raises(ValueError, match="^min_hidden_size 20 is not"):
        PoaForPreTraining.from_pretrained(tmp_path, backbone_config={"min_hidden_size": 20})
    assert PoaForPreTraining.from_pretrained(tmp_path, intact_weight=0.5).config.intact_weight == 0.5


def batch_of(config):
    masks = torch.zeros(6, (32 // config.patch_grid) ** 2, dtype=torch.bool)
    masks[:, 0] = True
    images = torch.linspace(-1, 1, 6 * 3 * 32 * 32).sin().reshape(6, 3, 32, 32)
    return images, torch.zeros(0, 3, 16, 16), masks


def equal(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_pretraining_starts_from_the_folder_of_an_elastic_model(made, tmp_path):
    backbone, _, _ = made
    backbone.save_pretrained(tmp_path)
    model = PoaForPreTraining.from_pretrained(tmp_path, **HEADS)
    assert equal(model.student, backbone) and equal(model.teacher, backbone)
    assert equal(model.teacher_head, model.student_head) and model.config.num_prototypes == [16]
    model.save_pretrained(tmp_path / "run")
    with pytest.raises(ValueError, match="holds teacher, student and heads: load a PoaForPreTraining"):
        type(backbone).from_pretrained(tmp_path / "run")


def test_the_teacher_is_a_copy_of_the_student_however_the_model_is_initialised(made):
    config = PoaConfig(backbone_config=made[0].config, **HEADS)
    loaded = PoaForPreTraining.from_pretrained(None, config=config, state_dict={})
    with torch.device("meta"):
        filled = PoaForPreTraining(config)
    filled.to_empty(device="cpu")
    filled.init_weights()
    for model in (loaded, filled):
        assert equal(model.teacher, model.student) and equal(model.teacher_head, model.student_head)
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_activation_checkpointing_of_any_kind_gives_the_same_gradients(made):
    backbone, smallest, _ = made
    model = PoaForPreTraining(PoaConfig(backbone_config=backbone.config, **HEADS)).train()
    found = []
    for use_reentrant in (None, False, True):
        if use_reentrant is not None:
            enable_activation_checkpointing(model, use_reentrant)
            layers = [module for module in model.student.modules() if hasattr(module, "gradient_checkpointing")]
            assert layers and all(layer.gradient_checkpointing for layer in layers)
        torch.manual_seed(0)
        model.zero_grad()
        model(*batch_of(backbone.config), smallest, 0.07).loss.backward()
        found.append([parameter.grad for parameter in model.student.parameters()])
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_the_output_of_pretraining_is_a_tuple_if_asked_for(pretraining):
    batch = batch_of(pretraining.eval().config.backbone_config)
    output = pretraining(*batch, "16x1", 0.07)
    as_tuple = pretraining(*batch, "16x1", 0.07, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], output.loss)


def test_offloaded_weights_are_refused_in_a_sentence(made):
    model, smallest, _ = made
    next(layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)).to("meta")
    with pytest.raises(ValueError, match="^Offloaded weights cannot be sliced"):
        model.extract(smallest)
