import pytest


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--namespace me", "give either --size"),
        ("--namespace me --size small --all", "give either --size"),
        ("--size small", "--namespace"),
        ("--namespace me --size 17x2", "nearest are"),
        ("--namespace me --size tiny", "is neither a named size"),
        ("--namespace me --all --name_template poa", "the same name"),
        ("--namespace me --all --format swin", "is not a format of this model"),
        ("--namespace me --all --format onnx", "poa push does not publish ONNX"),
        ("--namespace me --all --license gpl-9", "gpl-9"),
        ("--namespace me --all --max_repos 0", "--max_repos is '0': give a whole number of at least 1"),
        ("--namespace me --all --revision refs/pr/1", "cannot be the name of a branch"),
        ("--namespace me --all --timeout 0", "--timeout is '0': give a number above 0"),
        ("--namespace a/b --all", "cannot be the name of a repo"),
    ],
)
def test_mistakes_are_one_sentence(vit_run, hub, poa, options, words):
    assert words in poa("push", vit_run, *options.split(), status=2)
    assert not hub.requests


def test_runs_that_are_not_there(hub, poa, tmp_path):
    rest = ("--size", "small", "--namespace", "me")
    assert "does not exist" in poa("push", tmp_path / "nowhere", *rest, status=2)
    assert "is neither a folder nor a repository on the Hub" in poa("push", "me/nothing", *rest, status=2)
    assert not hub.repos
