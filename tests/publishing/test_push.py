import itertools
import json
import shutil

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from poa_hf import PoaConfig, PoaForPreTraining, PoaResNetConfig, SubNetwork
from poa_hf.evaluation.subject import load_subject
from poa_hf.hub.client import Hub
from poa_hf.publishing.push import PushOptions, push
from poa_hf.publishing.release import Release
from poa_hf.runs.evaluations import Evaluation, save_evaluations
from poa_hf.selection.costs import costs

from ..conftest import save_run, tiny_backbone, tiny_config
from ..loopback_hub import LoopbackHub
from ..loopback_hub.hub import Account
from .card.test_stamp import OLD

SPACE = tiny_backbone().space
SUPERNET = "me/poa-vit-w32-d3-supernet"
SMALL, MIDDLE, LARGE = "me/poa-vit-w16-d1-extracted", "me/poa-vit-w24-d2-extracted", "me/poa-vit-w32-d3-extracted"
TWO = ("--size", "small,24x2", "--namespace", "me")


@pytest.fixture
def pictures():
    """For tests that need pictures in cards; the others have none, as without matplotlib, and take half the time."""


@pytest.fixture(scope="module")
def counted_once():
    """Costs of a configuration do not change from test to test."""
    counted = {}

    def once(config):
        key = config.to_json_string()
        if key not in counted:
            counted[key] = costs(config)
        return counted[key]

    return once


def hasten(patch, counted_once, pictures=False):
    patch.setattr("poa_hf.publishing.card.facts.costs", counted_once)
    if not pictures:
        patch.setattr("poa_hf.publishing.card.cards.draw_sizes", lambda *arguments: "")
    patch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)


@pytest.fixture(autouse=True)
def haste(request, monkeypatch, counted_once):
    """Waiting between attempts takes no time, and little is done twice."""
    hasten(monkeypatch, counted_once, "pictures" in request.fixturenames)
    monkeypatch.setattr("poa_hf.hub.retrying.time.sleep", lambda seconds: None)


def pushed(run):
    """A push by Python, of two sizes."""
    return push(Release.from_run(run, "small,24x2", "me"), Hub(), PushOptions(), tell=lambda line: None)


@pytest.fixture(scope="module")
def expected(vit_run, counted_once) -> dict:
    """What two pushed sizes and their supernet look like, pushed without trouble to another Hub."""
    with pytest.MonkeyPatch.context() as patch, LoopbackHub() as hub:
        hasten(patch, counted_once)
        release = Release.from_run(vit_run, "small,24x2", "me")
        push(release, Hub(HfApi(hub.endpoint, token="hf_me")), tell=lambda line: None)
        return hub.state()


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


def record(size, value, dataset="/home/someone/photos"):
    return Evaluation("run", size, "knn", "knn_accuracy", value, dataset, "test", 10, "2026-01-01", settings={"k": 20})


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


FAULTS = {
    "rate limit": {"status": 429, "headers": {"Retry-After": "2"}},
    "server error": {"status": 500},
    "gateway": {"status": 504},
    "dropped request": {"drop": "before"},
    "dropped answer": {"drop": "after"},
}
ONCE = [("GET", "whoami"), ("GET", "/collections"), ("POST", "/collections$")]
OFTEN = [
    ("GET", "/tree/"), ("POST", "/repos/create"), ("POST", "validate-yaml"), ("POST", "/preupload/"),
    ("POST", "objects/batch"), ("PUT", "/storage/"), ("POST", "/verify"), ("POST", "/commit/"),
    ("POST", "/collections/.*/items"),
]  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_a_busy_hub_makes_no_difference(vit_run, hub, expected, kind):
    """Every kind of call fails, most of them at their first and at a later call."""
    faults = [hub.inject(*call, **FAULTS[kind]) for call in ONCE + OFTEN]
    faults += [hub.inject(*call, at=3, **FAULTS[kind]) for call in OFTEN]
    pushed(vit_run)
    assert hub.state() == expected
    assert all(fault.struck for fault in faults)
    if kind != "dropped answer":  # one that was lost after an upload cannot be told from one lost before
        assert len(hub.uploads) == len(set(hub.uploads))


def test_a_hub_that_stays_silent(vit_run, hub, expected, poa):
    for call in (("POST", "/repos/create"), ("POST", "/commit/")):
        hub.inject(*call, hold="after")
    poa("push", vit_run, *TWO, "--timeout", "0.5")
    assert hub.state() == expected


@pytest.mark.parametrize("call", [("POST", "/repos/create"), ("PUT", "/storage/"), ("POST", "/commit/")])
def test_what_fails_for_good_leaves_whole_repos(vit_run, hub, expected, poa, call):
    hub.inject(*call, at=2, status=503, times=None, message="Down")
    message = poa("push", vit_run, *TWO, status=2)
    assert "503 (Down)" in message and "run the same command again, it continues where it stopped" in message
    assert_whole_or_empty(hub, expected)
    hub.clear()
    poa("push", vit_run, *TWO)
    assert hub.state() == expected


