import pytest
import torch
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
)

from poa_hf import PoaResNetConfig, PoaResNetModel, PoaSwinConfig, PoaSwinModel, PoaViTConfig, PoaViTModel
from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.images.layer_features import LayerFeatures
from poa_hf.evaluation.images.layers import block_places, layer_callables, layer_widths
from poa_hf.evaluation.subject import Subject

CPU = torch.device("cpu")
SHAPE = dict(hidden_size=32, num_hidden_layers=6, num_attention_heads=2, image_size=32, patch_size=8)


def read(model, size: str, blocks: str, pixels: torch.Tensor) -> LayerFeatures:
    subject = Subject("model", model, evaluation_processor(pixels.shape[-1]))
    with torch.no_grad():
        output = layer_callables(subject, [size], blocks)[size](pixel_values=pixels)
    return LayerFeatures(output.pooler_output, layer_widths(subject, [size], blocks, CPU)[size])


def unusual_norms(model):
    """Norms that change something, as those of a trained model do."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter)
    return model.eval()


def test_places_are_those_of_the_authors():
    assert block_places(12, "last") == [8, 9, 10, 11] and block_places(24, "spread") == [6, 12, 18, 23]
    assert block_places(2, "last") == block_places(2, "spread") == [0, 1] and block_places(1, "spread") == [0]


@pytest.mark.parametrize("blocks", ["last", "spread"])
@pytest.mark.parametrize("size", ["32x5", "64x6", "32x2"])
def test_sizes_of_a_vit_give_what_their_stock_models_give(size, blocks):
    torch.manual_seed(0)
    shape = SHAPE | dict(hidden_size=64, num_attention_heads=4)
    model = unusual_norms(PoaViTModel(PoaViTConfig(**shape, min_hidden_size=32, min_num_hidden_layers=2)))
    pixels = torch.rand(3, 3, 32, 32)
    found, stock = read(model, size, blocks, pixels), model.extract(size)
    with torch.no_grad():
        output = stock(pixels, output_hidden_states=True)
        normalised = [stock.layernorm(hidden) for hidden in output.hidden_states[1:]]
    tokens = [normalised[place][:, 0] for place in block_places(len(normalised), blocks)]
    patches = normalised[-1][:, 1:].mean(dim=1)
    assert torch.equal(found.pooled, output.pooler_output)
    assert torch.equal(found.chosen(1, False), tokens[-1])
    assert torch.equal(found.chosen(4, True), torch.cat([*tokens, patches], dim=1))


@pytest.mark.parametrize(
    ("model", "norm", "others"),
    [
        (ViTModel(ViTConfig(**SHAPE)), "layernorm", 1),
        (Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SHAPE, num_register_tokens=3)), "layernorm", 4),
        (DINOv3ViTModel(DINOv3ViTConfig(**SHAPE, intermediate_size=64, num_register_tokens=2)), "norm", 3),
    ],
    ids=["vit", "registers", "dinov3"],
)
def test_stock_vits_leave_registers_out_of_the_mean(model, norm, others):
    pixels = torch.rand(2, 3, 32, 32)
    found = read(unusual_norms(model), "-", "last", pixels)
    with torch.no_grad():
        hidden = [getattr(model, norm)(part) for part in model(pixels, output_hidden_states=True).hidden_states[-4:]]
    expected = torch.cat([*(part[:, 0] for part in hidden), hidden[-1][:, others:].mean(dim=1)], dim=1)
    # the last hidden state may be normalised already
    torch.testing.assert_close(found.chosen(4, True)[:, :96], expected[:, :96])
    assert found.widths == (32,) * 6
    with torch.no_grad():
        last = model(pixels).last_hidden_state
    torch.testing.assert_close(found.chosen(1, True), torch.cat([last[:, 0], last[:, others:].mean(dim=1)], dim=1))


def test_stages_of_swin_and_resnet_are_means_over_their_maps():
    pixels = torch.rand(2, 3, 64, 64)
    swin = PoaSwinModel(
        PoaSwinConfig(image_size=64, embed_dim=32, depths=[2, 2, 4, 2], num_heads=[2, 4, 8, 16], min_embed_dim=16,
                      min_depths=[2, 2, 2, 2], window_size=2)
    ).eval()  # fmt: skip
    found = read(swin, "16x2-2-2-2", "last", pixels)
    assert found.widths == (128, 16, 32, 64, 128, 128)
    torch.testing.assert_close(found.chosen(1, False), found.pooled)
    stock = swin.extract("16x2-2-2-2")
    kept = []
    for stage in stock.encoder.layers[:3]:  # what goes into the merging of patches
        stage.downsample.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    with torch.no_grad():
        stock(pixels)
    expected = [torch.nn.functional.layer_norm(part, part.shape[-1:]).mean(dim=1) for part in kept]
    torch.testing.assert_close(found.chosen(4, False)[:, :112], torch.cat(expected, dim=1))

    resnet = PoaResNetModel(
        PoaResNetConfig(depths=[1, 2, 2, 1], min_depths=[1, 1, 1, 1], hidden_sizes=[64, 128, 256, 512], base_width=32,
                        min_base_width=16, num_groups=8)
    ).eval()  # fmt: skip
    found = read(resnet, "16x1-1-1-1", "last", pixels)
    with torch.no_grad():
        maps = resnet.extract("16x1-1-1-1")(pixels, output_hidden_states=True).hidden_states[1:]
    torch.testing.assert_close(found.chosen(4, False), torch.cat([part.mean(dim=(2, 3)) for part in maps], dim=1))


def test_a_model_without_layers_is_refused_in_one_sentence():
    class Odd(ViTModel):
        pass

    model = Odd(ViTConfig(**SHAPE))
    model.layernorm = torch.nn.Identity()
    del model.layernorm
    subject = Subject("odd", model, evaluation_processor(32))
    with pytest.raises(ValueError, match="odd gives no features of its layers .*: leave out --protocol"):
        layer_widths(subject, ["-"], "last", CPU)
