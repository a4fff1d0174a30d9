import json
import re

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModel

from poa_hf import PoaForPreTraining, load_official_checkpoint
from poa_hf.cli.main import main
from poa_hf.official.config import checkpoint_config

from ..conftest import FAMILIES, GOLDEN_BACKBONES, golden, golden_config, golden_sub_network, golden_weights


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the golden weights as checkpoints, and what weights do not show of them as configurations."""
    for family in FAMILIES:
        torch.save({"teacher": golden_weights(family)}, tmp_path / f"{family}.pth")
        section = {"model": {"backbone_config": GOLDEN_BACKBONES[family]}}
        (tmp_path / f"{family}.yaml").write_text(yaml.safe_dump(section))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def convert(folder, capsys):
    """Runs the command on a checkpoint, by default of its own name's family; gives what it printed."""

    def run(checkpoint: str, *options: str, family: str | None = None, status: int = 0) -> str:
        family = family or checkpoint.split(".")[0]
        argv = ["convert", checkpoint, "--family", family, "--output", "model", "--config", f"{family}.yaml", *options]
        assert main(argv) == status
        out, err = capsys.readouterr()
        if status:
            assert err.startswith("poa: ") and err.count("\n") == 1 and "Traceback" not in err, err
            assert not list(folder.glob(".unfinished-*"))
        return err if status else out

    return run


def same(a: PoaForPreTraining, b: PoaForPreTraining) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_extracted_sizes_give_the_recorded_features(convert, folder, family):
    printed = convert(f"{family}.pth")
    assert "2 read (24 + 40 prototypes)" in printed and "next: poa extract model --size" in printed
    tensors, _ = golden(family)
    steps = {golden_sub_network(family, step): step for step in range(3)}
    assert len(steps) > 1
    assert main(["extract", "model", "--size", ",".join(map(str, steps)), "--output", "sizes"]) == 0
    for size, step in steps.items():
        model = AutoModel.from_pretrained(folder / "sizes" / str(size)).eval()
        with torch.no_grad():
            features = model(tensors["batch/global_crops"]).pooler_output.flatten(1)
        torch.testing.assert_close(features, tensors[f"feat{step}/student/global_cls"], rtol=0, atol=1e-5)


def test_what_is_written_is_the_model_of_a_run(convert, folder, capsys):
    convert("vit.pth")
    model = PoaForPreTraining.from_pretrained("model")
    assert same(model, load_official_checkpoint(golden_weights("vit"), golden_config("vit")))
    record = json.loads((folder / "model" / "conversion.json").read_text())
    assert record == {"source": "vit.pth", "family": "vit", "heads": "read", "not_read": {}}
    assert main(["select", "model", "--max_params", "100k"]) == 0
    assert "48x3" in capsys.readouterr().out
    assert main(["extract", "model", "--size", "all", "--output", "sizes"]) == 0
    assert len(list((folder / "sizes").iterdir())) == len(model.config.backbone_config.space) == 9
    assert json.loads((folder / "sizes" / "32x2" / "preprocessor_config.json").read_text())["crop_size"]["height"] == 32


def test_every_key_that_is_not_read_is_listed(convert, folder):
    weights = golden_weights("swin")
    unused = [name for name in weights if "relative_position_index" in name or ".norm0." in name or ".norm1." in name]
    unused = [name for name in unused if ".blocks." not in name or "index" in name]
    training = {f"{branch}.{name}": tensor for branch in ("student", "teacher") for name, tensor in weights.items()}
    training["dino_loss.center"] = torch.zeros(1, 3)
    torch.save({"model": training, "optimizer": {}, "iteration": 3}, "training.pth")
    printed = convert("training.pth", family="swin")
    not_read = json.loads((folder / "model" / "conversion.json").read_text())["not_read"]
    students = {f"student.{name}" for name in weights}
    assert not_read.keys() > {"optimizer", "iteration", "dino_loss.center", *unused, *students}
    assert all(key in printed for key in not_read)
    torch.save({"model": {**training, "teacher.ema_rate": torch.ones(1)}, "swa": {}}, "training.pth")
    refused = convert("training.pth", "--overwrite", family="swin", status=2)
    assert "2 keys" in refused and "would not be read: ema_rate, swa." in refused


def test_absent_heads_are_new_and_this_is_said(convert, folder):
    torch.save({n: t for n, t in golden_weights("vit").items() if n.startswith("backbone.")}, "vit.pth")
    (folder / "vit.yaml").write_text(
        yaml.safe_dump({"model": {"num_prototypes": [12], "backbone_config": GOLDEN_BACKBONES["vit"]}})
    )
    printed = convert("vit.pth")
    assert "heads: none in the file, so 1 are new (12 prototypes)" in printed and "untrained heads" in printed
    assert json.loads((folder / "model" / "conversion.json").read_text())["heads"] == "initialised"
    assert PoaForPreTraining.from_pretrained("model").config.num_prototypes == [12]


