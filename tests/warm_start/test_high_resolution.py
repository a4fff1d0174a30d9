"""A stage at a higher resolution that starts from a run, of every family."""

import pytest
import torch
from transformers import AutoModel

from poa_hf import (
    PoaDinov2RegistersConfig,
    PoaDinov3ViTConfig,
    PoaForPreTraining,
    PoaResNetConfig,
    PoaSwinConfig,
    PoaViTConfig,
)

from ..conftest import tiny_config

VIT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=16, min_num_hidden_layers=1)
# Configuration of the run before; the global and local crops of the stage, and crops that do not fit.
FAMILIES = {
    "vit": (PoaViTConfig(**VIT, image_size=32, patch_size=8), 64, 24, 60),
    "registers": (PoaDinov2RegistersConfig(**VIT, image_size=28, patch_size=14, num_register_tokens=2), 56, 28, 64),
    "dinov3": (
        PoaDinov3ViTConfig(**VIT, image_size=32, patch_size=8, num_register_tokens=2, intermediate_size=64), 64, 24, 60,
    ),
    "swin": (
        PoaSwinConfig(image_size=64, embed_dim=32, depths=[1, 1, 2, 1], num_heads=[2, 4, 8, 16], window_size=2,
                      min_embed_dim=16, min_depths=[1, 1, 1, 1]), 160, 48, 144,  # 5 positions, windows of 2
    ),
    "resnet": (
        PoaResNetConfig(embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 2, 1],
                        min_depths=[1, 1, 1, 1], base_width=8, min_base_width=4, num_groups=4), 128, 32, 112,
    ),
}  # fmt: skip
SLOW = pytest.mark.slow
SMALL = (
    "--dataset_name textures --per_device_train_batch_size 2 --dataloader_num_workers 0 --num_local_crops 1 "
    "--max_steps 2 --warmup_steps 1 --freeze_backbone_steps 0 --freeze_last_layer_steps 0 --disable_tqdm --quiet "
    "--masked_prediction_start_step 0 --model.num_prototypes [12,20] --model.head_hidden_size 24 "
    "--model.head_bottleneck_size 8 --model.gram_weight 1.5 --logging_steps 1"
).split()


@pytest.fixture(params=["vit", *(pytest.param(name, marks=SLOW) for name in FAMILIES if name != "vit")])
def run(request, tmp_path):
    """The name of a family, and the folder of a run of it."""
    torch.manual_seed(0)
    model = PoaForPreTraining(tiny_config(FAMILIES[request.param][0]))
    for parameter in model.teacher.parameters():  # of a run that has moved from its start
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "run")
    return request.param, tmp_path / "run"


def test_the_stage_starts_where_the_run_ended_and_its_models_take_the_larger_images(tmp_path, run, poa):
    name, folder = run
    config, size, local, _ = FAMILIES[name]
    stage = tmp_path / "stage"
    crops = ["--global_crop_size", str(size), "--local_crop_size", str(local)]
    resize = ["--model.backbone_config.image_size", str(size)] if hasattr(config, "image_size") else []
    poa("pretrain", "--init_from", str(folder), *SMALL, *crops, *resize, "--output_dir", str(stage))
    before, after = PoaForPreTraining.from_pretrained(folder).eval(), PoaForPreTraining.from_pretrained(stage).eval()
    # the Gram teacher is what the stage began with: the run's teacher, at the larger size
    first = AutoModel.from_pretrained(stage / "gram_teacher").eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = before.teacher(images).last_hidden_state
        torch.testing.assert_close(first(images).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
        assert any(not torch.equal(t, first.state_dict()[n]) for n, t in after.teacher.state_dict().items())
        for small in (config.space.smallest, config.space.full):
            extracted = after.teacher.extract(small)
            assert getattr(extracted.config, "image_size", size) == size
            ours, theirs = after.teacher(images, sub_network=small), extracted(images)
            torch.testing.assert_close(theirs.last_hidden_state, ours.last_hidden_state, rtol=1e-5, atol=1e-5)
    # the heads are those of the run, which two steps have hardly moved, and not new ones
    heads, taken = before.teacher_head.state_dict(), after.student_head.state_dict()
    assert all((taken[name] - tensor).abs().max() < 0.02 for name, tensor in heads.items())


def test_crops_that_do_not_fit_are_refused_in_a_sentence(run, tmp_path, poa):
    name, folder = run
    config, size, local, wrong = FAMILIES[name]
    message = poa(
        "pretrain", "--init_from", str(folder), *SMALL, "--global_crop_size", str(wrong), "--local_crop_size",
        str(local), "--output_dir", str(tmp_path / "stage"), status=2,
    )  # fmt: skip
    multiple = config.crop_multiple
    below = wrong // multiple * multiple
    assert f"global_crop_size {wrong} is not a multiple of {multiple}" in message
    assert f"use {below} or {below + multiple}" in message and not (tmp_path / "stage").exists()
