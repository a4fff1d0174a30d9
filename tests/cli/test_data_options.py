"""Options that say which images of a dataset are read, on the command line and in recipes."""

import pytest

from poa_hf.cli.recipe import parse_recipe


def test_patterns_of_files_keep_their_spaces_and_commas(tmp_path):
    argv = "--data_files|a b/*.parquet|test=c,d.parquet|--data_dir|part one|--dataset_revision|refs/pr/1".split("|")
    recipe = parse_recipe(argv)
    assert recipe.data.data_files == ["a b/*.parquet", "test=c,d.parquet"]
    saved = tmp_path / "saved.yaml"
    saved.write_text(recipe.to_yaml())
    assert parse_recipe(["--config", str(saved)]).data == recipe.data


@pytest.mark.parametrize("command", ["pretrain", "order", "evaluate"])
def test_code_of_a_dataset_is_refused_with_a_reason(poa, command):
    for argument in ("--trust_remote_code", "--trust-remote-code=true"):
        message = poa(command, argument, status=2)
        assert "no code of a dataset or model on the Hub is run" in message
        assert "--dataset_revision refs/convert/parquet" in message


def test_a_recipe_keeps_no_token_and_runs_no_code(poa, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("token: hf_secret\n")
    message = poa("pretrain", "--config", recipe, status=2)
    assert "set HF_TOKEN in the environment" in message and "hf_secret" not in message
    recipe.write_text("trust_remote_code: true\n")
    assert "no code of a dataset" in poa("pretrain", "--config", recipe, status=2)


@pytest.mark.parametrize("token", ["", "two words", "hf_ü"])
def test_what_is_no_token_is_refused_and_not_shown(poa, token):
    message = poa("pretrain", f"--token={token}", status=2)
    assert "--token is empty or no token" in message and (not token or token not in message)
