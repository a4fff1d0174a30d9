import json
import shutil

from huggingface_hub import ModelCard

from poa_hf import PoaForPreTraining, SubNetwork
from poa_hf.runs.evaluations import save_evaluations

from ...loopback_hub import LoopbackHub
from .pushes import LARGE, MIDDLE, SMALL, SPACE, SUPERNET, TWO, pushed, record


def test_every_size_gets_a_repo_of_its_own(vit_run, hub, poa, pictures):
    printed = poa("push", vit_run, "--all", "--namespace", "me", "--license", "mit")
    ids = {repo_id for _, repo_id in hub.repos}
    assert len(ids) == len(SPACE) + 1 == 10 and {SUPERNET, SMALL, MIDDLE, LARGE} <= ids
    for repo_id in ids - {SUPERNET}:
        files = hub.model(repo_id).files()
        assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "family.png"} == set(files)
        card = ModelCard(files["README.md"].decode())
        assert card.data.base_model == SUPERNET and card.data.license == "mit" and f'"{repo_id}"' in card.text
        titles = [commit.title for commit in hub.model(repo_id).branches["main"].history()]
        assert len(titles) == 2 and titles[-1] == "initial commit"  # all came in one
        assert f"{hub.endpoint}/{repo_id}" in printed
    (collection,) = hub.state()["collections"].values()
    assert collection == sorted(("model", repo_id) for repo_id in ids)
    assert "10 repos: 10 published" in printed and hub.endpoint + "/collections/me/poa-vit-w32-d3-one" in printed


def test_the_supernet_tells_of_all_sizes(vit_run, hub, poa, tmp_path):
    run = shutil.copytree(vit_run, tmp_path / "run")
    save_evaluations(run, [record("16x1", 0.5), record("24x2", 0.75)])
    poa("push", run, *TWO)
    table = json.loads(hub.model(SUPERNET).files()["sizes.json"])
    assert table["family"] == "vit" and table["supernet"] == SUPERNET and len(table["sizes"]) == len(SPACE)
    rows = {row["size"]: row for row in table["sizes"]}
    assert rows["16x1"]["repo"] == SMALL and rows["24x2"]["repo"] == MIDDLE and rows["32x3"]["repo"] is None
    assert rows["24x2"]["knn_accuracy"] == 0.75 and rows["32x3"]["knn_accuracy"] is None
    model = PoaForPreTraining.from_pretrained(run).teacher.extract("24x2")
    assert rows["24x2"]["parameters"] == model.num_parameters() and rows["24x2"]["flops"] > 0
    poa("push", run, "--size", "large", "--namespace", "me")  # the table keeps what other calls have published
    rows = {row["size"]: row for row in json.loads(hub.model(SUPERNET).files()["sizes.json"])["sizes"]}
    assert [size for size, row in rows.items() if row["repo"]] == ["16x1", "24x2", "32x3"]


def test_what_belongs_to_this_machine_stays_here(vit_run, hub, poa, tmp_path):
    run = shutil.copytree(vit_run, tmp_path / "run")
    recipe = f"dataset_name: {tmp_path}/photos\noutput_dir: {run}\nmax_steps: 7\n"
    (run / "config.yaml").write_text(recipe)
    (run / "training_args.json").write_text(json.dumps({"output_dir": str(run), "learning_rate": 0.004}))
    save_evaluations(run, [record("16x1", 0.5)])
    poa("push", run, "--size", "small", "--namespace", "me")
    for repo in hub.repos.values():
        for path, content in repo.files().items():
            for place in (str(tmp_path), "/home/someone"):
                assert place.encode() not in content, (repo.id, path)
    files = hub.model(SUPERNET).files()
    assert b"dataset_name: photos" in files["config.yaml"] and b"0.004" in files["training_args.json"]


def test_a_second_push_sends_nothing(vit_run, hub, poa, expected):
    poa("push", vit_run, *TWO)
    assert hub.state() == expected
    hub.clear()
    assert "3 unchanged" in poa("push", vit_run, *TWO)
    assert hub.state() == expected and not hub.uploads
    assert {request.method for request in hub.requests} <= {"GET", "HEAD"}
    trees = hub.count("GET", "/tree/")
    assert trees == 3 + 1  # one for each repo, and the supernet's again for its table


def test_a_newer_library_does_not_make_another_model(vit_run, hub, poa):
    poa("push", vit_run, *TWO)
    repo = hub.model(SMALL)
    config = json.loads(repo.files()["config.json"]) | {"transformers_version": "99.0"}
    hub.commit(repo, {"config.json": json.dumps(config).encode()})
    assert "3 unchanged" in poa("push", vit_run, *TWO)


def test_private_repos_on_a_branch(vit_run, hub, poa, expected):
    poa("push", vit_run, *TWO, "--private", "--revision", "v1")
    for repo in hub.repos.values():
        assert repo.private and repo.files() == {}
        assert repo.files("v1").keys() == expected["repos"][f"models/{repo.id}"]["main"].keys()
    assert all(collection["private"] for collection in hub.collections.values())
    hub.clear()
    assert "3 unchanged" in poa("push", vit_run, *TWO, "--private", "--revision", "v1") and not hub.uploads
    poa("push", vit_run, *TWO)  # main is still to be filled, and stays as private as it is
    assert hub.model(SMALL).files() == expected["repos"][f"models/{SMALL}"]["main"] and hub.model(SMALL).private


def test_a_licence_of_ones_own_goes_along(vit_run, hub, poa, tmp_path):
    run = shutil.copytree(vit_run, tmp_path / "run")
    (run / "card.yaml").write_text("license: other\nlicense_name: mine-1.0\nlicense_link: LICENSE\n")
    (run / "LICENSE").write_text("Do what you like.\n")
    poa("push", run, "--size", "small", "--namespace", "me")
    assert hub.model(SMALL).files()["LICENSE"] == hub.model(SUPERNET).files()["LICENSE"] == b"Do what you like.\n"
    assert ModelCard(hub.model(SMALL).files()["README.md"].decode()).data.license_link == "LICENSE"


def test_without_supernet_and_collection(vit_run, hub, poa):
    poa("push", vit_run, *TWO, "--no_supernet", "--no_collection", "--name_template", "mine-{width}-{depth}")
    assert {repo_id for _, repo_id in hub.repos} == {"me/mine-16-1", "me/mine-24-2"} and not hub.collections
    assert ModelCard(hub.model("me/mine-16-1").files()["README.md"].decode()).data.base_model is None


def test_a_dry_run_needs_no_hub(vit_run, hub, poa, monkeypatch, expected):
    monkeypatch.delenv("HF_TOKEN")
    printed = poa("push", vit_run, *TWO, "--dry_run")
    assert not hub.requests and not hub.repos
    total = 0
    for repo_id, branches in expected["repos"].items():
        sizes = {path: len(content) for path, content in branches["main"].items()}
        if repo_id != f"models/{SUPERNET}":
            assert f"{repo_id[7:]} (" in printed and f"{len(sizes)} files, {sum(sizes.values()):,} bytes" in printed
        assert all(f"{size:,}  {path}" in printed for path, size in sizes.items())
        total += sum(sizes.values())
    assert f"3 repos, {total:,} bytes" in printed and "nothing was sent" in printed


def test_two_hubs_that_got_the_same_look_the_same(vit_run, hub):
    """What comparisons of hubs rest on."""
    pushed(vit_run)
    state = hub.state()
    assert len(state["repos"]) == 3 and SubNetwork(24, 2) in SPACE and isinstance(hub, LoopbackHub)
    hub.commit(hub.model(SMALL), {"model.safetensors": b"other"})
    assert hub.state() != state
