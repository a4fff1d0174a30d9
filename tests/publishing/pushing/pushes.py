"""What the tests of `poa push` push, and what may go wrong meanwhile."""

from poa_hf.hub.client import Hub
from poa_hf.publishing.push import PushOptions, push
from poa_hf.publishing.release import Release
from poa_hf.runs.evaluations import Evaluation

from ...conftest import tiny_backbone

SPACE = tiny_backbone().space
SUPERNET = "me/poa-vit-w32-d3-supernet"
SMALL, MIDDLE, LARGE = "me/poa-vit-w16-d1-extracted", "me/poa-vit-w24-d2-extracted", "me/poa-vit-w32-d3-extracted"
TWO = ("--size", "small,24x2", "--namespace", "me")
FAULTS = {
    "rate limit": {"status": 429, "headers": {"Retry-After": "2"}},
    "server error": {"status": 500},
    "gateway": {"status": 504},
    "dropped request": {"drop": "before"},
    "dropped answer": {"drop": "after"},
}


def pushed(run):
    """A push by Python, of two sizes."""
    return push(Release.from_run(run, "small,24x2", "me"), Hub(), PushOptions(), tell=lambda line: None)


def record(size, value, dataset="/home/someone/photos"):
    return Evaluation("run", size, "knn", "knn_accuracy", value, dataset, "test", 10, "2026-01-01", settings={"k": 20})


def assert_whole_or_empty(hub, expected):
    for repo in hub.repos.values():
        whole = expected["repos"][f"models/{repo.id}"]["main"]
        files = repo.files()
        assert not files or files.keys() == whole.keys() and files["config.json"] == whole["config.json"]
        assert files.get("model.safetensors") in (None, whole["model.safetensors"])


def hasten(patch, counted_once, pictures=False):
    patch.setattr("poa_hf.publishing.card.facts.costs", counted_once)
    if not pictures:
        patch.setattr("poa_hf.publishing.card.cards.draw_sizes", lambda *arguments: "")
    patch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