@pytest.mark.parametrize("form", ["module.", "teacher.module.", "module.teacher.", "_orig_mod.", "bare", "chunked"])
def test_names_as_wrappers_leave_them(convert, folder, form):
    weights = golden_weights("vit")
    if form == "bare":
        section = {"num_prototypes": [12], "head_hidden_size": 8, "backbone_config": GOLDEN_BACKBONES["vit"]}
        (folder / "vit.yaml").write_text(yaml.safe_dump({"model": section}))
        weights = {n.removeprefix("backbone."): t for n, t in weights.items() if n.startswith("backbone.")}
    elif form == "chunked":
        weights = {n.replace("blocks.", "blocks.0.") if ".blocks." in n else n: t for n, t in weights.items()}
    else:
        weights = {f"{form}{name}": tensor for name, tensor in weights.items()}
    torch.save(weights, "vit.pth")
    convert("vit.pth")
    expected = load_official_checkpoint(golden_weights("vit"), golden_config("vit"))
    assert same(PoaForPreTraining.from_pretrained("model").teacher, expected.teacher)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_float32(convert, dtype):
    weights = {name: tensor.to(dtype) for name, tensor in golden_weights("vit").items()}
    save_file(weights, "vit.safetensors")
    assert str(dtype).removeprefix("torch.") in convert("vit.safetensors")
    model = PoaForPreTraining.from_pretrained("model")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.teacher.embeddings.cls_token, weights["backbone.cls_token"].float())


@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("names", ["elastic", "plain"])
def test_extracted_files_are_refused_with_the_reason(convert, family, names):
    final = {"vit": "backbone.norm.", "swin": "backbone.norm3."}[family]
    weights = {n: t for n, t in golden_weights(family).items() if n.startswith("backbone.") and final not in n}
    if names == "plain":
        weights = {
            name.removeprefix("backbone.").replace(".linear.", ".").replace(".norm.", "."): tensor
            for name, tensor in weights.items()
        }
    torch.save(weights, "extracted.pth")
    refused = convert("extracted.pth", family=family, status=2)
    assert "without the final LayerNorm" in refused and "teacher_checkpoint.pth that it was cut from" in refused


def test_an_extracted_resnet_is_refused_by_its_names(convert):
    weights = golden_weights("resnet")
    torch.save({n.replace(".conv.", "."): t for n, t in weights.items() if "head" not in n}, "extracted.pth")
    assert "one network under plain names" in convert("extracted.pth", family="resnet", status=2)


def changed(family: str, **tensors) -> dict:
    return {**golden_weights(family), **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (lambda: golden_weights("swin"), "looks like a swin of the authors' code, not a vit: give --family swin"),
        (lambda: golden_weights("resnet"), "looks like a resnet"),
        (lambda: {"encoder.layer.0.weight": torch.ones(1)}, "no weights under the authors' names"),
        (lambda: {}, r"no weights under the authors' names \(no weights\)"),
        (lambda: {"_fsdp_wrapped_module._flat_param": torch.ones(9)}, "one process's part of a training state"),
        (lambda: changed("vit", backbone__extra=torch.ones(1)), "1 keys .* would not be read: backbone.extra."),
        (lambda: changed("vit", module__backbone__cls_token=torch.ones(1)), "holds backbone.cls_token twice"),
        (lambda: changed("vit", backbone__cls_token=torch.full((1, 1, 64), torch.nan)), "1 weights .* finite numbers"),
        (lambda: changed("vit", backbone__cls_token=torch.ones(1, 1, 64).to_sparse()), "not plain tensors"),
        (lambda: changed("vit", backbone__cls_token=torch.ones(1, 1, 64, device="meta")), "not plain tensors"),
        (lambda: changed("vit", backbone__cls_token=torch.ones(1, 1, 64).int()), "not floating-point"),
        (lambda: changed("vit", backbone__cls_token=torch.ones(1, 1, 32)), r"cls_token has shape \(1, 1, 32\) where"),
        (lambda: changed("vit", backbone__pos_embed=torch.ones(1, 16, 64)), "15 positions, which do not form a square"),
        (lambda: changed("vit", backbone__pos_embed=torch.ones(64)), "no checkpoint of this family has"),
        (lambda: {n: t for n, t in golden_weights("vit").items() if ".blocks.1." not in n}, "lacks block 1"),
        (lambda: {n: t for n, t in golden_weights("vit").items() if "mask" not in n}, "lacks 1 parameters"),
        (lambda: {n: t for n, t in golden_weights("vit").items() if "pos_embed" not in n}, "shows its size"),
    ],
)
def test_what_does_not_fit_is_refused(convert, folder, weights, words):
    torch.save(weights(), "vit.pth")
    assert re.search(words, convert("vit.pth", status=2))
    assert not (folder / "model").exists()


def test_files_that_cannot_be_read_are_refused(convert, folder):
    (folder / "vit.pth").write_bytes((folder / "vit.pth").read_bytes()[:2000])
    assert "damaged or cut short" in convert("vit.pth", status=2)
    assert "is a folder" in convert(".", family="vit", status=2)
    assert "does not exist" in convert("none.pth", family="vit", status=2)
    assert not (folder / "model").exists()


