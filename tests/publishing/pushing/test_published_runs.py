import shutil

import pytest
import torch

from poa_hf import PoaConfig, PoaForPreTraining, PoaResNetConfig
from poa_hf.evaluation.subject import load_subject
from poa_hf.runs.evaluations import save_evaluations

from ...conftest import save_run, tiny_config
from .pushes import MIDDLE, SMALL, SUPERNET, TWO, record


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
