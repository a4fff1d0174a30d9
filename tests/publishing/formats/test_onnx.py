import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from poa_hf import PoaForPreTraining, PoaSwinConfig, SubNetwork
from poa_hf.cli.main import main
from poa_hf.data.processor import evaluation_processor
from poa_hf.publishing.export import extract_to
from poa_hf.publishing.formats.snippets import onnx_hints

from ...conftest import golden_model, run_python, slow_but, tiny_backbone, tiny_config
from ...test_contract import tiny


def small_model(family: str) -> PoaForPreTraining:
    if family == "dinov2_registers":
        return tiny(family)
    if family != "swin":
        return golden_model(family)
    # with shifted windows, but fewer blocks than the golden one, which takes long to export
    backbone = PoaSwinConfig(
        embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=2, image_size=32, min_embed_dim=8, min_depths=[2, 1]
    )
    return PoaForPreTraining(tiny_config(backbone))


def largest_difference(folder, model, batch_sizes, image_size: int) -> float:
    """Between ONNX Runtime's and PyTorch's outputs, relative to the largest of each."""
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    found = 0.0
    for count in batch_sizes:
        pixels = torch.randn(count, 3, image_size, image_size)
        with torch.no_grad():
            expected = model(pixels)
        outputs = session.run(["last_hidden_state", "pooler_output"], {"pixel_values": pixels.numpy()})
        for name, output in zip(("last_hidden_state", "pooler_output"), outputs, strict=True):
            ours = expected[name].numpy()
            assert output.shape == ours.shape
            found = max(found, np.abs(output - ours).max() / np.abs(ours).max())
    return found


def dimensions(values) -> dict[str, list]:
    return {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in values
    }


@pytest.mark.parametrize(
    "family", slow_but(["vit", "swin", "resnet", "dinov2_registers", "swin of four stages"], "vit")
)
def test_onnx_runtime_gives_the_features_for_batches_of_any_size(family, tmp_path):
    model = golden_model("swin") if "stages" in family else small_model(family)
    size, pixels = model.config.backbone_config.space.smallest, model.config.backbone_config.image_size
    parameters = extract_to(model.eval(), size, tmp_path / "model", format="onnx")
    plain = model.teacher.extract(size)
    assert parameters == plain.num_parameters()
    assert largest_difference(tmp_path / "model", plain, (1, 2, 5), pixels) < 1e-5
    content = (tmp_path / "model" / "model.onnx").read_bytes()
    assert b".py" not in content and b"site-packages" not in content  # the exporter notes the files of this machine
    graph = onnx.load(tmp_path / "model" / "model.onnx")
    onnx.checker.check_model(graph)
    assert [(opset.domain, opset.version) for opset in graph.opset_import if not opset.domain] == [("", 18)]
    assert dimensions(graph.graph.input) == {"pixel_values": ["batch_size", 3, pixels, pixels]}
    outputs = dimensions(graph.graph.output)
    assert list(outputs) == ["last_hidden_state", "pooler_output"]
    assert {sizes[0] for sizes in outputs.values()} == {"batch_size"}


SNIPPET = """
import os, sys
import numpy as np
from PIL import Image
os.chdir(sys.argv[1])
image = Image.open("image.png")
{snippet}
assert "poa_hf" not in sys.modules
np.save("features.npy", features)
"""