def test_configurations_that_do_not_fit_are_refused(convert, folder, capsys):
    assert "--family is 'dinov2': choose from vit, swin, resnet." in convert("vit.pth", family="dinov2", status=2)
    assert "model_type poa_vit, and the checkpoint is a poa_swin" in convert(
        "swin.pth", "--config", "vit.yaml", status=2
    )
    (folder / "other.yaml").write_text("model: {backbone_config: {model_type: poa_vit, num_hidden_layers: 5}}")
    refused = convert("vit.pth", "--config", "other.yaml", status=2)
    assert "other.yaml has model.backbone_config.num_hidden_layers 5 where the checkpoint has 4" in refused
    (folder / "other.yaml").write_text("model: {num_prototypes: [24], backbone_config: {model_type: poa_vit}}")
    assert "num_prototypes [24] where the checkpoint has [24, 40]" in convert(
        "vit.pth", "--config", "other.yaml", status=2
    )
    (folder / "other.yaml").write_text("model: {backbone_config: {image_sise: 224}}")
    assert "did you mean model.backbone_config.image_size?" in convert("swin.pth", "--config", "other.yaml", status=2)
    (folder / "other.yaml").write_text("dataset_name: textures")
    assert "no `model:` section" in convert("vit.pth", "--config", "other.yaml", status=2)
    assert main(["convert", "vit.pth", "--family", "vit", "--output", "model"]) == 2
    refused = capsys.readouterr().err
    assert (
        "hidden_size 64, num_hidden_layers 4, which is not the published poa_vit" in refused and "--config" in refused
    )


def test_existing_output_is_kept(convert, folder, monkeypatch):
    convert("vit.pth")
    assert "exists: give another --output, or --overwrite" in convert("vit.pth", status=2)
    convert("swin.pth", "--overwrite")
    assert PoaForPreTraining.from_pretrained("model").config.backbone_config.model_type == "poa_swin"

    def fails(*args, **options):
        raise OSError("No space left on device")

    monkeypatch.setattr(PoaForPreTraining, "save_pretrained", fails)
    assert "No space left" in convert("vit.pth", "--overwrite", status=2)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert PoaForPreTraining.from_pretrained("model").config.backbone_config.model_type == "poa_swin"
    (folder / "model" / "checkpoint-3").mkdir()
    assert "holds more than a converted model" in convert("vit.pth", "--overwrite", status=2)


def published(family: str) -> dict[str, torch.Tensor]:
    """The parameters that show sizes, of the published supernet, without storage."""

    def empty(*shape):
        return torch.empty(shape, device="meta")

    if family == "vit":
        weights = {"patch_embed.proj.weight": empty(1024, 3, 16, 16), "pos_embed": empty(1, 197, 1024)}
        for block in range(24):
            name = f"blocks.{block // 6}.{block}"
            weights |= {f"{name}.mlp.fc1.linear.weight": empty(4096, 1024), f"{name}.attn.qkv.linear.bias": empty(3072)}
    elif family == "swin":
        weights = {"patch_embed.proj.weight": empty(128, 3, 4, 4)}
        for stage, depth in enumerate((2, 2, 18, 2)):
            for block in range(depth):
                name, width = f"stages.{stage}.blocks.{block}", 128 * 2**stage
                weights[f"{name}.attn.w_msa.relative_position_bias_table"] = empty(169, width // 16)
                weights[f"{name}.attn.w_msa.qkv.linear.bias"] = empty(3 * width)
                weights[f"{name}.ffn.fc1.linear.weight"] = empty(4 * width, width)
    else:
        weights = {"conv1.weight": empty(64, 3, 7, 7)}
        for stage, depth in enumerate((3, 8, 36, 3)):
            for block in range(depth):
                name = f"layer{stage + 1}.layers.{block}"
                weights[f"{name}.conv1.conv.weight"] = empty(128 * 2**stage, 64, 1, 1)
                weights[f"{name}.conv3.conv.weight"] = empty(256 * 2**stage, 128 * 2**stage, 1, 1)
    return {f"backbone.{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(("family", "sizes"), [("vit", 143), ("swin", 39), ("resnet", 465)])
def test_the_published_sizes_need_no_configuration(family, sizes):
    weights = published(family)
    config = checkpoint_config(weights, f"poa_{family}")
    default = type(config)(backbone_config={"model_type": f"poa_{family}"})
    assert config.to_dict() == default.to_dict() and len(config.backbone_config.space) == sizes
    head = {"mlp0.0.linear.weight": (96, 1), "mlp0.2.weight": (96, 96), "last_layer0.weight_v": (30, 12)}
    heads = {f"dino_head.{name}": torch.empty(shape, device="meta") for name, shape in head.items()}
    config = checkpoint_config({**weights, **heads}, f"poa_{family}")
    assert (config.head_num_layers, config.head_hidden_size, config.head_bottleneck_size) == (2, 96, 12)
    assert config.num_prototypes == [30]


def test_images_of_another_size_are_seen():
    weights = published("vit") | {"backbone.pos_embed": torch.empty(1, 1 + 32**2, 1024, device="meta")}
    assert checkpoint_config(weights, "poa_vit").backbone_config.image_size == 512
