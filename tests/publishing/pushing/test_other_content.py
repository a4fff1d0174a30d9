import shutil

from huggingface_hub import ModelCard

from poa_hf import PoaForPreTraining
from poa_hf.hub.client import Hub
from poa_hf.runs.evaluations import save_evaluations

from ...conftest import save_run, tiny_config
from ..card.test_stamp import OLD
from .pushes import MIDDLE, SMALL, SUPERNET, TWO, record


def test_other_content_is_never_overwritten_unasked(vit_run, hub, poa, expected):
    theirs = {"config.json": b"{}", "model.safetensors": b"theirs", "notes.txt": b"kept"}
    hub.add_repo(MIDDLE, theirs)
    message = poa("push", vit_run, *TWO, status=2)
    assert MIDDLE in message and "--overwrite" in message and "nothing was sent" in message
    assert list(hub.repos) == [("model", MIDDLE)] and hub.model(MIDDLE).files() == theirs and not hub.collections
    printed = poa("push", vit_run, *TWO, "--overwrite")
    assert "1 replaced" in printed and hub.state() == expected


def test_a_repo_with_a_readme_alone_is_someones(vit_run, hub, poa):
    hub.add_repo(SMALL, {"README.md": b"# Mine\n"})
    assert SMALL in poa("push", vit_run, *TWO, status=2)


def test_an_empty_repo_is_filled(vit_run, hub, poa, expected):
    hub.add_repo(SMALL)
    poa("push", vit_run, *TWO)
    assert hub.state() == expected


def test_another_run_of_the_same_shape_is_other_content(vit_run, hub, poa, tmp_path):
    other = save_run(PoaForPreTraining(tiny_config()), tmp_path / "other")
    poa("push", vit_run, *TWO)
    hub.clear()
    message = poa("push", other, "--all", "--namespace", "me", status=2)
    assert f"{SUPERNET} (model.safetensors)" in message and not hub.uploads and len(hub.repos) == 3


def test_content_that_comes_meanwhile_is_not_overwritten(vit_run, hub, poa, monkeypatch):
    create = Hub._create

    def too_late(self, repo_id, *args):
        if repo_id == SMALL:
            hub.add_repo(SMALL, {"README.md": b"# Mine\n"})
        create(self, repo_id, *args)

    monkeypatch.setattr(Hub, "_create", too_late)
    assert "was filled while this was running" in poa("push", vit_run, *TWO, status=2)
    assert hub.model(SMALL).files() == {"README.md": b"# Mine\n"}


def test_cards_follow_what_was_measured_unless_someone_edited_them(vit_run, hub, poa, tmp_path, pictures):
    run = shutil.copytree(vit_run, tmp_path / "run")
    poa("push", run, *TWO)
    mine = hub.model(MIDDLE).files()["README.md"] + b"\nMy own words.\n"
    hub.commit(hub.model(MIDDLE), {"README.md": mine})
    save_evaluations(run, [record("16x1", 0.5), record("24x2", 0.75)])
    hub.clear()
    printed = poa("push", run, *TWO)
    assert "2 renewed, 1 unchanged" in printed and f"{MIDDLE}: its card was edited" in printed
    assert ModelCard(hub.model(SMALL).files()["README.md"].decode()).data.eval_results[0].metric_value
    assert hub.model(MIDDLE).files()["README.md"] == mine
    assert all(repo != SMALL or size < 100_000 for repo, _, size in hub.uploads)  # a picture, no weights
    assert "1 renewed" in poa("push", run, *TWO, "--overwrite")
    assert b"My own words" not in hub.model(MIDDLE).files()["README.md"]
    assert "3 unchanged" in poa("push", run, *TWO)


def test_a_card_of_the_first_version_is_renewed(vit_run, hub, poa):
    poa("push", vit_run, *TWO)
    repo = hub.model(SMALL)
    card = repo.files()["README.md"]
    hub.commit(repo, {"README.md": OLD.encode()})
    printed = poa("push", vit_run, *TWO)
    assert "1 renewed, 2 unchanged" in printed and "edited" not in printed and repo.files()["README.md"] == card
