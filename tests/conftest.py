"""Shared small things: golden values, a tiny elastic model, runs of other processes."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from poa_hf import PoaConfig, PoaForPreTraining, PoaViTConfig, SubNetwork, load_official_checkpoint
from poa_hf.cli.main import main

from .loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")
TINY = "--model.backbone_config.num_hidden_layers 2 --model.backbone_config.min_num_hidden_layers 1 --disable_tqdm "
TINY += "--per_device_train_batch_size 4 --dataloader_num_workers 0 --logging_steps 2 --max_steps 2"
GOLDEN = ROOT / "tests" / "fixtures" / "golden"


@pytest.fixture(autouse=True)
def _fresh_process_state():
    """Each test starts with its own random state and no Accelerate state of another test."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    torch.manual_seed(0)
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def slow_but(kinds, *fast) -> list:
    """Parameters of a test, of which all but a few are marked as slow."""
    return [kind if kind in fast else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


FAMILIES = ["vit", "swin", "resnet"]
GOLDEN_BACKBONES = {
    "vit": dict(
        model_type="poa_vit", hidden_size=64, num_hidden_layers=4, num_attention_heads=4, min_hidden_size=32,
        min_num_hidden_layers=2, image_size=32, patch_size=8, drop_path_rate=0.0,
    ),
    "swin": dict(
        model_type="poa_swin", embed_dim=16, depths=[2, 2, 4, 2], num_heads=[4, 8, 16, 32], window_size=2,
        image_size=128, min_embed_dim=8, min_depths=[2, 2, 2, 2], drop_path_rate=0.0,
    ),
    "resnet": dict(
        model_type="poa_resnet", embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[1, 2, 3, 1], base_width=16,
        num_groups=4, min_base_width=8, min_depths=[1, 1, 1, 1], image_size=64,
    ),
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@functools.cache
def golden(family: str) -> tuple[dict[str, torch.Tensor], dict]:
    """Recorded tensors and json of a family."""
    tensors = load_file(GOLDEN / f"{family}.safetensors")
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    return tensors, json.loads((GOLDEN / f"{family}.json").read_text())


def golden_config(family: str) -> PoaConfig:
    return PoaConfig(
        backbone_config=GOLDEN_BACKBONES[family], head_hidden_size=32, head_bottleneck_size=16, num_prototypes=[24, 40]
    )


def golden_weights(family: str) -> dict[str, torch.Tensor]:
    """The recorded student under the authors' names."""
    return {n.removeprefix("student/"): t for n, t in golden(family)[0].items() if n.startswith("student/")}


def golden_model(family: str) -> PoaForPreTraining:
    config, student = golden_config(family), golden_weights(family)
    teacher = {name: 0.9 * t if t.is_floating_point() and "weight_g" not in name else t for name, t in student.items()}
    model, teacher = load_official_checkpoint(student, config), load_official_checkpoint(teacher, config)
    model.teacher.load_state_dict(teacher.student.state_dict())
    model.teacher_head.load_state_dict(teacher.student_head.state_dict())
    return model


def golden_sub_network(family: str, step: int) -> SubNetwork:
    """What was recorded as `[width, depth]`; Swin's third stage, all stages of ResNet."""
    width, depths = golden(family)[1]["steps"][step]["sub_network"]
    if family == "swin":
        return SubNetwork(width, (2, 2, depths, 2))
    return SubNetwork(width, depths) if family == "vit" else SubNetwork(width[0], depths)


def tiny_backbone(**overrides) -> PoaViTConfig:
    fields = dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, min_hidden_size=16, min_num_hidden_layers=1,
        image_size=32, patch_size=8, layerscale_value=0.1, drop_path_rate=0.0,
    )  # fmt: skip
    return PoaViTConfig(**{**fields, **overrides})


def tiny_config(backbone=None, **overrides) -> PoaConfig:
    fields = dict(head_hidden_size=24, head_bottleneck_size=8, num_prototypes=[12, 20])
    return PoaConfig(backbone_config=backbone or tiny_backbone(), **{**fields, **overrides})


@pytest.fixture
def tiny_model() -> PoaForPreTraining:
    return PoaForPreTraining(tiny_config())


def random_batch(num_images: int = 4, num_local: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    """Inputs of `PoaForPreTraining.forward` for the tiny model: 32 and 16 pixels, half of the views masked."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(2 * num_images, 16, generator=generator) < 0.3
    masks[::2] = False
    return {
        "global_crops": torch.randn(2 * num_images, 3, 32, 32, generator=generator),
        "local_crops": torch.randn(num_local * num_images, 3, 16, 16, generator=generator),
        "masks": masks,
    }


def run_python(*argv: str, env: dict | None = None, timeout: float = 120, check: bool = True, cwd=None):
    """Run the interpreter of the tests on `argv`, with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(env or {})}
    result = subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=timeout, env=environment, cwd=cwd
    )
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


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
