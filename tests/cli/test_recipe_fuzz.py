"""Any file is a recipe or one sentence, and a recipe that is written is read back as it was."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poa_hf import PoaTrainingArguments
from poa_hf.cli.recipe import EvaluationArguments, Recipe, parse_recipe
from poa_hf.yaml_files import yaml_text

FIELDS = [*PoaTrainingArguments.ranges, *EvaluationArguments.ranges, "bf16", "dataset_name", "report_to", "output_dir"]
MODEL = ["num_prototypes", "koleo_weight", "head_num_layers", "intact_weight", "warmth"]
BACKBONE = ["hidden_size", "num_hidden_layers", "layer_norm_eps", "mlp_ratio", "image_size", "model_type", "qkv_bias"]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=5),
    st.sampled_from(["1e-3", "010", "1:30", "yes", "no", "32,64", "nan", "2024-01-01", 10**400, "poa_swin"]),
    st.lists(st.floats(-1, 2) | st.integers(-1, 64), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
BOUNDED = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read(path, text: str) -> Recipe | None:
    """The recipe that a text is; None for a mistake, which is one sentence."""
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        return parse_recipe(["--config", str(path)])
    except ValueError as error:
        assert "\n" not in str(error) and 10 < len(str(error)) < 1500
        return None


@BOUNDED
@given(
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), VALUES, max_size=4),
    st.dictionaries(st.sampled_from(MODEL), VALUES, max_size=2),
    st.dictionaries(st.sampled_from(BACKBONE), VALUES, max_size=2),
)
def test_any_values_are_a_recipe_or_one_sentence(tmp_path, fields, model, backbone):
    recipe = read(tmp_path / "a.yaml", yaml_text({**fields, "model": {**model, "backbone_config": backbone}}))
    if recipe is not None:
        assert math.isfinite(recipe.training.learning_rate) and recipe.model.backbone_config.hidden_size > 0


@BOUNDED
@given(st.text(alphabet="abm:-[]{},&*!|>'\"#<= \n\t019.e", max_size=40), st.sampled_from(["", "seed: ", "model:\n  "]))
def test_any_text_is_a_recipe_or_one_sentence(tmp_path, text, start):
    read(tmp_path / "a.yaml", start + text)


def inside(allowed) -> st.SearchStrategy:
    if allowed.whole:
        return st.integers(int(allowed.low or 0), int(min(allowed.largest, 10**6)))
    low, high = allowed.low if allowed.low is not None else -10.0, min(allowed.largest, 1e6)
    return st.floats(low, high, exclude_min=allowed.above, exclude_max=allowed.below)


SINGLE = {
    name: inside(allowed)
    for owner in (PoaTrainingArguments, EvaluationArguments)
    for name, allowed in owner.ranges.items()
    if not isinstance(getattr(owner(), name), list) and name != "image_range"  # two numbers, or none
}
PAIRS = {
    name: st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)).map(sorted) for name in ("mask_ratio", "local_crop_scale")
}
PROTOTYPES = st.lists(st.integers(2, 99), min_size=1, max_size=4)
TEXT = st.text(alphabet="abc019.:-_/ #e~", min_size=1, max_size=8).filter(str.strip)


@BOUNDED
@given(
    st.fixed_dictionaries({}, optional=SINGLE | PAIRS | {"dataset_config_name": TEXT, "image_column": TEXT}),
    st.fixed_dictionaries(
        {}, optional={"koleo_weight": st.floats(0, 9), "num_prototypes": st.lists(st.integers(2, 99), min_size=1)}
    ),
    st.sampled_from([{"hidden_size": 64, "num_attention_heads": 4}, {"model_type": "poa_swin", "min_embed_dim": 128}]),
)
def test_what_is_written_is_read_back(tmp_path, fields, model, backbone):
    recipe = read(tmp_path / "a.yaml", yaml_text({**fields, "model": {**model, "backbone_config": backbone}}))
    assert recipe is not None
    again = read(tmp_path / "b.yaml", recipe.to_yaml())
    assert again is not None and again.model.to_dict() == recipe.model.to_dict()
    for part in ("training", "data", "evaluation"):
        assert vars(getattr(again, part)) == vars(getattr(recipe, part))
    given_numbers = {name: value for name, value in fields.items() if name in PoaTrainingArguments.ranges}
    assert {name: getattr(recipe.training, name) for name in given_numbers} == given_numbers


@pytest.mark.parametrize("written", [["32", "64"], ["32,64"], ["[32,64]"], ["[32, 64]"], ["32 64"]])
def test_a_list_on_the_command_line(written):
    recipe = parse_recipe(["--model.num_prototypes", *written, "--mask_ratio", "[0.1, 0.2]"])
    assert recipe.model.num_prototypes == [32, 64] and recipe.training.mask_ratio == [0.1, 0.2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("seed: 1\nmax_step: 3", r"a.yaml, line 2: max_step is not a known key: did you mean max_steps\?"),
        ("model:\n  koleo: 1", "a.yaml, line 2: model.koleo is not a known key"),
        ("model:\n  backbone_config:\n    hidden_size: many", "a.yaml, line 3: hidden_size is 'many': give a whole"),
        ("model:\n  backbone_config:\n    hidden_size: 100", "a.yaml, line 3: hidden_size 100 is not a multiple"),
        ("model:\n  backbone_config:\n    model_type: vit", "a.yaml, line 3: model_type 'vit' is not an elastic model"),
        ("bf16: maybe", "a.yaml, line 1: bf16 is 'maybe': give true or false"),
        ("local_crop_scale: [0.5, 0.1]", "a.yaml, line 1: local_crop_scale is .*: give the smaller share first"),
    ],
)
def test_mistakes_name_the_line(tmp_path, content, message):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        parse_recipe(["--config", str(tmp_path / "a.yaml")])


def test_values_of_a_file_mean_what_they_look_like(tmp_path):
    text = "learning_rate: 1e-3\ndataset_config_name: 1.10\ndataset_split: no\nseed: 010\nstreaming: no\nmodel:\n"
    recipe = read(
        tmp_path / "a.yaml", text + "  koleo_weight: 1e-2\n  backbone_config: {qkv_bias: no, layer_norm_eps: 1e-5}"
    )
    assert recipe is not None
    assert (recipe.training.learning_rate, recipe.data.dataset_config_name, recipe.data.dataset_split) == (
        1e-3,
        "1.10",
        "no",
    )
    assert recipe.training.seed == 10 and recipe.data.streaming is False and recipe.model.koleo_weight == 1e-2
    assert recipe.model.backbone_config.qkv_bias is False and recipe.model.backbone_config.layer_norm_eps == 1e-5
