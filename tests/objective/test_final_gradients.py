"""Layers get their gradients one after the other, in the backward pass of the loss."""

import pytest
import torch

from poa_hf import PoaForPreTraining, SubNetwork
from poa_hf.models import modeling_poa_pretraining
from poa_hf.models.activation_checkpointing import enable_activation_checkpointing
from poa_hf.models.compiled_blocks import BlockCompiler
from poa_hf.objective.distillation import DistillationSpec
from poa_hf.objective.feature_matching import TeacherFeatures

from ..conftest import random_batch, tiny_config

SIZE = SubNetwork(16, 2)
# Of the model and of the step.
CASES = {
    "usual": ({}, {}),
    "intact student alone": ({"intact_weight": 1.0}, {}),
    "features of a teacher": ({"distillation": "features"}, {}),
    "prototypes of a teacher": ({"distillation": "prototypes"}, {}),
    "packed": ({}, {"pack_crops": True}),
    "features of a teacher, packed": ({"distillation": "features"}, {"pack_crops": True}),
    "no local crops": ({}, {"num_local": 0}),
    "anchored patches, no local crops": ({"gram_weight": 2.0}, {"num_local": 0}),
    "anchored patches, packed": ({"gram_weight": 2.0}, {"pack_crops": True}),
    "features of a teacher, anchored patches": ({"distillation": "features", "gram_weight": 2.0}, {}),
    "nothing predicted": ({}, {"predict_masked_patches": False}),
    "checkpointed": ({"checkpointed": True}, {}),
    "compiled": ({"compiled": True}, {}),
    "bfloat16": ({}, {"dtype": torch.bfloat16}),
}


@pytest.fixture(autouse=True)
def _several_processes(monkeypatch):
    monkeypatch.setattr(modeling_poa_pretraining, "several_processes", lambda: True)


def new_model(distillation=None, checkpointed=False, compiled=False, **fields) -> PoaForPreTraining:
    model = PoaForPreTraining(tiny_config(**fields)).train()
    if distillation is not None:
        model.distil_from(DistillationSpec("theirs", distillation, "cosine", image_features=12, patch_features=12))
    if checkpointed:
        enable_activation_checkpointing(model)
    if compiled:
        model.compile_blocks(BlockCompiler(backend="aot_eager"))
    return model


def inputs_of(model, num_local=2, dtype=None, **fields) -> tuple[torch.dtype | None, dict]:
    if model.distillation is not None:
        fields["teacher_features"] = TeacherFeatures(torch.randn(8, 12), torch.randn(8, 16, 12))
    if model.config.gram_weight:
        fields["gram_features"] = torch.randn(8, 16, 20)
    return dtype, {**random_batch(num_local=num_local), "sub_network": SIZE, "teacher_temperature": 0.07, **fields}


cases = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case == "compiled" else case for case in CASES]
)


@cases
def test_later_layers_are_done_before_earlier_ones_are_differentiated(case):
    """What the first block computed last gets its gradient when those of the heads and later blocks are complete."""
    of_model, of_step = CASES[case]
    model = new_model(**of_model)
    dtype, inputs = inputs_of(model, **of_step)
    learning = [p for module in model.learning for p in module.parameters() if p.requires_grad]
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    events = []
    for parameter in learning:
        parameter.register_post_accumulate_grad_hook(lambda p: events.append(names[p]))

    def watch(_, inputs):
        if inputs[0].requires_grad:
            inputs[0].register_hook(lambda gradient: events.append("first block"))

    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        whole = model.config.intact_weight == 1
        last = model.student if whole else model.student.sliced(SIZE, dtype, model._compiler).plain
        hook = last.encoder.layer[1].register_forward_pre_hook(watch)
        loss = model(**inputs).loss
        hook.remove()
    events.clear()  # those of earlier passes
    loss.backward()

    assert events.count("first block") == 1 and len(events) == 1 + len(learning)
    layers = [int(name.split(".")[3]) for name in events if "encoder.layer." in name]
    assert layers == sorted(layers, reverse=True)
    done = events[: events.index("first block")]
    later = {name for name in names.values() if not name.startswith("student.")}
    later |= {name for name in names.values() if name.startswith("student.encoder.layer.2.")}
    assert later <= set(done) and len(later) > 16
    # the whole model's last pass, over local crops, has no use for the mask token: it is complete from the start
    earlier = {name for name in done if "layer.0." in name or "embeddings" in name}
    assert earlier <= ({"student.embeddings.mask_token"} if whole else set())


@cases
def test_gradients_are_those_of_a_pass_that_is_differentiated_at_once(case, monkeypatch):
    of_model, of_step = CASES[case]
    model = new_model(**of_model)
    dtype, inputs = inputs_of(model, **of_step)

    def gradients():
        model.zero_grad()
        for scale in (1.0, 0.5):  # accumulated
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
                loss = model(**inputs).loss
            (scale * loss).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    found = gradients()
    monkeypatch.setattr(modeling_poa_pretraining, "several_processes", lambda: False)
    at_once = gradients()
    assert found.keys() == at_once.keys() and len(found) > 50
    assert all(torch.equal(found[name], at_once[name]) for name in found)
