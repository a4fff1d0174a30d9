import pytest
from transformers import Dinov2Config

from poa_hf import PoaTrainingArguments
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
        (["--max_step", "3"], r"--max_step is not an option of poa pretrain: did you mean --max_steps\?"),
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
        (["--max_steps", "many"], "--max_steps is 'many': give a whole number"),
        (["--max_steps", "1.5"], "--max_steps is '1.5': give a whole number"),
        (["--bf16", "perhaps"], "--bf16 is 'perhaps': give true or false"),
        (["--no_bf16", "true"], "'true' belongs to no option"),
        (["--no_bf16=true"], "--no_bf16 takes no value"),
        (["--max_steps"], "--max_steps needs a value"),
        (["--global_crop_scale", "0.5", "big"], "--global_crop_scale is '0.5,big': give numbers"),
        (["--global_crop_scale", "0.5"], "global_crop_scale has 1 numbers: give 2"),
        (["--epochs", "3"], "--epochs is not an option of poa pretrain: .*--num_train_epochs"),
        (["--model", "3"], "give the model's fields as --model.FIELD"),
        (["--model.koleo_weight", "!!python/object:os.system"], "--model.koleo_weight is '!!python/object:os.system'"),
        (["--model.koleo_weight", "[" * 5000], "--model.koleo_weight is"),
        (["--model.num_prototypes"], "--model.num_prototypes needs a value"),
        (["--model.num_prototypes", "few"], "num_prototypes is 'few': give whole numbers, such as 32 64"),
        (
            ["--model.backbone_config.num_register_tokens", "4"],
            "key: choose from apply_layernorm, .*qkv_bias",
        ),
        (["--max_steps", "0"], "max_steps is 0: give a whole number of at least 1"),
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
        ("epochs: 2", "epochs is not a known key: .*num_train_epochs"),
        ("batch_size: 2", "batch_size is not a known key: give per_device_train_batch_size"),
        ("max_steps: [3]", r"max_steps is \[3\]: give a whole number"),
        ("max_steps: true", "max_steps is 'true': give a whole number"),
        ("mask_ratio: {low: 0.1}", "mask_ratio is .*: give numbers"),
        ("bf16: 2", "bf16 is '2': give true or false"),
        ("a: " + "[" * 5000, "not valid YAML|nested too deeply"),
        ("max_steps: null", "max_steps is null"),
    ],
)
def test_mistakes_in_the_file_are_one_sentence(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_recipe(["--config", str(path)])


@pytest.mark.parametrize(("epochs", "steps"), [("num_train_epochs", "max_steps"), ("warmup_ratio", "warmup_steps")])
def test_how_long_is_said_in_one_way(tmp_path, epochs, steps):
    """A run writes both into its recipe; what is given on the command line counts, whichever it is."""
    path = tmp_path / "recipe.yaml"
    path.write_text(f"{epochs}: 0.5\n{steps}: 40\n")
    published = getattr(PoaTrainingArguments(), steps)

    def read(*options):
        training = parse_recipe(["--config", str(path), *options]).training
        return getattr(training, epochs), getattr(training, steps)

    assert (
        read() == (0.5, 40) and read(f"--{steps}", "5") == (None, 5) and read(f"--{epochs}", "0.2") == (0.2, published)
    )
    assert read(f"--{epochs}", "none") == (None, 40) and read("--seed", "1") == (0.5, 40)
    with pytest.raises(ValueError, match=f"^--{epochs} is given beside --{steps}: leave one of them out.$"):
        read(f"--{epochs}", "0.2", f"--{steps}", "5")


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("model.koleo_weight", "model"),
        ("model.backbone_config.hidden_size", "model and there under backbone_config"),
        ("koleo_weight", "model"),
        ("model.unknown-one", "model"),
    ],
)
def test_a_field_of_the_model_at_the_top_of_a_file_is_named_with_its_line(tmp_path, key, place):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"max_steps: 2\nseed: 3\n{key}: 0.2\nmodel: {{num_prototypes: [8]}}\n")
    with pytest.raises(ValueError) as refusal:
        parse_recipe(["--config", str(path)])
    assert str(refusal.value) == f"{path}, line 3: {key} is not a known key: it belongs under {place}."


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
    highres = path.stem.endswith("_highres")
    if highres:  # a run, of which a recipe reads no more than its configuration
        before = parse_recipe(["--config", path.stem.removesuffix("_highres")])
        before.model.save_pretrained(tmp_path / "run")
        argv += ["--init_from", str(tmp_path / "run")]
    recipe = parse_recipe(argv)
    sizes = {"vit_large": 143, "dinov2_registers_large": 143, "swin_base": 39, "resnet152": 465}
    sizes |= {"dinov3_large": 143, "dinov3_base": 49, "dinov3_small": 28, "dinov3_huge_plus": 48}
    family = next((name for name in sizes if path.stem.startswith(name)), None)
    if family:
        args = recipe.training
        assert len(recipe.model.backbone_config.space) == sizes[family]
        # as published: 32 processes, and one that accumulates, see the same images
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        published = {"swin_base": 2048, "resnet152": 1280}.get(family, 1600)
        processes = {"dinov3_small": 8, "dinov3_base": 16, "dinov3_huge_plus": 64}.get(family, 32)
        expected = {"_single_gpu": published, "_small_batch": 64, "_highres": 16}
        assert per_step == expected.get(path.stem.removeprefix(family), published // processes)
        assert args.output_dir == f"runs/{path.stem}"
    if highres:
        assert recipe.model.num_prototypes == before.model.num_prototypes and recipe.model.gram_weight == 1.5
        backbone, crops = recipe.model.backbone_config, recipe.training
        assert crops.global_crop_size == 448 and crops.local_crop_size % backbone.patch_grid == 0
        assert (crops.gram_teacher_size or 448) % backbone.crop_multiple == 0 and not recipe.order_units
        assert backbone.drop_path_rate == before.model.backbone_config.drop_path_rate
    elif recipe.init_from:
        assert len(recipe.model.backbone_config.space) == 143 and recipe.training.freeze_backbone_steps == 800
        assert recipe.training.local_crop_size == 98
    assert recipe.training.global_crop_size % recipe.model.backbone_config.crop_multiple == 0


@pytest.mark.parametrize("text", ["32 64 128", "32,64,128", "32, 64, 128", "[32,64,128]", "[32, 64, 128]"])
@pytest.mark.parametrize("quoted", [False, True])
def test_lists_of_the_model(text, quoted):
    values = [text] if quoted else text.split()
    assert parse_recipe(["--model.num_prototypes", *values, "--bf16"]).model.num_prototypes == [32, 64, 128]


@pytest.mark.parametrize("text", ["0.5 1.0", "0.5,1", "[0.5, 1.0]", "5e-1 1"])
def test_lists_of_options(tmp_path, text):
    for values in ([text], text.split()):
        assert parse_recipe(["--global_crop_scale", *values]).training.global_crop_scale == [0.5, 1.0]
    assert parse_recipe([f"--global_crop_scale={text}"]).training.global_crop_scale == [0.5, 1.0]
    path = tmp_path / "recipe.yaml"
    path.write_text(f"global_crop_scale: '{text}'")
    assert parse_recipe(["--config", str(path)]).training.global_crop_scale == [0.5, 1.0]


def test_lists_of_words_and_single_values(tmp_path):
    for values in (["small,base"], ["small", "base"]):
        assert parse_recipe(["--eval_sizes", *values]).evaluation.eval_sizes == ["small", "base"]
        assert parse_recipe(["--report_to", *values]).training.trackers == ["small", "base"]
    path = tmp_path / "recipe.yaml"
    path.write_text("eval_sizes: small,base\nreport_to: wandb\nmodel: {num_prototypes: 32}")
    recipe = parse_recipe(["--config", str(path)])
    assert (recipe.evaluation.eval_sizes, recipe.training.trackers) == (["small", "base"], ["wandb"])
    assert recipe.model.num_prototypes == [32]
    path.write_text(recipe.to_yaml())
    again = parse_recipe(["--config", str(path)])
    assert (again.evaluation, again.training, again.model.to_dict()) == (
        recipe.evaluation,
        recipe.training,
        recipe.model.to_dict(),
    )
    swin = ["--model.backbone_config.model_type", "poa_swin", "--model.backbone_config.depths", "2", "2", "4", "2"]
    swin += ["--model.backbone_config.min_depths", "2,2,2,2"]
    assert parse_recipe(swin).model.backbone_config.depths == [2, 2, 4, 2]


def test_ways_to_write_an_option():
    training = parse_recipe(
        ["--max-steps", "1e4", "--no_bf16", "--no-streaming", "--save_total_limit", "none"]
    ).training
    assert (training.max_steps, training.bf16, training.save_total_limit) == (10_000, False, None)
    assert parse_recipe(["--streaming", "--bf16", "yes"]).training.bf16 is True
    assert parse_recipe(["--resume_from_checkpoint", "--bf16"]).training.resume_from_checkpoint == "true"
    assert parse_recipe(["--weight_decay=-0"]).training.weight_decay == 0
    with pytest.raises(ValueError, match="min_learning_rate is -1e-05: give a number of at least 0"):
        parse_recipe(["--min_learning_rate", "-1e-5"])


def test_help_has_headings_and_defaults(capsys):
    with pytest.raises(SystemExit):
        parse_recipe(["--help"])
    printed = capsys.readouterr().out
    for heading in (
        "Start",
        "Dataset",
        "Run",
        "Optimizer and schedules",
        "Teacher",
        "Crops",
        "Evaluation while training",
    ):
        assert f"\n{heading}:\n" in printed
    words = " ".join(printed.split())
    assert "(at least 1; default: 276800)" in words and "(above 0 and at most 1; default: 0.32 1.0)" in words
    assert "(default: true)" in words
    assert "--no_" not in printed and "==SUPPRESS==" not in printed
    assert max(map(len, printed.splitlines())) <= 120
