import pickle

import pytest
import torch

from poa_hf import PoaForPreTraining, load_official_checkpoint
from poa_hf.official import parameter_names


@pytest.fixture
def weights(golden_vit):
    return {name.removeprefix("student/"): t for name, t in golden_vit[0].items() if name.startswith("student/")}


def same(a: PoaForPreTraining, b: PoaForPreTraining) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("key", [None, "teacher", "student"])
def test_files_are_read_like_mappings(weights, golden_model, tmp_path, key):
    config, expected = golden_model.config, load_official_checkpoint(weights, golden_model.config)
    torch.save({key: weights} if key else weights, tmp_path / "checkpoint.pth")
    assert same(load_official_checkpoint(tmp_path / "checkpoint.pth", config), expected)
    assert same(load_official_checkpoint(str(tmp_path / "checkpoint.pth"), config), expected)


def test_student_and_teacher_both_get_the_weights(weights, golden_model):
    model = load_official_checkpoint(weights, golden_model.config)
    for name, tensor in weights.items():
        parts = [dict(model.named_parameters())[part] for part in parameter_names(name, "poa_vit")]
        assert torch.equal(torch.cat(parts), tensor)
    pairs = zip(model.teacher.parameters(), model.student.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_blocks_in_chunks_are_found():
    assert parameter_names("backbone.blocks.2.17.attn.proj.linear.bias", "poa_vit") == [
        "student.encoder.layer.17.attention.o_proj.bias"
    ]


def test_missing_heads_stay_as_initialised(weights, golden_model):
    backbone = {name: t for name, t in weights.items() if name.startswith("backbone")}
    model = load_official_checkpoint(backbone, golden_model.config)
    assert torch.equal(model.student.layernorm.weight, weights["backbone.norm.norm.weight"])
    assert torch.equal(model.student_head[0].prototypes.weight_g, torch.ones(24, 1))


def test_what_does_not_fit_is_refused(weights, golden_model):
    config = golden_model.config
    with pytest.raises(ValueError, match="1 names are not those of the authors' poa_vit .backbone.stages.0.x"):
        load_official_checkpoint({**weights, "backbone.stages.0.x": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match="lacks 1 parameters .student.embeddings.cls_token"):
        load_official_checkpoint({n: t for n, t in weights.items() if n != "backbone.cls_token"}, config)
    with pytest.raises(ValueError, match=r"backbone.cls_token has shape \(1, 1, 32\) where .* \(1, 1, 64\)"):
        load_official_checkpoint({**weights, "backbone.cls_token": torch.zeros(1, 1, 32)}, config)


def test_half_a_head_and_other_contents_are_refused(weights, golden_model, tmp_path):
    config = golden_model.config
    with pytest.raises(ValueError, match="lacks 1 parameters .student_head.1.prototypes.weight_g"):
        load_official_checkpoint({n: t for n, t in weights.items() if n != "dino_head.last_layer1.weight_g"}, config)
    with pytest.raises(ValueError, match="is not a mapping of names to tensors"):
        load_official_checkpoint({**weights, "backbone.cls_token": 3}, config)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"torn")
    with pytest.raises(ValueError, match="torn.safetensors"):
        load_official_checkpoint(torn, config)
    both = {f"{branch}.{name}": t for branch in ("student", "teacher") for name, t in weights.items()}
    torch.save({"model": both, "iteration": 3}, tmp_path / "training.pth")
    assert same(load_official_checkpoint(tmp_path / "training.pth", config), load_official_checkpoint(weights, config))


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def test_files_that_would_run_code_are_refused(golden_model, tmp_path):
    torch.save({"teacher": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="trap.pth holds more than tensors"):
        load_official_checkpoint(tmp_path / "trap.pth", golden_model.config)
    (tmp_path / "text.pth").write_bytes(pickle.dumps("no checkpoint"))
    with pytest.raises(ValueError, match="text.pth"):
        load_official_checkpoint(tmp_path / "text.pth", golden_model.config)
    with pytest.raises(ValueError, match="nowhere.pth does not exist"):
        load_official_checkpoint(tmp_path / "nowhere.pth", golden_model.config)
