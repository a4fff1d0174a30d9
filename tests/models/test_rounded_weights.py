"""Under autocast, each branch of a step rounds its weights once, for all its passes; autocast rounds none again."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from poa_hf import PoaForPreTraining
from poa_hf.slicing import Slice

from ..conftest import random_batch, tiny_backbone, tiny_config
from .test_compiled_blocks import BACKBONES, new_model, step


class Roundings(TorchDispatchMode):
    """Records which weights are rounded to bfloat16, one by one or in lists, and which slices are cut.

    Args:
        weights: Names of the weights by the address of their memory. Slices that are cut within the context join them.
    """

    def __init__(self, weights: dict[int, str]):
        super().__init__()
        self.weights, self.singles, self.lists, self.slices = weights, [], [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if str(function).startswith("aten._to_copy") and result.dtype == torch.bfloat16:
            name = self.weights.get(args[0].untyped_storage().data_ptr())
            self.singles += [name] if name else []
        if str(function).startswith("aten._foreach_copy_") and args[0][0].dtype == torch.bfloat16:
            self.lists.append([self.weights[tensor.untyped_storage().data_ptr()] for tensor in args[1]])
        return result


@pytest.fixture
def roundings(monkeypatch):
    """Makes what records the roundings of a model."""
    kept = []  # the slices, whose memory no other tensor gets meanwhile

    def new(model) -> Roundings:
        found = Roundings({p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()})
        cut_from = Slice.cut_from

        def recorded(cut, full, dtype=None):
            tensor = cut_from(cut, full, dtype)
            kept.append(tensor)
            found.slices += [] if cut.is_whole else [(cut.source, cut.shape)]
            found.weights.setdefault(tensor.untyped_storage().data_ptr(), f"slice of {cut.source}")
            return tensor

        monkeypatch.setattr(Slice, "cut_from", recorded)
        return found

    return new


@pytest.mark.parametrize("family", BACKBONES)
def test_autocast_rounds_no_weight_again(family, roundings):
    """Mask tokens, which belong to no layer that computes in half precision, are put beside what does."""
    model = new_model(family)
    with roundings(model) as found:
        step(model, next(iter(model.config.backbone_config.space)), torch.bfloat16)
    assert not [name for name in found.singles if "mask_token" not in name]
    assert found.lists and all(len(set(names)) == len(names) for names in found.lists)


@pytest.mark.parametrize("num_local", [0, 1, 4])
def test_weights_are_rounded_once_for_all_passes_of_a_branch(num_local, roundings):
    torch.manual_seed(0)
    model = PoaForPreTraining(tiny_config(tiny_backbone())).train()
    with roundings(model) as found, torch.autocast("cpu", torch.bfloat16):
        model(**random_batch(4, num_local), sub_network="16x2", teacher_temperature=0.05).loss.backward()
    # backbones and heads of the intact student and of the teacher; the elastic student has whole tensors in its heads
    modules = [{name.partition(".")[0] for name in names} for names in found.lists]
    assert modules == [{"student"}, {"student_head"}, {"teacher"}, {"teacher_head"}, {"student_head"}]
    assert [len(names) for names in found.lists[:2]] == [len(names) for names in found.lists[2:4]]
    assert found.slices and len(set(found.slices)) == len(found.slices)