def assert_whole_or_empty(hub, expected):
    for repo in hub.repos.values():
        whole = expected["repos"][f"models/{repo.id}"]["main"]
        files = repo.files()
        assert not files or files.keys() == whole.keys() and files["config.json"] == whole["config.json"]
        assert files.get("model.safetensors") in (None, whole["model.safetensors"])


def test_a_rate_limit_of_an_hour(vit_run, hub, poa, expected):
    hub.inject("POST", "/repos/create", at=2, status=429, headers={"Retry-After": "3600"}, times=None)
    message = poa("push", vit_run, *TWO, status=2)
    assert "429" in message and "later, run the same command again" in message
    assert hub.count("POST", "/repos/create") == 2
    hub.clear()
    poa("push", vit_run, *TWO)
    assert hub.state() == expected


@pytest.mark.slow
def test_interrupted_after_any_line(vit_run, hub, expected):
    """Ctrl-C between the steps of a push: the next call does the rest, and nothing is sent twice."""
    for lines in range(1, 7):
        hub.repos.clear(), hub.collections.clear(), hub.clear()
        told = []

        def tell(line, told=told, lines=lines):
            told.append(line)
            if len(told) == lines:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            push(Release.from_run(vit_run, "small,24x2", "me"), Hub(), tell=tell)
        assert_whole_or_empty(hub, expected)
        pushed(vit_run)
        assert hub.state() == expected and len(hub.uploads) == len(set(hub.uploads))
    assert len(told) == 6  # the last line there is: every one was tried


def test_some_repos_at_a_time(vit_run, hub, expected, poa):
    limited = ("push", vit_run, *TWO, "--max_repos", "1")
    assert "1 published, 2 left" in poa(*limited) and len(hub.repos) == 1
    printed = poa(*limited)
    assert "1 published, 1 unchanged, 1 left" in printed or "1 published, 1 renewed, 1 left" in printed
    assert "run the same command again for the 1 left" in printed
    poa(*limited)
    assert hub.state() == expected and len(hub.uploads) == len(set(hub.uploads))


@pytest.mark.slow
def test_143_sizes_on_a_bad_day(hub, poa, tmp_path):
    """143 sizes as of a ViT-L, 60 repos a call, and for long every thirteenth request fails in some way."""
    backbone = tiny_backbone(
        hidden_size=32, num_attention_heads=16, min_hidden_size=12, num_hidden_layers=13, min_num_hidden_layers=1
    )
    run = save_run(PoaForPreTraining(tiny_config(backbone)), tmp_path / "run")
    assert len(backbone.space) == 143
    faults = [hub.inject(".", "/api/|/storage/|/lfs/", at=n, **FAULTS[kind])
              for n, kind in zip(range(5, 1400, 13), itertools.cycle(FAULTS), strict=False)]  # fmt: skip
    for left in (84, 24):
        assert f"{left} left" in poa("push", run, "--all", "--namespace", "me", "--max_repos", "60")
        assert len(hub.repos) == 144 - left
    poa("push", run, "--all", "--namespace", "me")
    assert len(hub.repos) == 144 and all(fault.struck for fault in faults)
    table = json.loads(hub.model(SUPERNET).files()["sizes.json"])
    assert all(row["repo"] in {repo_id for _, repo_id in hub.repos} for row in table["sizes"])
    assert len(hub.state()["collections"].popitem()[1]) == 144
    hub.clear()
    assert "144 unchanged" in poa("push", run, "--all", "--namespace", "me") and not hub.uploads


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


ACCOUNTS = {
    "hf_read": Account("me", role="read"),
    "hf_fine": Account("me", role="fineGrained", permissions={"me": ["repo.content.read"]}),
    "hf_repos": Account("me", role="fineGrained", permissions={"me": ["repo.write"]}),
    "hf_ok": Account("me", role="fineGrained", permissions={"me": ["repo.write", "collection.write"]}),
}


@pytest.mark.parametrize(
    ("token", "namespace", "words"),
    [
        ("", "me", "There is no token for the Hub: run `hf auth login`"),
        ("hf_wrong", "me", "does not accept this token"),
        ("hf_read", "me", "may only read 'me'"),
        ("hf_fine", "me", "lacks the right collection.write and repo.write in 'me'"),
        ("hf_repos", "me", "lacks the right collection.write in 'me'"),
        (
            "hf_me",
            "nobody",
            "'nobody' is not a namespace of me, whose token this is: give --namespace one of me, my-org",
        ),
        ("hf_me", "read-only-org", "may only read 'read-only-org'"),
    ],
)
def test_missing_rights_are_told_before_anything_is_sent(vit_run, hub, poa, monkeypatch, token, namespace, words):
    hub.accounts |= ACCOUNTS
    monkeypatch.setenv("HF_TOKEN", token)
    assert words in poa("push", vit_run, "--size", "small", "--namespace", namespace, status=2)
    assert not hub.repos and not hub.collections


