"""A run has one precision, whether its arguments or the launcher ask for it, and all that depends on it agrees."""

import json

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from poa_hf import PoaTrainer
from poa_hf.training.checks import check_run
from poa_hf.training.console import start_facts
from poa_hf.training.distillation import teacher_features
from poa_hf.training.gram import gram_teacher
from poa_hf.training.speed import SpeedLog

from .test_gram import anchored, dinov2
from .test_trainer import arguments, images, new_model


@pytest.fixture(params=["bf16", "no", None])
def launched(request, monkeypatch) -> bool:
    """What `accelerate launch --mixed_precision` asks for, if it launches at all; whether it is bfloat16."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if request.param is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", request.param)
    return request.param == "bf16"


def test_a_run_says_and_saves_the_precision_that_the_launcher_asks_for(launched, tmp_path, monkeypatch):
    trainer = PoaTrainer(new_model(), arguments(tmp_path, max_steps=1, quiet=True), images())
    assert trainer.accelerator.mixed_precision == ("bf16" if launched else "no")
    facts = start_facts(trainer.model, trainer.loader, trainer.args, trainer.state)
    assert ("bfloat16" if launched else "float32") in facts["device"]
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    speed = SpeedLog(trainer.model.config, trainer.args, torch.device("cuda"), None)
    assert speed.peak == (312e12 if launched else 19.5e12)
    trainer.train()
    assert json.loads((tmp_path / "training_args.json").read_text())["bf16"] is launched


def test_half_precision_attention_may_have_it_from_the_launcher(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedModel.set_attn_implementation", lambda self, name: None)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_run(new_model().config, arguments(tmp_path, attn_implementation="flash_attention_2"))


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_other_precisions_of_the_launcher_are_refused(precision, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    with pytest.raises(ValueError, match=f"^The launcher's mixed_precision {precision} is not supported.*: use bf16.$"):
        PoaTrainer(new_model(), arguments(tmp_path / "run"), images())
    with pytest.raises(ValueError, match="use bf16"):
        check_run(new_model().config, arguments(tmp_path / "run"))
    trainer = PoaTrainer(new_model(), arguments(tmp_path / "run", bf16=True), images())
    assert trainer.accelerator.mixed_precision == "bf16", "the argument comes first"


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_frozen_teachers_compute_in_it_under_deepspeed_too(bf16, dtype, tmp_path):
    accelerator = Accelerator(cpu=True, mixed_precision="no")  # as DeepSpeed's is: it has an autocast of its own
    args = arguments(tmp_path, bf16=bf16)
    foreign = teacher_features(new_model(), args, dinov2(), images(), accelerator)
    gram = gram_teacher(anchored(), args, dinov2(), accelerator)
    for teacher in (foreign.teacher, gram.teacher):
        computed = []
        layer = next(module for module in teacher.model.modules() if isinstance(module, nn.Linear))
        layer.register_forward_hook(lambda module, inputs, output, computed=computed: computed.append(output.dtype))
        assert teacher(torch.randn(2, 3, 32, 32), (4, 4)).images.dtype == torch.float32
        assert computed == [dtype]
