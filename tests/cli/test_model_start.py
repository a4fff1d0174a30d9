"""Where `poa pretrain` makes a model: on the run's device, unless weights are read, resized or ordered before."""

import pytest
import torch

from poa_hf import PoaConfig, PoaForPreTraining, PoaViTModel
from poa_hf.cli.main import main
from poa_hf.models import modeling_poa_pretraining
from poa_hf.training import engines

from ..conftest import QUICKSTART, TINY, tiny_backbone
from ..models.test_compiled_blocks import BACKBONES


class Made(Exception):
    """Ends a command where its model would be made."""


@pytest.fixture
def device(monkeypatch):
    """Returns the type of the device on which a command would make its model."""

    def of_command(*options: str) -> str:
        def make(config):
            raise Made(torch.get_default_device().type)

        with monkeypatch.context() as patched, pytest.raises(Made) as made:
            patched.setattr(modeling_poa_pretraining, "PoaForPreTraining", make)
            patched.setattr(engines, "device_of_process", lambda: torch.device("meta"))
            main(["pretrain", *options])
        return str(made.value)

    return of_command


def test_models_that_start_from_nothing_are_made_on_the_device(device, tmp_path):
    run, source = tmp_path / "run", str(tmp_path / "source")
    options = ["--config", QUICKSTART, *TINY.split(), "--output_dir", str(run)]
    crops = [
        "--dataset_name",
        "textures",
        "--global_crop_size",
        "32",
        "--local_crop_size",
        "16",
        "--output_dir",
        str(run),
    ]
    PoaViTModel(tiny_backbone()).save_pretrained(source)
    assert device(*options) == "meta"
    assert device("--config", "dinov2_large_warm_start", "--init_from", source, *crops) == "cpu"
    assert device(*options, "--order_units") == "cpu"
    assert main(["pretrain", *options]) == 0
    assert device(*options, "--max_steps", "3", "--resume_from_checkpoint") == "meta"


@pytest.mark.parametrize("family", BACKBONES)
def test_models_are_made_where_they_are_asked_for(family):
    """On the meta device, whose values nothing can read, so that a GPU has nothing to wait for."""
    with torch.device("meta"):
        model = PoaForPreTraining(PoaConfig(backbone_config=BACKBONES[family]))
    tensors = [*model.parameters(), *model.buffers()]
    assert tensors and all(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize(
    ("has_gpu", "environment", "expected"),
    [
        (True, {}, "cuda:0"),
        (True, {"LOCAL_RANK": "3"}, "cuda:3"),
        (True, {"LOCAL_RANK": "9"}, "cuda:1"),
        (True, {"LOCAL_RANK": "-1"}, "cuda:0"),
        (True, {"LOCAL_RANK": "3", "ACCELERATE_USE_CPU": "yes"}, "cpu"),
        (True, {"LOCAL_RANK": "0", "ACCELERATE_TORCH_DEVICE": "cuda:2"}, "cuda:2"),
        (True, {"ACCELERATE_TORCH_DEVICE": "xpu:1"}, "cpu"),
        (False, {"LOCAL_RANK": "3"}, "cpu"),
    ],
)
def test_the_device_is_that_of_the_process(has_gpu, environment, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name in ("LOCAL_RANK", "ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(engines.device_of_process()) == expected


@pytest.mark.parametrize(("name", "dtype"), [("model", "bfloat16"), ("model.backbone_config", "float16")])
def test_weights_of_half_precision_are_refused_by_the_name_of_the_option(name, dtype, tmp_path, capsys):
    assert (
        main(["pretrain", "--config", QUICKSTART, f"--{name}.dtype", dtype, "--output_dir", str(tmp_path / "run")]) == 2
    )
    assert f"poa: {name}.dtype is {dtype}, but weights are trained in float32: leave it out" in capsys.readouterr().err
