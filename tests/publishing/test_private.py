"""What is published holds nothing of the machine: no path outside the run, no file that a link leads to, no HTML."""

import json

import pytest
import yaml

from poa_hf import PoaForPreTraining
from poa_hf.cli.main import main
from poa_hf.publishing.card.markdown import link
from poa_hf.publishing.card.owner import OwnerFacts
from poa_hf.publishing.hub.names import repo_name
from poa_hf.publishing.release import Release
from poa_hf.runs.evaluations import Evaluation, save_evaluations
from poa_hf.runs.publishable import without_local_paths

from ..conftest import save_run, tiny_backbone, tiny_config

SECRET = "secretuser"


@pytest.fixture
def private(tmp_path, monkeypatch):
    folder = tmp_path / SECRET / "projects"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def uploaded(hub) -> list[tuple[str, bytes]]:
    """Every file of the Hub with its path, old versions included."""
    commits = [
        commit for repo in hub.repos.values() for branch in repo.branches.values() for commit in branch.history()
    ]
    return [(path, file.content) for commit in commits for path, file in commit.files.items()]


def pictures(folder, count=8):
    from PIL import Image

    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (40, 40), (index * 20, 90, 30)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("relative", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_of_private_folders_is_published_without_them(private, hub, poa, relative):
    pictures(private / "images" / "cranes")
    save_run(PoaForPreTraining(tiny_config()), private / "models" / "base")
    (start, data, run) = ("models/base", "images/cranes", "runs/one")
    if not relative:
        start, data, run = (str(private / name) for name in (start, data, run))
    options = ["--init_from", start, "--dataset_name", data, "--output_dir", run]
    small = "--disable_tqdm --per_device_train_batch_size 4 --dataloader_num_workers 0 --max_steps 2 --save_steps 1 "
    small += "--global_crop_size 32 --local_crop_size 16 --num_local_crops 1 --freeze_backbone_steps 1"
    assert main(["pretrain", *options, *small.split()]) == 0
    record = Evaluation(
        "one", "16x1", "knn", "knn_accuracy", 0.5, "cranes", "test", 8, "2026-11-27", train_split="train",
        train_images=8, step=2, settings={"k": 10, "index": str(private / "index")},
        details={"log": f"read from {private}/log.txt and file://{private}/x"},
    )  # fmt: skip
    save_evaluations(private / "runs" / "one", [record])
    config = private / "runs" / "one" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_name_or_path": str(private / "models" / "base")}))
    (private / "runs" / "one" / "checksums.json").unlink()  # the configuration was changed on purpose
    poa("push", run, "--size", "small", "--namespace", "me", "--license", "mit")
    files = uploaded(hub)
    assert {path for path, _ in files} >= {
        *("config.json", "model.safetensors", "README.md", "config.yaml", "training_args.json", "evaluations.json"),
        *("compute.json", "sizes.json"),
    }
    assert [path for path, content in files if SECRET.encode() in content] == []
    recipe = dict(files)["config.yaml"]
    assert {"init_from": "base", "dataset_name": "cranes"}.items() <= yaml.safe_load(recipe).items()


def test_extracted_models_hold_no_path_of_this_machine(private, poa, vit_run):
    poa("extract", vit_run, "--size", "small", "--output", private / "small")
    files = list((private / "small").iterdir())
    assert "model.safetensors" in {path.name for path in files}
    for path in files:
        assert not [word for word in (SECRET, str(vit_run)) if word.encode() in path.read_bytes()], path


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("read from /home/me/a/b.txt, then", "read from b.txt, then"),
        ("file:///home/me/x", "x"),
        ("see https://example.org/a/b and C:\\Users\\me\\x.jpg", "see https://example.org/a/b and x.jpg"),
        ("leaves and/or flowers, 3/4 of them", "leaves and/or flowers, 3/4 of them"),
        ("two lines\nof ~me/photos/1.png", "two lines\nof 1.png"),
        ("timm/oxford-iiit-pet", "timm/oxford-iiit-pet"),
    ],
)
def test_paths_within_text_are_cut_to_their_last_part(text, published):
    assert without_local_paths({"field": [text]}) == {"field": [published]}


def test_names_of_fields_are_paths_too():
    assert without_local_paths({"/home/me/x": 1, "_name_or_path": "a/b"}) == {"x": 1}


PUBLISHED = ["config.yaml", "card.yaml", "training_args.json", "evaluations.json", "config.json", "compute.json"]


@pytest.mark.parametrize("name", [*PUBLISHED, "model.safetensors", "preprocessor_config.json", "LICENSE"])
def test_what_a_link_leads_to_is_not_published(tmp_path, poa, hub, name):
    run = save_run(PoaForPreTraining(tiny_config()), tmp_path / "run")
    secret = tmp_path / "secret"
    if (run / name).exists():
        (run / name).rename(secret)
    else:
        secret.write_text("about: TOP SECRET\n" if name.endswith("yaml") else '["TOP SECRET"]')
    (run / name).symlink_to(secret)
    if name == "LICENSE":
        (run / "card.yaml").write_text("license: other\nlicense_name: mine\nlicense_link: LICENSE\n")
    said = poa("push", run, "--size", "small", "--namespace", "me", status=2)
    assert f"{name} leads to a file outside" in said
    assert not any(b"TOP SECRET" in content for _, content in uploaded(hub))
    assert "leads to a file outside" in poa("extract", run, "--size", "small", "--output", tmp_path / "x", status=2)
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_that_is_a_link_is_not_published(tmp_path, poa, hub):
    save_run(PoaForPreTraining(tiny_config()), tmp_path / "elsewhere" / "checkpoint-5")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint-5").symlink_to(tmp_path / "elsewhere" / "checkpoint-5")
    assert "leads to a file outside" in poa("push", tmp_path / "run", "--size", "small", "--namespace", "me", status=2)


def test_links_within_a_run_and_to_a_run_are_followed(tmp_path, vit_run):
    (tmp_path / "latest").symlink_to(vit_run)
    release = Release.from_run(tmp_path / "latest", "small", "me")
    (tmp_path / "files").mkdir()
    assert "model.safetensors" in release.supernet_files(tmp_path / "files", {}).model


@pytest.mark.parametrize(
    "about",
    [
        "Hello <script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[click](javascript:alert(1))",
        "[click]( JavaScript:alert(1))",
        "[a]: data:text/html,x",
        "<!-- hidden -->",
    ],
)
def test_html_in_the_owners_text_is_refused(about):
    with pytest.raises(ValueError, match="write plain Markdown"):
        OwnerFacts(about=about)


def test_plain_markdown_of_the_owner_is_taken():
    about = "*Leaves* of <https://example.org>, 3 < 4; training data: [these](https://example.org/a_(b))."
    assert OwnerFacts(about=about).about == about


def test_the_address_of_a_link_cannot_end_it():
    assert link("a", "https://x.org/a)<script>") == "[a](https://x.org/a%29%3Cscript%3E)"
    assert link("a", "https://x.org/a%20b?c=1&d#e") == "[a](https://x.org/a%20b?c=1&d#e)"


@pytest.mark.parametrize(
    "template", ["{size:>99999999999}", "{size!r}", "{size.__class__}", "{width[0]}", "{size:{width}}"]
)
def test_templates_of_names_are_plain(template):
    config = tiny_backbone()
    with pytest.raises(ValueError, match="--name_template"):
        repo_name(config, config.space.full, template)


def test_metadata_of_published_weights_names_no_path(tmp_path, vit_run):
    """transformers writes no more than the format."""
    from safetensors import safe_open

    with safe_open(vit_run / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
