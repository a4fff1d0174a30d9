"""A run to publish, and a Hub to publish it on."""

from pathlib import Path

import pytest
import torch

from poa_hf import PoaForPreTraining
from poa_hf.cli import main

from ..conftest import tiny_config
from ..loopback_hub import LoopbackHub


def save_run(model: PoaForPreTraining, folder: Path) -> Path:
    """A saved model whose teacher differs from its student."""
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit_run(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    return save_run(PoaForPreTraining(tiny_config()), tmp_path_factory.mktemp("runs") / "vit")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that this process takes for the real one; waiting takes no time."""
    monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with LoopbackHub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", "hf_me")
        yield hub


@pytest.fixture
def poa(capsys):
    """Runs the command; gives what it printed, after checking the status."""

    def run(*argv, status: int = 0) -> str:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == status, capsys.readouterr()
        printed = capsys.readouterr()
        if status == 2:
            last = printed.err.strip().splitlines()[-1]
            assert last.startswith("poa: ") and last.endswith("."), printed.err
            return last
        return printed.out

    return run
