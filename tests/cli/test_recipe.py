import pytest
from transformers import Dinov2Config

from poa_hf.cli.recipe import parse_recipe

from ..conftest import ROOT

FILE = """
output_dir: runs/from_file
max_steps: 7
mask_ratio: [0.2, 0.3]
bf16: true
save_total_limit: null
streaming: false
model:
  num_prototypes: [8, 16]
  backbone_config:
    hidden_size: 64
    num_attention_heads: 4
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(FILE)
    return str(path)


def test_the_command_line_wins_over_the_file(file):
    recipe = parse_recipe(
        ["--config", file, "--max_steps", "9", "--model.backbone_config.num_hidden_layers", "6", "--bf16", "false"]
    )
    assert recipe.training.max_steps == 9 and recipe.training.output_dir == "runs/from_file"
    assert recipe.training.mask_ratio == [0.2, 0.3] and recipe.training.bf16 is False
    assert recipe.training.save_total_limit is None
    assert recipe.data.streaming is False and recipe.data.dataset_name == "textures"
    assert recipe.model.num_prototypes == [8, 16]
    backbone = recipe.model.backbone_config
    assert (backbone.hidden_size, backbone.num_hidden_layers, backbone.head_size) == (64, 6, 16)


def test_what_is_saved_reads_back_the_same(file, tmp_path):
    recipe = parse_recipe(["--config", file, "--model.koleo_weight", "5e-2"])
    assert recipe.model.koleo_weight == 0.05
    saved = tmp_path / "saved.yaml"
    saved.write_text(recipe.to_yaml())
    again = parse_recipe(["--config", str(saved)])
    assert (again.data, again.training) == (recipe.data, recipe.training)
    assert again.model.to_dict() == recipe.model.to_dict()


def test_without_a_file_the_recipe_is_the_published_one():
    recipe = parse_recipe([])
    assert recipe.training.max_steps == 276_800 and len(recipe.model.backbone_config.space) == 143


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max_step", "3"], "--max_step is not a known key: did you mean --max_steps?"),
        (["--model.num_prototype", "[3]"], r"model.num_prototype is not .* model.num_prototypes\?"),
        (["--model.backbone_config.hiden_size", "3"], r"did you mean model.backbone_config.hidden_size\?"),
        (["--model.backbone_config.hidden_size", "wide"], "hidden_size.*wide"),
        (["--model.koleo_weight", "much"], "koleo_weight.*much"),
        (["--model.backbone_config.model_type", "vit"], "'vit' is not an elastic model"),
        (["--model.backbone_config", "5"], "give --model.backbone_config.FIELD"),
        (["--model.head_hidden_size.foo", "3"], "head_hidden_size.*foo"),
        (["--adam_beta1", "2"], "adam_beta1 is 2.0"),
        (["--weight_decay", "nan"], "weight_decay is nan"),
        (["--output_dir", ""], "output_dir is empty"),
        (["--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["--max_steps", "many"], "Argument --max_steps.*: invalid int value: 'many'"),
        (["--max_steps", "0"], "max_steps is 0: it must be at least 1"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size is 0"),
    ],
)
def test_mistakes_are_one_sentence(argv, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_recipe(argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_step: 3", r"max_step is not .* max_steps\?"),
        ("- a\n- b", "must hold"),
        ("a: b: c", "line 1 is not valid YAML: mapping values"),
        ("model: 5", "must hold `key: value` lines"),
        ("model: {backbone_config: [1]}", "must hold `key: value` lines"),
        ("1: 2", "1 is not a known key"),
        ("max_steps: null", "max_steps is null"),
    ],
)
def test_mistakes_in_the_file_are_one_sentence(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_recipe(["--config", str(path)])


def test_what_acts_once_is_not_saved(file):
    text = parse_recipe(["--config", file, "--overwrite_output_dir", "--resume_from_checkpoint"]).to_yaml()
    assert "overwrite_output_dir" not in text and "resume_from_checkpoint" not in text


def test_trackers_as_a_list(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("report_to: [tensorboard, wandb]")
    assert parse_recipe(["--config", str(path)]).training.trackers == ["tensorboard", "wandb"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_file_is_a_recipe(path, tmp_path):
    argv = ["--config", str(path)]
    if path.stem == "dinov2_large_warm_start":  # a model of the Hub, of which a recipe reads no more than this
        Dinov2Config(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, image_size=518).save_pretrained(
            tmp_path / "dinov2-large"
        )
        argv += ["--init_from", str(tmp_path / "dinov2-large")]
    recipe = parse_recipe(argv)
    sizes = {"vit_large": 143, "swin_base": 39, "resnet152": 465}
    family = next((name for name in sizes if path.stem.startswith(name)), None)
    if family:
        args = recipe.training
        assert len(recipe.model.backbone_config.space) == sizes[family]
        # as published: 32 processes, and one that accumulates, see the same images
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        published = {"vit_large": 1600, "swin_base": 2048, "resnet152": 1280}[family]
        assert per_step == {"": published // 32, "_single_gpu": published}.get(path.stem.removeprefix(family), 64)
        assert args.output_dir == f"runs/{path.stem}"
    if recipe.init_from:
        assert len(recipe.model.backbone_config.space) == 143 and recipe.training.freeze_backbone_steps == 800
        assert recipe.training.local_crop_size == 98
    assert recipe.training.global_crop_size % recipe.model.backbone_config.crop_multiple == 0
