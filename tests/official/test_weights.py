import pickle

import pytest
import torch

from poa_hf import PoaConfig, PoaForPreTraining, load_official_checkpoint
from poa_hf.official.names import parameter_names
from poa_hf.official.weights import to_our_layout

from ..conftest import FAMILIES, golden_config, golden_weights


@pytest.fixture
def weights(family):
    return golden_weights(family)


@pytest.fixture
def config(family):
    return golden_config(family)


def same(a: PoaForPreTraining, b: PoaForPreTraining) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("key", [None, "teacher", "student"])
def test_files_are_read_like_mappings(weights, config, tmp_path, key):
    expected = load_official_checkpoint(weights, config)
    torch.save({key: weights} if key else weights, tmp_path / "checkpoint.pth")
    assert same(load_official_checkpoint(tmp_path / "checkpoint.pth", config), expected)
    assert same(load_official_checkpoint(str(tmp_path / "checkpoint.pth"), config), expected)


def test_student_and_teacher_both_get_the_weights(weights, config, family):
    model = load_official_checkpoint(weights, config)
    parameters, used = dict(model.named_parameters()), 0
    for name, tensor in weights.items():
        if parts := parameter_names(name, f"poa_{family}"):
            ours = torch.cat([parameters[part] for part in parts])
            assert torch.equal(ours.flatten(), to_our_layout(name, tensor).flatten()), name
            used += len(parts)
    assert used == len([name for name in parameters if name.startswith("student")])
    pairs = zip(model.teacher.parameters(), model.student.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_blocks_in_chunks_are_found():
    assert parameter_names("backbone.blocks.2.17.attn.proj.linear.bias", "poa_vit") == [
        "student.encoder.layer.17.attention.o_proj.bias"
    ]


def test_merged_patches_change_their_order():
    """Stock Swin puts the left column's two neighbours first, the authors' the upper row's."""
    tensor = torch.arange(8.0)
    assert to_our_layout("backbone.stages.0.downsample.norm.norm.weight", tensor).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert to_our_layout("backbone.layer1.layers.0.downsample.1.weight", tensor) is tensor


def test_what_cannot_be_exact_is_said(caplog):
    for family in FAMILIES:
        caplog.clear()
        load_official_checkpoint(golden_weights(family), golden_config(family))
        said = [record.message for record in caplog.records if "differ slightly from the authors'" in record.message]
        assert len(said) == (family == "swin")


def test_missing_heads_stay_as_initialised(weights, config):
    backbone = {name: t for name, t in weights.items() if name.startswith("backbone")}
    model = load_official_checkpoint(backbone, config)
    names = [name for name in backbone if parameter_names(name, config.backbone_config.model_type)]
    (ours,) = parameter_names(names[-1], config.backbone_config.model_type)
    assert torch.equal(dict(model.named_parameters())[ours].flatten(), backbone[names[-1]].flatten())
    assert torch.equal(model.student_head[0].prototypes.weight_g, torch.ones(24, 1))


def test_what_does_not_fit_is_refused(weights, config, family):
    with pytest.raises(ValueError, match=f"1 names are not those of the authors' poa_{family} .backbone.stages.0.x"):
        load_official_checkpoint({**weights, "backbone.stages.0.x": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match="lacks 1 parameters .student.*mask_token"):
        load_official_checkpoint({n: t for n, t in weights.items() if n != "backbone.mask_token"}, config)
    with pytest.raises(ValueError, match=r"backbone.mask_token has shape \(1, 7\) where .*\(1, "):
        load_official_checkpoint({**weights, "backbone.mask_token": torch.zeros(1, 7)}, config)


@pytest.mark.parametrize("broken", [float("nan"), "meta", "sparse"])
def test_weights_without_finite_numbers_are_refused(weights, config, broken):
    name, tensor = next((name, tensor) for name, tensor in weights.items() if name.startswith("dino_head"))
    kinds = {"meta": lambda: tensor.to("meta"), "sparse": tensor.to_sparse}
    bad = kinds[broken]() if broken in kinds else torch.full_like(tensor, broken)
    with pytest.raises(ValueError, match=f"1 weights are not plain tensors of finite numbers .{name}"):
        load_official_checkpoint({**weights, name: bad}, config)


def test_configurations_that_the_authors_never_had_are_refused(weights, config):
    fields = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    for model_type in ("poa_dinov3_vit", "poa_dinov2_with_registers"):
        other = PoaConfig(backbone_config={"model_type": model_type, **fields})
        with pytest.raises(ValueError, match=f"^The authors' code has no '{model_type}'"):
            load_official_checkpoint(weights, other)
    with pytest.raises(ValueError, match="^config is a Poa[A-Za-z]+Config: give the PoaConfig"):
        load_official_checkpoint(weights, config.backbone_config)


def test_a_checkpoint_of_another_family_is_refused(weights, family):
    other = {"vit": "swin", "swin": "resnet", "resnet": "vit"}[family]
    with pytest.raises(ValueError, match=f"names are not those of the authors' poa_{other}"):
        load_official_checkpoint(weights, golden_config(other))


def test_half_a_head_and_other_contents_are_refused(weights, config, tmp_path):
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


def test_files_that_would_run_code_are_refused(tmp_path):
    config = golden_config("vit")
    torch.save({"teacher": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ValueError, match="trap.pth holds more than tensors"):
        load_official_checkpoint(tmp_path / "trap.pth", config)
    (tmp_path / "text.pth").write_bytes(pickle.dumps("no checkpoint"))
    with pytest.raises(ValueError, match="text.pth"):
        load_official_checkpoint(tmp_path / "text.pth", config)
    with pytest.raises(ValueError, match="nowhere.pth does not exist"):
        load_official_checkpoint(tmp_path / "nowhere.pth", config)
