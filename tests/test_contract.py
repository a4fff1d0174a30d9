"""What every elastic family must do, parametrised over all of them. Parity with the authors: models/test_golden.py."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoConfig, AutoModel

from poa_hf import (
    PoaConfig,
    PoaDinov2RegistersConfig,
    PoaDinov3ViTConfig,
    PoaForPreTraining,
    PoaResNetConfig,
    PoaSwinConfig,
    PoaTrainingArguments,
    PoaViTConfig,
    SubNetwork,
    UnitOrder,
)
from poa_hf.cli.main import main
from poa_hf.models.activation_checkpointing import enable_activation_checkpointing
from poa_hf.training.checks import check_run

from .conftest import ROOT, run_python, slow_but

VIT_SPACE = (143, 573, "384x12", "1024x24", {"small": "384x12", "base": "768x12", "large": "1024x24"})
PUBLISHED = {
    "vit": (PoaViTConfig, *VIT_SPACE),
    "dinov2_registers": (PoaDinov2RegistersConfig, *VIT_SPACE),
    "dinov3_vit": (PoaDinov3ViTConfig, *VIT_SPACE),
    "swin": (
        *(PoaSwinConfig, 39, 89, "96x2-2-6-2", "128x2-2-18-2"),
        {"tiny": "96x2-2-6-2", "small": "96x2-2-18-2", "base": "128x2-2-18-2"},
    ),
    "resnet": (
        *(PoaResNetConfig, 465, 699, "64x3-4-6-3", "128x3-8-36-3"),
        {"50": "64x3-4-6-3", "101": "64x3-4-23-3", "152": "64x3-8-36-3"},
    ),
}
VITS = [name for name in PUBLISHED if name not in ("swin", "resnet")]
# the published shapes at a hundredth of their cost: as many sizes of ViT and Swin, 18 of ResNet
SMALL_VIT = dict(hidden_size=64, num_attention_heads=16, image_size=32, patch_size=8)
SMALL = {
    "vit": SMALL_VIT,
    "dinov2_registers": SMALL_VIT | dict(num_register_tokens=3),
    "dinov3_vit": SMALL_VIT | dict(use_gated_mlp=True, hidden_act="silu"),
    "swin": dict(embed_dim=32, num_heads=[8, 16, 32, 64], image_size=64, patch_size=2, window_size=2, min_embed_dim=24),
    "resnet": dict(
        embedding_size=8, hidden_sizes=[32, 64, 128, 256], base_width=16, num_groups=4, depths=[1, 2, 3, 1],
        min_depths=[1, 1, 1, 1], image_size=64,
    ),
}  # fmt: skip
TINY = {
    **{name: SMALL[name] | dict(num_hidden_layers=3) for name in VITS},
    "swin": SMALL["swin"] | dict(depths=[1, 2, 3, 1]),
    "resnet": SMALL["resnet"],
}


@pytest.fixture(params=PUBLISHED)
def family(request) -> str:
    return request.param


def backbone(family: str, fields: dict, **more):
    return PUBLISHED[family][0](**fields, **({} if family == "resnet" else {"drop_path_rate": 0.0}), **more)


def tiny(family: str, **more) -> PoaForPreTraining:
    config = PoaConfig(
        backbone_config=backbone(family, TINY[family], **more),
        head_hidden_size=24, head_bottleneck_size=8, num_prototypes=[12, 20],
    )  # fmt: skip
    return PoaForPreTraining(config)


def batch_for(model: PoaForPreTraining, num_images: int = 3, num_local: int = 2) -> dict:
    config = model.config.backbone_config
    tokens = (config.image_size // config.patch_grid) ** 2
    masks = torch.rand(2 * num_images, tokens) < 0.4
    masks[::2] = False
    local = config.image_size // 2
    return {
        "global_crops": torch.randn(2 * num_images, 3, config.image_size, config.image_size),
        "local_crops": torch.randn(num_local * num_images, 3, local, local),
        "masks": masks,
    }


def middle(model) -> SubNetwork:
    sizes = list(model.config.backbone_config.space)
    return sizes[len(sizes) // 2]


def test_published_space(family):
    config, sizes, entries, smallest, full, named = PUBLISHED[family]
    space = config().space
    assert len(space) == len(set(space)) == sizes and len(space.bag) == entries
    assert str(space.smallest) == smallest and str(space.full) == full
    assert {name: str(size) for name, size in space.named.items()} == named
    assert all(SubNetwork.parse(str(size)) == size for size in space)


FEWER_SIZES = dict(hidden_size_step=20, num_hidden_layers_step=6)  # 3 widths, 3 depths


@torch.inference_mode()
def test_every_size_extracts_to_the_bit(family):
    fewer = FEWER_SIZES if family in VITS else {}  # all 143 of them: below
    config = backbone(family, SMALL[family], **fewer)
    assert len(config.space) == {"swin": 39, "resnet": 18}.get(family, 9)
    check_every_size(AutoModel.from_config(config))


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("family", VITS)
def test_every_one_of_143_vits_extracts_to_the_bit(family):
    config = backbone(family, SMALL[family])
    assert len(config.space) == 143
    check_every_size(AutoModel.from_config(config))


@pytest.mark.slow
@torch.inference_mode()
def test_every_one_of_465_resnets_extracts_to_the_bit():
    fields = SMALL["resnet"] | dict(depths=[3, 8, 36, 3], min_depths=[3, 4, 6, 3], image_size=32)
    config = backbone("resnet", fields)
    assert len(config.space) == 465
    check_every_size(AutoModel.from_config(config))


def check_every_size(model):
    # as initialised, LayerScale and biases would hide errors
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.eval()
    pixels = torch.randn(1, 3, model.config.image_size, model.config.image_size)
    for size in model.config.space:
        extracted = model.extract(size)
        assert type(extracted) is model.stock_class
        ours, theirs = model(pixels, sub_network=size), extracted(pixels)
        assert torch.equal(theirs.last_hidden_state, ours.last_hidden_state), size
        assert torch.equal(theirs.pooler_output, ours.pooler_output), size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_save_and_load(family, dtype, tmp_path):
    model = tiny(family).student.to(dtype).eval()
    model.save_pretrained(tmp_path / "backbone")
    # code that travels is the plain model's alone
    assert {path.name for path in (tmp_path / "backbone").iterdir()} == {"config.json", "model.safetensors"}
    pixels = torch.randn(2, 3, model.config.image_size, model.config.image_size).to(dtype)
    for loaded in (
        AutoModel.from_pretrained(tmp_path / "backbone"),
        type(model).from_pretrained(tmp_path / "backbone"),
    ):
        assert type(loaded) is type(model) and loaded.dtype == dtype and loaded.config.space == model.config.space
        for size in (None, model.config.space.smallest):
            assert torch.equal(loaded(pixels, sub_network=size)[0], model(pixels, sub_network=size)[0])
    assert AutoConfig.from_pretrained(tmp_path / "backbone").space == model.config.space
    for size in (model.config.space.smallest, model.config.space.full):
        extracted = model.extract(size)
        extracted.save_pretrained(tmp_path / str(size))
        stock = AutoModel.from_pretrained(tmp_path / str(size))
        assert type(stock) is model.stock_class and stock.dtype == dtype
        assert torch.equal(stock(pixels)[0], model(pixels, sub_network=size)[0])


@pytest.mark.parametrize("predict", [True, False])
@pytest.mark.parametrize("num_local", [0, 2])
def test_every_student_parameter_gets_a_gradient(family, predict, num_local):
    model = tiny(family).train()
    space = model.config.backbone_config.space
    for size in (space.smallest, space.full):
        model.zero_grad()
        batch = batch_for(model, num_local=num_local)
        model(**batch, sub_network=size, teacher_temperature=0.05, predict_masked_patches=predict).loss.backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def gradients(model, batch, size, autocast: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(**batch, sub_network=size, teacher_temperature=0.05).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_activation_checkpointing_gives_the_same_gradients(family, drop_path_rate):
    model = tiny(family).train()
    if family != "resnet":  # which has no stochastic depth
        for module in model.student.modules():
            if hasattr(module, "drop_path_rate"):
                module.drop_path_rate = drop_path_rate
        model.config.backbone_config.drop_path_rate = model.student.config.drop_path_rate = drop_path_rate
    batch, size = batch_for(model), middle(model)
    plain = gradients(model, batch, size)
    enable_activation_checkpointing(model.student)
    for name, gradient in gradients(model, batch, size).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-5, atol=1e-6, msg=name)


def test_activation_checkpointing_runs_each_block_twice(family):
    """The pass and one recomputation, also where blocks lie in stages that could be recomputed as well."""
    model = tiny(family).student.train()
    enable_activation_checkpointing(model)
    calls, space = [], model.config.space
    for name in model.slice_rules.block_names(model):
        block = model.get_submodule(name)
        inner = block.layer if family == "resnet" else block.mlp
        inner.register_forward_pre_hook(lambda *_: calls.append(1))
    pixels = torch.randn(1, 3, model.config.image_size, model.config.image_size)
    model(pixels).pooler_output.square().sum().backward()
    assert len(calls) == 2 * sum(space.full.depths)


def test_bfloat16_gradients_are_close(family):
    # where blocks are almost the identity, images of noise differ by little more than bfloat16's rounding
    model = tiny(family, **({"layerscale_value": 1.0} if family in VITS else {})).train()
    batch, size = batch_for(model, num_images=4), middle(model)
    exact, rounded = gradients(model, batch, size), gradients(model, batch, size, autocast=True)
    exact, rounded = (torch.cat([g.flatten() for g in grads.values()]) for grads in (exact, rounded))
    assert rounded.isfinite().all() and rounded.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.95


def plain_attributes(model) -> dict:
    kinds = int | float | str | tuple | list
    return {
        (name, key): value
        for name, module in model.named_modules()
        for key, value in copy.copy(vars(module)).items()
        if isinstance(value, kinds)
    }


@torch.no_grad()
def test_crops_of_both_sizes_leave_no_trace(family):
    """At the published crops and window."""
    vit = dict(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, layerscale_value=1.0)
    fields = {
        **dict.fromkeys(VITS, vit),
        "swin": dict(embed_dim=32, depths=[1, 2, 4, 2], min_embed_dim=16),
        "resnet": SMALL["resnet"] | dict(image_size=224),
    }[family]
    model = AutoModel.from_config(backbone(family, fields)).eval()
    crops = {size: torch.randn(1, 3, size, size) for size in (96, 224)}
    before, tensors = plain_attributes(model), {n: t.clone() for n, t in model.state_dict().items()}
    sizes = (None, model.config.space.smallest)

    def outputs(order):
        return {(s, crop): model(crops[crop], sub_network=s)[0] for s in sizes for crop in order}

    first, second = outputs((96, 224)), outputs((224, 96))
    assert all(torch.equal(second[key], output) for key, output in first.items())
    assert plain_attributes(model) == before
    assert list(model.state_dict()) == list(tensors)
    assert all(torch.equal(tensors[n], t) for n, t in model.state_dict().items())
    for size in (model.config.space.full, model.config.space.smallest):
        stock = model.extract(size)(crops[224])[0]
        assert torch.equal(stock, first[None if size == model.config.space.full else size, 224])


@torch.no_grad()
def test_masks_hide_whole_squares(family):
    """What is hidden no longer matters, and what is not does."""
    model = tiny(family).student.eval()
    model.embeddings.mask_token.data.normal_() if family != "resnet" else model.mask_token.data.normal_()
    side, square = model.config.image_size, model.config.patch_grid
    pixels = torch.randn(1, 3, side, side)
    masks = torch.zeros(1, (side // square) ** 2, dtype=torch.bool)
    masks[0, :2] = True
    inside = pixels.clone()
    reach = 6 if family == "resnet" else 0  # the stem's convolution and pooling look beyond a square
    inside[..., : square - reach, : 2 * square - reach] += 1
    for size in (None, model.config.space.smallest):
        hidden = model(pixels, bool_masked_pos=masks, sub_network=size)[0]
        assert not torch.equal(hidden, model(pixels, sub_network=size)[0])
        if family != "resnet":  # whose GroupNorm carries every pixel's change everywhere
            assert torch.equal(model(inside, bool_masked_pos=masks, sub_network=size)[0], hidden)
    assert torch.equal(model(pixels, bool_masked_pos=masks.long())[0], model(pixels, bool_masked_pos=masks)[0])
    if family not in VITS:
        with pytest.raises(ValueError, match="multiples of the masked squares"):
            model(torch.randn(1, 3, side + square // 2, side), bool_masked_pos=masks)
        with pytest.raises(ValueError, match=r"bool_masked_pos \(1, 3\) does not fit: .* 4 x 4 squares|8 x 8 squares"):
            model(pixels, bool_masked_pos=masks[:, :3])


@torch.no_grad()
def test_threads_do_not_disturb_each_other(family):
    model = tiny(family).student.eval()
    pixels = torch.randn(1, 3, model.config.image_size, model.config.image_size)
    sizes = [model.config.space.smallest, middle(tiny(family))]
    expected = [model(pixels, sub_network=size)[0] for size in sizes]

    def call(index: int) -> bool:
        with torch.no_grad():
            return torch.equal(model(pixels, sub_network=sizes[index % 2])[0], expected[index % 2])

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(call, range(30)))


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        *((name, 8 * 5 + 4, "global_crop_size 44 is not a multiple of 8 .*: use 40 or 48") for name in VITS),
        ("swin", 8, "global_crop_size 8 is not a multiple of 16 .*: use 16"),
        ("swin", 16, "global_crop_size 16 is too small .*: use at least 32 .*window_size"),
        ("resnet", 48, "global_crop_size 48 is not a multiple of 32 .*: use 32 or 64"),
    ],
)
def test_crops_that_do_not_fit_are_refused(family, size, message, tmp_path):
    args = PoaTrainingArguments(output_dir=str(tmp_path), global_crop_size=size, local_crop_size=16)
    with pytest.raises(ValueError, match=message):
        check_run(tiny(family).config, args)


OPTIONS = (
    "--dataset_name textures --max_steps 3 --per_device_train_batch_size 4 --warmup_steps 1 --num_local_crops 2 "
    "--dataloader_num_workers 0 --masked_prediction_start_step 1 --freeze_last_layer_steps 0 --save_steps 3 "
    "--logging_steps 1 --disable_tqdm --model.num_prototypes [12,20] --model.head_hidden_size 24 "
    "--model.head_bottleneck_size 8"
)


def run_options(family: str) -> list[str]:
    config = backbone(family, TINY[family])
    options = {**TINY[family], "model_type": config.model_type}
    backbone_options = [f"--model.backbone_config.{key}={json.dumps(value)}" for key, value in options.items()]
    crops = ["--global_crop_size", str(config.image_size), "--local_crop_size", str(config.image_size // 2)]
    return [*OPTIONS.split(), *crops, *backbone_options]


@pytest.mark.slow
@pytest.mark.parametrize("family", [*PUBLISHED][1:])  # ViT: training/test_processes.py
def test_two_processes_train_with_no_unused_parameter(family, tmp_path):
    script = str(ROOT / "examples" / "pretrain.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    run_python(*launch, *run_options(family), "--output_dir", str(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]


@pytest.mark.parametrize("family", slow_but([*PUBLISHED][1:], "swin", "dinov3_vit"))
def test_pretrain_resume_and_extract(family, tmp_path, capsys):
    options = [*run_options(family), "--output_dir", str(tmp_path / "run")]
    assert main(["pretrain", *options, "--save_steps", "2", "--gradient_checkpointing"]) == 0
    straight = PoaForPreTraining.from_pretrained(tmp_path / "run").state_dict()
    (tmp_path / "run" / "model.safetensors").unlink()
    resume = ["--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2")]
    assert main(["pretrain", *options, "--save_steps", "2", "--gradient_checkpointing", *resume]) == 0
    resumed = PoaForPreTraining.from_pretrained(tmp_path / "run")
    assert all(torch.equal(straight[name], tensor) for name, tensor in resumed.state_dict().items())
    name, *_ = resumed.config.backbone_config.space.named
    output = tmp_path / name
    assert main(["extract", str(tmp_path / "run"), "--size", name, "--output", str(output)]) == 0
    size = resumed.config.backbone_config.space.named[name]
    pixels = batch_for(resumed)["global_crops"]
    with torch.no_grad():
        expected = resumed.eval().teacher(pixels, sub_network=size).pooler_output
        assert torch.equal(AutoModel.from_pretrained(output)(pixels).pooler_output, expected)


def test_units_cover_what_slicing_cuts(family):
    model = tiny(family).teacher
    parameters = dict(model.named_parameters())
    claimed = [
        (name, axis.axis % parameters[name].dim())
        for group in model.unit_groups()
        for name, axis in group.parameters(parameters)
    ]
    narrowest = model.extract(model.config.space.smallest)
    cut = {
        (name, axis)
        for name, tensor in narrowest.named_parameters()
        for axis, (full, small) in enumerate(zip(parameters[name].shape, tensor.shape, strict=True))
        if full != small
    }
    kept = dict(narrowest.named_parameters())
    assert len(claimed) == len(set(claimed))
    assert {(name, axis) for name, axis in claimed if name in kept} == cut


@torch.no_grad()
def with_random_weights(model: PoaForPreTraining) -> PoaForPreTraining:
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_ordered_units_compute_the_same_and_learn_alike(family):
    model = with_random_weights(tiny(family)).double()
    model.config.intact_weight = 1  # smaller students are other slices
    ordered = copy.deepcopy(model)
    groups = model.student.unit_groups()
    order = UnitOrder({group.name: tuple(group.order_by(torch.rand(group.count))) for group in groups})
    order.apply(ordered)
    batch = {name: value if name == "masks" else value.double() for name, value in batch_for(model).items()}
    size = model.config.backbone_config.space.full
    outputs = []
    for each in (model, ordered):
        torch.manual_seed(0)  # rotary positions are shifted at random
        outputs.append(each(**batch, sub_network=size, teacher_temperature=0.07))
    torch.testing.assert_close(outputs[1].losses, outputs[0].losses)
    for output in outputs:
        output.loss.backward()
    expected = copy.deepcopy(model)  # holds gradients in place of weights
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            gradient = model.get_parameter(name).grad
            parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
    order.apply(expected)
    for name, parameter in ordered.student.named_parameters():
        torch.testing.assert_close(parameter.grad, expected.student.get_parameter(name).data, msg=name)
    for name, parameter in ordered.student_head.named_parameters():
        torch.testing.assert_close(parameter.grad, expected.student_head.get_parameter(name).data, msg=name)


@torch.no_grad()
def test_features_of_ordered_units_are_the_same_features_in_another_order(family):
    model = with_random_weights(tiny(family)).eval()
    ordered = copy.deepcopy(model)
    groups = model.student.unit_groups()
    order = UnitOrder({group.name: tuple(group.order_by(torch.rand(group.count))) for group in groups})
    order.apply(ordered)
    places = [list(order.orders[group.name]) for group in groups if group.are_features]
    pixels = batch_for(model)["global_crops"]
    for branch in ("student", "teacher"):
        before, after = (getattr(each, branch) for each in (model, ordered))
        for ours, theirs in zip(before.image_tokens(before(pixels)), after.image_tokens(after(pixels)), strict=True):
            ours = ours[..., places[0]] if places else ours
            torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    for head, permuted in zip(model.teacher_head, ordered.teacher_head, strict=True):
        torch.testing.assert_close(
            permuted(ordered.teacher.image_tokens(ordered.teacher(pixels))[0]),
            head(model.teacher.image_tokens(model.teacher(pixels))[0]),
        )
