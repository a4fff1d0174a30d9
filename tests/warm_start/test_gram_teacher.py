"""`--gram_teacher` and `--model.gram_weight`: from the recipe to the card of an extracted size."""

import json

import pytest
import yaml

from poa_hf.cli.recipe import parse_recipe

from ..conftest import QUICKSTART, TINY
from .test_foreign_teacher import SMALL, folder  # noqa: F401 (a fixture)

WEIGHT = ["--model.gram_weight", "1.5"]
assert SMALL


def pretrain(tmp_path, *options: str) -> list[str]:
    return ["pretrain", "--config", QUICKSTART, *TINY.split(), "--output_dir", str(tmp_path / "run"), *options]


def test_the_recipe_keeps_the_teacher_and_its_weight():
    recipe = parse_recipe([*WEIGHT, "--gram_teacher", "me/earlier", "--gram_teacher_size", "448"])
    saved = yaml.safe_load(recipe.to_yaml())
    assert (recipe.gram_teacher, saved["gram_teacher"]) == ("me/earlier", "me/earlier")
    assert saved["gram_teacher_size"] == 448 and saved["model"]["gram_weight"] == 1.5
    assert "gram_teacher" not in yaml.safe_load(parse_recipe(WEIGHT).to_yaml())
    assert "gram_teacher" not in saved["model"]


@pytest.mark.slow
@pytest.mark.parametrize("other", [False, True], ids=["its own", "another"])
def test_a_run_is_resumed_by_its_recipe_and_described(tmp_path, folder, poa, other):  # noqa: F811
    given = ["--gram_teacher", str(folder)] if other else []
    poa(*pretrain(tmp_path, *WEIGHT, *given))
    run = tmp_path / "run"
    record = json.loads((run / "config.json").read_text())["gram_teacher"]
    assert record["teacher"] == ("their-vit" if other else None)
    poa("extract", run, "--size", "small", "--output", tmp_path / "small")
    card = (tmp_path / "small" / "README.md").read_text()
    teacher = "their-vit" if other else "the teacher at the start"
    assert f"| loss weight of Gram anchoring | 1.5, to {teacher} at 32 pixels |" in card
    assert str(tmp_path) not in card
    poa("resume", run, "--max_steps", "3")
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_mistakes_are_one_sentence(tmp_path, folder, poa):  # noqa: F811
    for options, message in (
        (["--gram_teacher", str(folder)], "gram_teacher is given, but no weight: add --model.gram_weight"),
        ([*WEIGHT, "--gram_teacher", "/nowhere"], "There is nothing at '/nowhere'"),
        ([*WEIGHT, "--gram_teacher_size", "60"], "gram_teacher_size 60 is not a multiple of 8"),
        ([*WEIGHT, "--gram_teacher_size", "0"], "gram_teacher_size is 0"),
        (["--model.gram_weight", "-1"], "gram_weight is -1"),
        (["--gram_weight", "1"], "--model.gram_weight"),
    ):
        assert message in poa(*pretrain(tmp_path, *options), status=2), options
        assert not (tmp_path / "run").exists()
