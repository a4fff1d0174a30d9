"""Global and local crops in one pass compute what they do in a pass each."""

import copy

import pytest
import torch

from poa_hf import PoaConfig, PoaDinov2RegistersConfig, PoaForPreTraining, PoaViTConfig, SubNetwork
from poa_hf.models.activation_checkpointing import enable_activation_checkpointing
from poa_hf.models.compiled_blocks import BlockCompiler

SIZES = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, min_hidden_size=16, min_num_hidden_layers=1)
CROPS = dict(image_size=32, patch_size=8, layerscale_value=0.5)
FAMILIES = {"vit": PoaViTConfig, "registers": PoaDinov2RegistersConfig}


def new_model(family="vit", drop_path_rate=0.3, **config):
    torch.manual_seed(0)
    backbone = FAMILIES[family](**SIZES, **CROPS, drop_path_rate=drop_path_rate)
    heads = dict(num_prototypes=[16, 24], head_hidden_size=16, head_bottleneck_size=8)
    return PoaForPreTraining(PoaConfig(backbone_config=backbone, **heads, **config)).train()


def step(model, pack_crops, size="16x2", views=3, images=4, dtype=None, **arguments):
    """Return the loss, its terms and the gradients of a step, which are the same at each call."""
    generator = torch.Generator().manual_seed(1)
    crops = [torch.randn(count * images, 3, side, side, generator=generator) for count, side in ((2, 32), (views, 16))]
    masks = torch.rand(2 * images, 16, generator=generator) < 0.4
    model.zero_grad()
    torch.manual_seed(2)  # of stochastic depth
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        output = model(
            *(each.to(model.dtype) for each in crops), masks, SubNetwork.parse(size), 0.07, pack_crops=pack_crops,
            **arguments,
        )  # fmt: skip
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": output.loss.detach(), **output.losses, **gradients}


def assert_same(found, expected, tolerance=1e-6):
    assert found.keys() == expected.keys()
    largest = max(each.norm() for each in expected.values())
    for name, value in expected.items():  # some are 0 but for rounding: those of the keys' biases
        assert (found[name] - value).norm() <= tolerance * (value.norm() + 1e-2 * largest), name


CASES = {
    "usual": {},
    "another size": dict(size="24x3"),
    "shares of unequal rounding": dict(images=3, views=5),  # 6 images keep 4, 15 keep 10
    "no local crops": dict(views=0),
    "one image": dict(images=1, views=1),
    "nothing predicted": dict(predict_masked_patches=False),
    "frozen backbone": dict(freeze_backbone=True),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_separate_passes(family, case):
    model = new_model(family).double()
    separate, packed = (step(model, pack_crops, **CASES[case]) for pack_crops in (False, True))
    assert len(packed) > 50
    assert_same(packed, separate)


@pytest.mark.parametrize(
    "change", ["checkpointing", "eager attention", "no stochastic depth", "one student", "float32"]
)
def test_they_are_with_other_ways_to_compute_too(change):
    config = {"no stochastic depth": dict(drop_path_rate=0.0), "one student": dict(intact_weight=1.0)}.get(change, {})
    model = new_model(**config)
    if change != "float32":
        model.double()  # the losses are in float32 still
    separate = step(model, False)
    if change == "checkpointing":
        enable_activation_checkpointing(model.student)
    if change == "eager attention":
        model.student.set_attn_implementation("eager")
    assert_same(step(model, True), separate, 1e-5 if change == "float32" else 1e-6)


def test_bfloat16_is_as_close_to_float64_as_separate_passes():
    model = new_model()
    exact = step(copy.deepcopy(model).double(), False)
    separate, packed = (step(model, pack_crops, dtype=torch.bfloat16) for pack_crops in (False, True))

    def error(found):
        names = [name for name in exact if not name.endswith("k_proj.bias")]  # whose gradient is 0
        return sum((found[n] - exact[n]).norm() / exact[n].norm() for n in names) / len(names)

    assert 0 < error(packed) < 1.2 * error(separate) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("views", [3, 0])  # shares that stochastic depth keeps of each resolution differ, or not
def test_blocks_of_packed_crops_are_compiled_once_per_kind(backend, views):
    model = new_model()
    sizes = ["16x1", "24x2", "16x3"]
    separate = [step(model, False, size, views) for size in sizes]
    compiler = BlockCompiler(backend=backend)
    model.compile_blocks(compiler)
    for size, expected in zip(sizes, separate, strict=True):
        assert_same(step(model, True, size, views), expected, 1e-5)
    blocks = [key for key in compiler._functions if not callable(key[0])]  # the others are functions of the losses
    assert len(blocks) == 4  # the teacher's, and those of widths 32, 16 and 24
    assert (compiler.compilations, compiler.recompilations) == (len(compiler._functions), 0)


def test_several_sizes_of_images_are_computed_at_once():
    model = new_model().student.eval()
    images = [torch.randn(2, 3, side, side) for side in (32, 48, 16)]
    masks = [None, torch.rand(2, 36) < 0.5, None]
    together = model(images, bool_masked_pos=masks, sub_network="24x2")
    for output, pixels, mask in zip(together, images, masks, strict=True):
        alone = model(pixels, bool_masked_pos=mask, sub_network="24x2")
        torch.testing.assert_close(output.last_hidden_state, alone.last_hidden_state, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.pooler_output, alone.pooler_output, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="leave out output_hidden_states"):
        model(images, output_hidden_states=True)
    for misfit in (masks[1], masks[:2], [masks[1]] * 4):
        with pytest.raises(ValueError, match="of 3 sizes: give a list of as many, each a tensor or None.$"):
            model(images, bool_masked_pos=misfit, sub_network="24x2")
