"""`poa order` and `--order_units`: an elastic family without training, and a run that begins in order."""

import json

import pytest
import torch
import yaml
from transformers import AutoModel, Dinov2Config, Dinov2Model

from poa_hf import PoaForPreTraining, UnitOrder, init_from, load_run, order_units
from poa_hf.cli.main import main
from poa_hf.cli.recipe import parse_recipe
from poa_hf.data.textures import TextureDataset

TINY = (
    "--model.num_prototypes [12] --model.head_hidden_size 24 --model.head_bottleneck_size 8 --disable_tqdm --quiet "
    "--per_device_train_batch_size 4 --dataloader_num_workers 0 --num_local_crops 1 --warmup_steps 1 "
    "--save_steps 1 --logging_steps 1 --order_images 12"
).split()


@pytest.fixture
def source(tmp_path) -> str:
    torch.manual_seed(1)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=28, layerscale_value=0.5
    )
    Dinov2Model(config).save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


def failed(capsys, *argv: str) -> str:
    assert main([*argv]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_family_of_a_stock_model(source, tmp_path, capsys):
    family = str(tmp_path / "family")
    order = ["order", source, "--dataset_name", "textures", "--output", family, "--num_images", "20"]
    order += ["--model.num_prototypes", "8", "--model.backbone_config.min_hidden_size", "8"]
    assert main(order) == 0
    output = capsys.readouterr().out
    assert "start from source (dinov2)" in output and "the features of 20 images" in output
    assert "8 sizes, 8x1 to 32x2" in output and "next: poa evaluate" in output
    model = load_run(family)
    assert model.config.units_ordered_on == 20 and model.config.warm_started_from == "source"
    channels = list(UnitOrder.load(tmp_path / "family" / "unit_order.json").orders["channels"])
    assert main(["extract", family, "--size", "32x2", "8x1", "--output", str(tmp_path / "sizes")]) == 0
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        stock = Dinov2Model.from_pretrained(source).eval()(pixels).pooler_output
        full = AutoModel.from_pretrained(tmp_path / "sizes" / "32x2").eval()(pixels).pooler_output
        small = AutoModel.from_pretrained(tmp_path / "sizes" / "8x1").eval()(pixels).pooler_output
    torch.testing.assert_close(full, stock[:, channels], atol=1e-5, rtol=0)
    assert torch.equal(small, model.teacher(pixels, sub_network="8x1").pooler_output)
    card = (tmp_path / "sizes" / "8x1" / "README.md").read_text()
    assert "was initialised from source, its units put in order of importance, and not trained further" in card
    assert "by the features of 20 images" in card and "prototypes" not in card
    assert "exists" in failed(capsys, *order) and main([*order, "--overwrite"]) == 0


def test_mistakes_write_nothing(source, tmp_path, capsys):
    family = tmp_path / "family"
    order = ("order", source, "--output", str(family), "--dataset_name")
    for argv, message in (
        ((*order, "textures", "--num_images", "0"), "--num_images"),
        ((*order, "textures", "--dataset_split", "validation"), "no split 'validation'"),
        ((*order, str(tmp_path / "nothing")), "does not exist"),
        ((*order, "textures", "--model.backbone_config.hidden_size", "64"), "hidden_size"),
        (("order", str(tmp_path), "--output", str(family), "--dataset_name", "textures"), "holds neither"),
    ):
        assert message in failed(capsys, *argv)
        assert not family.exists()


def test_a_run_begins_in_order_and_resumes_in_it(source, tmp_path):
    run = str(tmp_path / "run")
    start = ["pretrain", "--init_from", source, "--output_dir", run, *TINY]
    assert main([*start, "--max_steps", "1", "--freeze_backbone_steps", "1"]) == 0
    first, recipe = load_run(run), parse_recipe(["--config", f"{run}/config.yaml"])
    assert recipe.order_units and recipe.order_images == 12
    # the one step trained the heads only: the backbone is the source in the order that was found
    expected = PoaForPreTraining(recipe.model)
    init_from(expected, source)
    order = order_units(expected, TextureDataset(), 12, crops=recipe.training)
    assert order == UnitOrder.load(f"{run}/unit_order.json")
    for (name, ours), theirs in zip(
        first.teacher.state_dict().items(), expected.teacher.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert main(["resume", run, "--max_steps", "2", "--quiet"]) == 0
    assert load_run(run).config.units_ordered_on == 12
    assert UnitOrder.load(f"{run}/unit_order.json") == order
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["order_units"] is True
    # another run that starts from this one keeps its order, unless it is told otherwise
    again = parse_recipe(["--init_from", run])
    assert not again.order_units and again.model.units_ordered_on == 12
    assert parse_recipe(["--init_from", run, "--order_units"]).order_units
    assert not parse_recipe(["--init_from", source, "--order_units", "false"]).order_units
    assert not parse_recipe([]).order_units


def test_an_interrupted_start_finds_the_same_order(source, tmp_path):
    """A resumed run does not order again: its weights are those of a run that was not stopped."""
    steps = [*TINY, "--max_steps", "3"]
    assert main(["pretrain", "--init_from", source, "--output_dir", str(tmp_path / "whole"), *steps]) == 0
    start = ["pretrain", "--init_from", source, "--output_dir", str(tmp_path / "parts"), *steps]
    assert main(start) == 0
    resumed = ["--resume_from_checkpoint", str(tmp_path / "parts" / "checkpoint-2")]
    assert main([*start, *resumed]) == 0
    whole, parts = (load_run(tmp_path / name) for name in ("whole", "parts"))
    for (name, ours), theirs in zip(parts.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["units_ordered_on"] == 12


def weights_of(run):
    return load_run(run).state_dict()


def test_an_order_that_is_still_ahead_is_kept_in_mind(source, tmp_path):
    """Run again with --resume_from_checkpoint, as launchers do, before sub-networks are trained."""
    late = [*TINY, "--max_steps", "4", "--elastic_start_step", "3", "--save_steps", "1", "--save_total_limit", "9"]
    assert main(["pretrain", "--init_from", source, "--output_dir", str(tmp_path / "whole"), *late]) == 0
    start = ["pretrain", "--init_from", source, "--output_dir", str(tmp_path / "parts"), *late]
    assert main(start) == 0
    assert main([*start, "--resume_from_checkpoint", str(tmp_path / "parts" / "checkpoint-2")]) == 0
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    assert load_run(tmp_path / "parts").config.units_ordered_on == 12
    assert yaml.safe_load((tmp_path / "parts" / "config.yaml").read_text())["order_units"] is True
    # what is in order stays as it is, whatever the options of a later command say
    order = (tmp_path / "parts" / "unit_order.json").read_text()
    resume = ["resume", str(tmp_path / "parts" / "checkpoint-4"), "--max_steps", "6", "--elastic_start_step", "5"]
    assert main(resume) == 0
    assert (tmp_path / "parts" / "unit_order.json").read_text() == order


def test_sub_networks_that_have_learnt_are_not_put_in_another_order(source, tmp_path, caplog):
    run = str(tmp_path / "run")
    start = ["pretrain", "--init_from", source, "--output_dir", run, "--no_order_units", *TINY, "--max_steps", "2"]
    assert main(start) == 0
    assert main(["resume", run, "--max_steps", "3", "--order_units"]) == 0
    assert "The units stay as they are: sub-networks have been trained until step 2" in caplog.text
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["order_units"] is False
    assert load_run(run).config.units_ordered_on is None


def test_a_source_in_order_is_put_in_order_again_when_asked(source, tmp_path):
    first = ["pretrain", "--init_from", source, "--output_dir", str(tmp_path / "first"), *TINY, "--max_steps", "1"]
    assert main(first) == 0
    again = ["pretrain", "--init_from", str(tmp_path / "first"), "--output_dir", str(tmp_path / "again"), *TINY]
    assert main([*again, "--order_units", "--elastic_start_step", "1", "--max_steps", "2"]) == 0
    assert (tmp_path / "again" / "unit_order.json").exists()