def snippet_of(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


@pytest.mark.slow
def test_the_command_writes_what_the_card_says(tiny_model, tmp_path, capfd):
    model = tiny_model.eval()
    model.save_pretrained(tmp_path / "run")
    capfd.readouterr()
    arguments = ["extract", str(tmp_path / "run"), "--format", "onnx", "--output", str(tmp_path / "onnx")]
    assert main([*arguments, "--size", "16x1,24x1"]) == 0
    out, err = capfd.readouterr()
    assert out.count(" parameters -> ") == 2 and err == ""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)).save(
        tmp_path / "onnx" / "image.png"
    )
    card = (tmp_path / "onnx" / "16x1" / "README.md").read_text()
    assert "library_name: onnx" in card
    run_python("-I", "-c", SNIPPET.format(snippet=snippet_of(card)), str(tmp_path / "onnx"))
    pixels = evaluation_processor(32, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(
        Image.open(tmp_path / "onnx" / "image.png"), return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        expected = model.teacher(pixels, sub_network=SubNetwork(16, 1)).pooler_output
    np.testing.assert_allclose(np.load(tmp_path / "onnx" / "features.npy"), expected, rtol=0, atol=1e-5)


def test_a_fixed_batch(tmp_path, monkeypatch):
    """Also at another image size than the training's, as an image processor says it."""
    model = PoaForPreTraining(tiny_config(tiny_backbone(image_size=64))).eval()
    processor = evaluation_processor(32, [0.5] * 3, [0.5] * 3)
    size = SubNetwork(16, 1)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_text("an older one")
    extract_to(model, size, tmp_path / "model", format="onnx", processor=processor, overwrite=True, onnx_batch=3)
    assert largest_difference(tmp_path / "model", model.teacher.extract(size), (3,), 32) < 1e-5
    graph = onnx.load(tmp_path / "model" / "model.onnx").graph
    assert dimensions(graph.input) == {"pixel_values": [3, 3, 32, 32]}
    session = onnxruntime.InferenceSession(tmp_path / "model" / "model.onnx")
    with pytest.raises(Exception, match="Got: 2 Expected: 3"):
        session.run(None, {"pixel_values": np.zeros((2, 3, 32, 32), np.float32)})
    card = (tmp_path / "model" / "README.md").read_text()
    assert "batches of exactly 3" in card
    monkeypatch.chdir(tmp_path)
    names = {"image": Image.new("RGB", (50, 60))}
    exec(snippet_of(card), names)
    assert names["features"].shape == (3, 16)


def float_types(folder) -> set[int]:
    """The types of the floating-point weights in the file."""
    weights = onnx.load(folder / "model.onnx").graph.initializer
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16)
    return {weight.data_type for weight in weights if weight.data_type in kinds and weight.dims}


@pytest.mark.parametrize("family", slow_but(["vit", "swin", "resnet", "dinov2_registers", "dinov3_vit"], "vit"))
def test_float16_has_half_the_bytes_and_the_same_features_up_to_rounding(family, tmp_path):
    model = (tiny(family) if family == "dinov3_vit" else small_model(family)).eval()
    size, pixels = model.config.backbone_config.space.full, model.config.backbone_config.image_size
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = {"format": "onnx", "onnx_dtype": "float16", "onnx_opset": 21, "onnx_batch": 2}
    parameters = extract_to(model, size, tmp_path / "half", **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {tensor.dtype for tensor in model.state_dict().values()} == {tensor.dtype for tensor in before.values()}
    plain = model.teacher.extract(size)
    assert parameters == plain.num_parameters()
    difference = largest_difference(tmp_path / "half", plain, (2,), pixels)
    assert 1e-6 < difference < 1e-2  # float16 has 11 bits
    assert float_types(tmp_path / "half") == {onnx.TensorProto.FLOAT16}
    graph = onnx.load(tmp_path / "half" / "model.onnx")
    onnx.checker.check_model(graph)
    assert [opset.version for opset in graph.opset_import if not opset.domain] == [21]
    ends = (*graph.graph.input, *graph.graph.output)
    assert {value.type.tensor_type.elem_type for value in ends} == {onnx.TensorProto.FLOAT}
    weights = sum(tensor.nbytes for tensor in plain.state_dict().values())
    assert (tmp_path / "half" / "model.onnx").stat().st_size < weights / 2 + 400_000  # and the graph
    card = (tmp_path / "half" / "README.md").read_text()
    assert "computation are in float16, inputs and outputs in float32" in card and "--stronglyTyped" in card


@pytest.mark.slow
@pytest.mark.parametrize("opset", range(18, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_that_is_taken_can_be_run_or_is_refused(opset, tiny_model, tmp_path):
    model, size = tiny_model.eval(), SubNetwork(16, 1)
    try:
        extract_to(model, size, tmp_path / "model", format="onnx", onnx_opset=opset, onnx_batch=1)
    except ValueError as error:
        assert opset > 23 and "leave onnx_opset out" in str(error) and not list(tmp_path.iterdir())
        return
    graph = onnx.load(tmp_path / "model" / "model.onnx")
    assert [found.version for found in graph.opset_import if not found.domain] == [opset]
    assert largest_difference(tmp_path / "model", model.teacher.extract(size), (1,), 32) < 1e-5


def test_hints_for_other_programs_have_the_shapes_of_the_graph():
    any_batch = onnx_hints((3, 224, 192), None, half=False)
    assert "--minShapes=pixel_values:1x3x224x192 " in any_batch
    assert "--maxShapes=pixel_values:64x3x224x192\n" in any_batch
    assert "TensorrtExecutionProvider" in any_batch and "CoreMLExecutionProvider" in any_batch
    assert "--stronglyTyped" not in any_batch and "--onnx_batch" in any_batch
    one = onnx_hints((1, 64, 64), 1, half=True)
    assert "Shapes" not in one and "--onnx_batch" not in one and one.count("--stronglyTyped") == 1


def test_mistakes_are_refused(tiny_model, tmp_path, monkeypatch):
    def refused(**options) -> str:
        with pytest.raises(ValueError) as refusal:
            extract_to(tiny_model, SubNetwork(16, 1), tmp_path / "model", **options)
        assert not list(tmp_path.iterdir())
        return str(refusal.value)

    assert "onnx_batch is 0: give at least 1" in refused(format="onnx", onnx_batch=0)
    assert "onnx_batch cannot be given for the format vit" in refused(format="vit", onnx_batch=2)
    assert "onnx_opset cannot be given for the format dinov2" in refused(onnx_opset=18)
    assert "onnx_dtype cannot be given for the format vit" in refused(format="vit", onnx_dtype="float16")
    for opset in (-1, 0, 17, 1000):
        assert f"onnx_opset is {opset}: give 18 to " in refused(format="onnx", onnx_opset=opset)
    assert "onnx_dtype is 'int8': give float32 or float16" in refused(format="onnx", onnx_dtype="int8")
    assert "use dinov2, vit, timm or onnx" in refused(format="swin")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "not installed (onnxscript): pip install 'poa_hf[onnx]'" in refused(format="onnx")
    monkeypatch.undo()
    run = onnxruntime.InferenceSession.run
    monkeypatch.setattr(
        onnxruntime.InferenceSession, "run", lambda *arguments: [0.9 * output for output in run(*arguments)]
    )
    assert "ONNX Runtime's last_hidden_state differs from PyTorch's by" in refused(format="onnx")
    monkeypatch.undo()
    with torch.no_grad():  # beyond float16, whose largest number is 65504
        tiny_model.teacher.layernorm.weight.mul_(1e6)
    try:
        message = refused(format="onnx", onnx_dtype="float16")
    finally:
        with torch.no_grad():
            tiny_model.teacher.layernorm.weight.div_(1e6)
    assert "ONNX Runtime's last_hidden_state differs" in message