def test_offline(vit_run, hub, poa, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "offline" in poa("push", vit_run, *TWO, status=2)
    assert not hub.requests


def test_a_card_that_the_hub_refuses(vit_run, hub, poa):
    hub.inject("POST", "validate-yaml", status=400, message="Invalid metadata", times=None)
    message = poa("push", vit_run, *TWO, status=2)
    assert f"{SUPERNET} could not be published" in message and "Invalid metadata" in message
    assert hub.model(SUPERNET).files() == {}


def test_rights_that_suffice(vit_run, hub, poa, monkeypatch):
    hub.accounts |= ACCOUNTS
    small = ("push", vit_run, "--size", "small", "--no_supernet", "--namespace")
    poa(*small, "my-org")
    monkeypatch.setenv("HF_TOKEN", "hf_ok")
    poa(*small, "me")
    monkeypatch.setenv("HF_TOKEN", "hf_repos")
    poa(*small, "me", "--no_collection", "--name_template", "b-{size}")
    assert [repo_id for _, repo_id in hub.repos] == ["my-org/poa-vit-w16-d1-extracted", SMALL, "me/b-w16-d1"]


def test_rights_that_only_the_hub_knows_of(vit_run, hub, poa):
    hub.inject("POST", "/repos/create", status=403, message="Your plan does not include this", times=None)
    message = poa("push", vit_run, *TWO, status=2)
    assert f"{SUPERNET} could not be published" in message and "Your plan does not include this" in message
    assert not hub.repos and not hub.collections


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


def test_the_supernet_on_the_hub_is_a_run(vit_run, hub, poa, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(vit_run, tmp_path / "run")
    save_evaluations(run, [record("16x1", 0.5), record("24x2", 0.75)])
    poa("push", run, *TWO)
    poa("extract", SUPERNET, "--size", "24x2", "--output", "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == hub.model(MIDDLE).files()["model.safetensors"]
    assert "best" in (printed := poa("select", SUPERNET, "--max_params", "1M")) and "24x2" in printed
    subject = load_subject(SUPERNET)
    assert subject.name == SUPERNET and subject.results is None and "24x2" in subject.sizes("all")
    hub.clear()
    assert "3 unchanged" in poa("push", SUPERNET, *TWO)  # from anywhere else, too
    assert not hub.uploads
    poa("push", SUPERNET, *TWO, "--revision", "v1")
    poa("extract", f"{SUPERNET}@v1", "--size", "24x2", "--output", "v1")
    assert "has no revision 'v2'" in poa("extract", f"{SUPERNET}@v2", "--size", "24x2", "--output", "v2", status=2)
    assert "holds a 'dinov2' model" in poa("extract", SMALL, "--size", "24x2", "--output", "v2", status=2)
    hub.add_repo("me/empty")
    assert "holds no model" in poa("extract", "me/empty", "--size", "24x2", "--output", "v2", status=2)


def test_a_folder_comes_before_a_repo_of_its_name(vit_run, hub, poa, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = save_run(PoaForPreTraining(tiny_config()), tmp_path / SUPERNET)
    poa("push", vit_run, *TWO)
    poa("extract", SUPERNET, "--size", "24x2", "--output", "here")
    state = PoaForPreTraining.from_pretrained(other).teacher.extract("24x2").state_dict()
    with torch.no_grad():
        from transformers import AutoModel

        found = AutoModel.from_pretrained(tmp_path / "here").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_two_hubs_that_got_the_same_look_the_same(vit_run, hub):
    """What the comparisons of this file rest on."""
    pushed(vit_run)
    state = hub.state()
    assert len(state["repos"]) == 3 and SubNetwork(24, 2) in SPACE and isinstance(hub, LoopbackHub)
    hub.commit(hub.model(SMALL), {"model.safetensors": b"other"})
    assert hub.state() != state


@pytest.mark.slow
def test_a_published_resnet_needs_no_remote_code(hub, poa, tmp_path):
    pytest.importorskip("timm", exc_type=ImportError, reason="needs timm, and a torchvision that it can import")
    from transformers import AutoModel

    backbone = PoaResNetConfig(depths=[1, 2, 1, 1], min_depths=[1, 1, 1, 1], base_width=64, min_base_width=32)
    model = PoaForPreTraining(PoaConfig(backbone_config=backbone, num_prototypes=[8], head_hidden_size=8)).eval()
    run = save_run(model, tmp_path / "run")
    size = "64x1-2-1-1"
    poa("push", run, "--size", size, "--namespace", "me", "--no_supernet")
    ((_, repo_id),) = hub.repos
    loaded = AutoModel.from_pretrained(repo_id, trust_remote_code=False).eval()
    assert type(loaded).__name__ == "TimmWrapperModel"
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.teacher(pixels, sub_network=size).pooler_output
        torch.testing.assert_close(loaded(pixels).pooler_output, expected, rtol=1e-4, atol=1e-5)
    assert "1 unchanged" in poa("push", run, "--size", size, "--namespace", "me", "--no_supernet")
    refusal = poa("push", run, "--size", size, "--namespace", "me", "--no_supernet", "--format", "gn_resnet", status=2)
    assert "other content than this run" in refusal and "--format if it was published in another one" in refusal
