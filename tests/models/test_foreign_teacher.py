"""A frozen model of another's as teacher, against the model itself and Pillow-like resizing by torch."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModel,
    BertConfig,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    IJepaConfig,
    ResNetConfig,
    SiglipConfig,
    SwinConfig,
    ViTConfig,
    ViTMAEConfig,
    ViTModel,
)

from poa_hf import PoaForPreTraining
from poa_hf.models.foreign_teacher import ForeignTeacher

from ..conftest import tiny_config

OURS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
VIT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
PATCH_8 = dict(**VIT, intermediate_size=48, image_size=32, patch_size=8)
TEXT = dict(**VIT, intermediate_size=48)
SWIN = dict(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, image_size=32)
STAGES = dict(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1])
# configuration; the image's feature, from an output; number of tokens before those of patches; patches of a side
MODELS = {
    "vit": (ViTConfig(**PATCH_8), "pooler_output", 1, 4),
    "dinov2": (Dinov2Config(**VIT, image_size=28, patch_size=14), "pooler_output", 1, 2),
    "registers": (Dinov2WithRegistersConfig(**VIT, image_size=28, patch_size=14), "pooler_output", 5, 2),
    "dinov3": (DINOv3ViTConfig(**PATCH_8, num_register_tokens=2), "pooler_output", 3, 4),
    "dinov3 convnext": (DINOv3ConvNextConfig(**STAGES, image_size=64), "pooler_output", 1, 2),
    "ijepa": (IJepaConfig(**PATCH_8), "mean", 0, 4),
    "clip tower": (CLIPVisionConfig(**PATCH_8), "pooler_output", 1, 4),
    "clip": (CLIPConfig(vision_config=PATCH_8, text_config=TEXT), "pooler_output", 1, 4),
    "siglip": (SiglipConfig(vision_config=PATCH_8, text_config=TEXT), "pooler_output", 0, 4),
    "convnext": (ConvNextConfig(**STAGES, image_size=96), "pooler_output", None, 3),
    "resnet": (ResNetConfig(embedding_size=8, **STAGES), "pooler_output", None, 1),
    "swin": (SwinConfig(**SWIN), "pooler_output", 0, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_the_model_at_its_own_resolution(name):
    config, image_feature, num_prefix, side = MODELS[name]
    model = AutoModel.from_config(config)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    teacher = ForeignTeacher(model, image_mean=mean.flatten().tolist(), image_std=std.flatten().tolist())
    teacher.prepare(32, **OURS, device=torch.device("cpu"))
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters()) and not teacher.model.training
    pixels = torch.rand(3, 3, 32, 32)  # in 0..1
    ours_mean, ours_std = (torch.tensor(OURS[each]).view(1, 3, 1, 1) for each in ("image_mean", "image_std"))
    features = teacher((pixels - ours_mean) / ours_std, grid=(side, side))

    tower = getattr(model, "vision_model", model)
    size = getattr(tower.config, "image_size", 32)
    resized = pixels if size == 32 else F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
    with torch.no_grad():
        output = tower(pixel_values=(resized - mean) / std)
    hidden = output.last_hidden_state
    patches = hidden.flatten(2).transpose(1, 2) if num_prefix is None else hidden[:, num_prefix:]
    images = patches.mean(dim=1) if image_feature == "mean" else output[image_feature].flatten(1)
    torch.testing.assert_close(features.images, images, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.patches, patches, rtol=1e-4, atol=1e-4)
    assert (teacher.image_features, teacher.patch_features) == (images.shape[1], patches.shape[2])


def test_patches_are_resized_to_the_grid_of_the_students():
    teacher = ForeignTeacher(AutoModel.from_config(MODELS["vit"][0]))
    teacher.prepare(32, **OURS, device=torch.device("cpu"))
    crops = torch.randn(2, 3, 32, 32)
    fine, coarse = teacher(crops, (4, 4)).patches, teacher(crops, (2, 2)).patches
    grid = F.interpolate(fine.transpose(1, 2).unflatten(2, (4, 4)), (2, 2), mode="bilinear", antialias=True)
    torch.testing.assert_close(coarse, grid.flatten(2).transpose(1, 2))
    assert teacher(crops, None).patches is None


def test_a_model_without_trained_pooler_gives_its_class_token():
    model = ViTModel(MODELS["vit"][0])
    teacher = ForeignTeacher(model, has_pooler=False)
    teacher.prepare(32, **OURS, device=torch.device("cpu"))
    crops = torch.randn(2, 3, 32, 32)
    assert torch.equal(teacher(crops, None).images, model(crops).last_hidden_state[:, 0])


@pytest.mark.parametrize("name", ["dinov2", "clip", "convnext", "swin"])
def test_bfloat16_is_close(name):
    model = AutoModel.from_config(MODELS[name][0])
    crops, found = torch.randn(3, 3, 32, 32), []
    for dtype in (None, torch.bfloat16):
        teacher = ForeignTeacher(model)
        teacher.prepare(32, **OURS, device=torch.device("cpu"), dtype=dtype)
        found.append(teacher(crops, (2, 2)))
    assert found[1].images.dtype == torch.float32 and not torch.equal(found[0].images, found[1].images)
    for one, other in ((found[0].images, found[1].images), (found[0].patches, found[1].patches)):
        assert F.cosine_similarity(one, other, dim=-1).min() > 0.99


def test_the_processor_beside_a_model_says_what_it_takes(tmp_path):
    AutoModel.from_config(ViTConfig(**{**PATCH_8, "image_size": 48})).save_pretrained(tmp_path)
    options = dict(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7])
    for processor, size, scale in (
        (BitImageProcessorPil(crop_size={"height": 32, "width": 32}, size={"shortest_edge": 40}, **options), 32, 1),
        (BitImageProcessorPil(do_center_crop=False, size={"height": 48, "width": 48}, **options), 48, 1),
        # pixels in 0..255
        (BitImageProcessorPil(do_center_crop=False, size={"shortest_edge": 48}, do_rescale=False, **options), 48, 255),
    ):
        processor.save_pretrained(tmp_path)
        teacher = ForeignTeacher(ViTModel.from_pretrained(tmp_path))
        assert teacher.image_size == size and teacher.name == tmp_path.name
        assert teacher.image_mean == pytest.approx([value / scale for value in options["image_mean"]])
        assert teacher.image_std == pytest.approx([value / scale for value in options["image_std"]])
        teacher.prepare(16, **OURS, device=torch.device("cpu"))  # also where position embeddings are resized


def test_a_run_is_a_teacher_by_its_teacher():
    model = PoaForPreTraining(tiny_config())
    assert ForeignTeacher(model).model is model.teacher


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (BertConfig(**VIT, vocab_size=8), {}, "a 'bert' model, which does not take images"),
        (ViTMAEConfig(**PATCH_8), {}, "other features of the same image each time"),
        (ViTConfig(**{**PATCH_8, "image_size": [32, 16]}), {}, "images that are not square"),
        (ViTConfig(**{**PATCH_8, "num_channels": 4}), {}, "images of 4 channels, and the crops have 3"),
        (ViTConfig(**PATCH_8), {"image_size": 4}, "cannot compute features of images of 4x4 pixels"),
    ],
)
def test_what_cannot_be_a_teacher_is_refused_in_a_sentence(config, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        ForeignTeacher(AutoModel.from_config(config), "theirs", **options).prepare(
            32, **OURS, device=torch.device("cpu")
        )
    text = str(caught.value)
    assert text.startswith("theirs ") and text.endswith(".") and "\n" not in text
