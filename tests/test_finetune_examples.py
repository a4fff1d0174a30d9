import functools
import importlib.util
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import pipeline

from poa_hf.data.scenes import drawn_scenes
from poa_hf.data.textures import TEXTURE_NAMES, TextureDataset
from poa_hf.evaluation.statistics.average_precision import average_precision
from poa_hf.publishing.export import extract_to

from .conftest import FAMILIES, ROOT, slow_but
from .test_contract import tiny

OPTIONS = "--disable_tqdm true --max_steps 3 --logging_steps 1 --save_strategy no --per_device_train_batch_size 4"


@functools.cache
def example(name: str):
    """An example as a module: a process for each run would spend its time on imports."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """The smallest size of a tiny space of each family, extracted."""
    folder, found = tmp_path_factory.mktemp("checkpoints"), {}
    for family in FAMILIES:
        torch.manual_seed(0)
        model = tiny(family)
        found[family] = folder / family
        extract_to(model, model.config.backbone_config.space.smallest, found[family])
    return found


def write(folder: Path, features: dict, **splits: list[dict]) -> str:
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        data = datasets.Dataset.from_list(rows, features=datasets.Features(features))
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> str:
    """Twelve images for training and five to test on, of ten classes."""
    rows = [TextureDataset(seed=3)[i] for i in range(17)]
    rows = [{"picture": row["image"], "kind": row["label"]} for row in rows]
    rows[3]["picture"] = rows[3]["picture"].convert("L")
    names = [f"texture {i}" for i in range(10)]
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=names)}
    return write(tmp_path_factory.mktemp("data") / "labelled", features, train=rows[:12], test=rows[12:])


@pytest.fixture(scope="module")
def masked(tmp_path_factory) -> str:
    """Images with masks of three classes and one to ignore; the two to test on differ in size."""
    rng, rows = np.random.default_rng(0), []
    for height, width in [(40, 56)] * 10 + [(40, 56), (48, 32)]:
        mask = np.kron(rng.integers(0, 4, (height // 8, width // 8)), np.ones((8, 8))).astype(np.uint8)
        image = 60 * mask[..., None] + rng.integers(0, 20, (height, width, 3))
        rows.append({"image": Image.fromarray(image.astype(np.uint8)), "mask": Image.fromarray(mask)})
    features = {"image": datasets.Image(), "mask": datasets.Image()}
    return write(tmp_path_factory.mktemp("data") / "masked", features, train=rows[:10], test=rows[10:])


@pytest.fixture(scope="module")
def boxed(tmp_path_factory) -> str:
    """Drawn images with the boxes of three classes."""
    rows = drawn_scenes(12, seed=4).to_list()
    rows = [{"image": row["image"], "objects": row["objects"]} for row in rows]
    for row in rows:
        row["objects"]["category"] = [label % 3 for label in row["objects"]["category"]]
    numbers = datasets.List(datasets.Value("int64"))
    features = {"image": datasets.Image(), "objects": {"bbox": datasets.List(numbers), "category": numbers}}
    return write(tmp_path_factory.mktemp("data") / "boxed", features, train=rows[:8], test=rows[8:])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = transformers.AutoModel.from_pretrained(folder)
    return dict(model.named_parameters())


def results(folder: Path) -> dict:
    return json.loads((folder / "eval_results.json").read_text())


@pytest.mark.parametrize("family", slow_but(FAMILIES, "vit"))
def test_classification(family, checkpoints, labelled, tmp_path, capsys):
    output = tmp_path / "out"
    options = ["--model", str(checkpoints[family]), "--dataset_name", labelled, "--output_dir", str(output)]
    example("finetune_classification").main([*options, *OPTIONS.split(), "--trust_remote_code", "true"])
    assert {"eval_accuracy", "eval_loss"} <= set(results(output)) and 0 <= results(output)["eval_accuracy"] <= 1
    assert "eval_accuracy" in "".join(capsys.readouterr().out.splitlines()[-8:])
    classify = pipeline("image-classification", str(output), trust_remote_code=True)
    found = classify(TextureDataset(seed=3)[12]["image"], top_k=10)
    assert {guess["label"] for guess in found} == {f"texture {i}" for i in range(10)}
    assert classify.model.config.label2id["texture 3"] == 3
    # it went on from the checkpoint's weights: a few small steps away
    before = weights(checkpoints[family])
    moved = [(tensor - before[name]).abs().max() for name, tensor in classify.model.base_model.named_parameters()]
    assert 0 < max(moved) < 0.01


def test_classification_from_scratch_at_another_size_with_stochastic_depth(checkpoints, labelled, tmp_path):
    options = ["--model", str(checkpoints["vit"]), "--dataset_name", labelled, "--output_dir", str(tmp_path / "out")]
    options += ["--from_scratch", "--image_size", "64", "--drop_path_rate", "0.2", "--eval_split", "train[:4]"]
    example("finetune_classification").main([*options, *OPTIONS.split()])
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor(Image.new("RGB", (80, 90)), return_tensors="pt").pixel_values.shape == (1, 3, 64, 64)
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.drop_path_rate == 0.2
    before = weights(checkpoints["vit"])["encoder.layer.0.mlp.fc1.weight"]
    assert not torch.allclose(model.dinov2.encoder.layer[0].mlp.fc1.weight, before, atol=0.01)


# by parameter: how many blocks, and the classifier, lie above it
STEPS_DOWN = {
    "vit": {  # 24x2
        "dinov2.embeddings.cls_token": 3,
        "dinov2.embeddings.patch_embeddings.projection.weight": 3,
        "dinov2.encoder.layer.0.mlp.fc1.weight": 2,
        "dinov2.encoder.layer.1.layer_scale2.lambda1": 1,
        "dinov2.layernorm.weight": 0,
        "classifier.bias": 0,
    },
    "swin": {  # 24x1-2-1-1
        "swin.embeddings.norm.weight": 6,
        "swin.encoder.layers.0.blocks.0.mlp.fc1.weight": 5,
        "swin.encoder.layers.0.downsample.reduction.weight": 5,
        "swin.encoder.layers.1.blocks.1.mlp.fc2.bias": 3,
        "swin.encoder.layers.1.downsample.norm.weight": 3,
        "swin.encoder.layers.2.downsample.norm.weight": 2,
        "swin.encoder.layers.3.blocks.0.layernorm_after.bias": 1,
        "swin.layernorm.weight": 0,
        "classifier.weight": 0,
    },
    "resnet": {  # 8x1-1-1-1
        "resnet.embedder.embedder.convolution.weight": 5,
        "resnet.encoder.stages.0.layers.0.shortcut.convolution.weight": 4,
        "resnet.encoder.stages.0.layers.0.layer.2.normalization.bias": 4,
        "resnet.encoder.stages.2.layers.0.layer.0.convolution.weight": 2,
        "resnet.encoder.stages.3.layers.0.layer.1.convolution.weight": 1,
        "classifier.weight": 0,
    },
}


def test_layer_wise_rates(family, checkpoints):
    model = transformers.AutoModelForImageClassification.from_pretrained(checkpoints[family])
    args = transformers.TrainingArguments(learning_rate=0.1, weight_decay=0.05, report_to="none")
    groups = example("finetune_classification").layer_wise_groups(model, args, 0.5)
    found = {id(weight): group for group in groups for weight in group["params"]}
    named = dict(model.named_parameters())
    assert len(found) == len(named) == sum(len(group["params"]) for group in groups)
    assert groups[0]["lr"] == 0.1  # the one that Trainer logs
    for name, steps in STEPS_DOWN[family].items():
        assert found[id(named[name])]["lr"] == pytest.approx(0.1 * 0.5**steps), name
    for name, weight in named.items():
        assert found[id(weight)]["weight_decay"] == (0.05 if weight.ndim > 1 else 0), name


@pytest.mark.parametrize("family", slow_but(FAMILIES, "swin"))
def test_segmentation(family, checkpoints, masked, tmp_path):
    output = tmp_path / "out"
    options = ["--model", str(checkpoints[family]), "--dataset_name", masked, "--output_dir", str(output)]
    options += [*"--image_size 64 96 --head_size 8 --labels a b c".split(), *OPTIONS.split()]
    example("finetune_segmentation").main(options)
    assert 0 <= results(output)["eval_mean_iou"] <= results(output)["eval_pixel_accuracy"] <= 1
    model = transformers.UperNetForSemanticSegmentation.from_pretrained(output)
    before = weights(checkpoints[family])
    prefix = {"vit": "", "swin": "swin.", "resnet": "resnet."}[family]
    after = dict(model.backbone.named_parameters())
    moved = [(tensor - after[prefix + name]).abs().max() for name, tensor in before.items()]
    assert 0 < max(moved) < 0.01
    # the numbers are those of the saved model's own masks, the fourth class left out
    segment = pipeline("image-segmentation", model=model, image_processor=str(output))
    hits, union = np.zeros(3), np.zeros(3)
    for row in datasets.load_dataset(masked, split="test"):
        true, found = np.array(row["mask"]), np.full(row["mask"].size[::-1], 3)
        for part in segment(row["image"]):
            found[np.array(part["mask"]) > 0] = "abc".index(part["label"])
        for i in range(3):
            hits[i] += ((true == i) & (found == i)).sum()
            union[i] += ((true == i) | ((found == i) & (true != 3))).sum()
    assert results(output)["eval_mean_iou"] == pytest.approx(np.mean(hits / union), abs=1e-6)


def test_segmentation_counts_each_pixel_once_and_ignores_what_has_no_class():
    labels = torch.tensor([[[0, 1], [1, -100]]])
    logits = torch.tensor([[[[5.0, 0], [5, 5]], [[0, 5], [0, 0]]]])  # 0 1 / 0 0
    counts = example("finetune_segmentation").confusion(logits, labels)
    assert counts.tolist() == [[[1, 0], [1, 1]]]
    loss = example("finetune_segmentation").loss_of(transformers.utils.ModelOutput(logits=logits), labels)
    expected = torch.nn.functional.cross_entropy(logits.flatten(2)[..., :3], labels.flatten(1)[..., :3])
    assert loss == pytest.approx(expected.item())


@pytest.mark.parametrize("family", slow_but(FAMILIES, "resnet"))
def test_detection(family, checkpoints, boxed, tmp_path):
    output = tmp_path / "out"
    options = ["--model", str(checkpoints[family]), "--output_dir", str(output), "--dataset_name", boxed]
    options += [*"--image_size 96 --head_size 16 --head_layers 1 --num_queries 6 --labels a b c".split()]
    example("finetune_detection").main([*options, *OPTIONS.split()])
    assert 0 <= results(output)["map"] <= results(output)["map_50"] <= 1
    # the numbers are those of the saved model's own boxes
    detect = pipeline("object-detection", str(output))
    found, true = [], []
    for row in datasets.load_dataset(boxed, split="test"):
        guesses = detect(row["image"], threshold=0.0)
        boxes = [[guess["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for guess in guesses]
        found.append({"boxes": boxes, "labels": ["abc".index(guess["label"]) for guess in guesses],
                      "scores": [guess["score"] for guess in guesses]})  # fmt: skip
        corners = [[x, y, x + width, y + height] for x, y, width, height in row["objects"]["bbox"]]
        true.append({"boxes": corners, "labels": row["objects"]["category"]})
    assert results(output)["map"] == pytest.approx(average_precision(found, true)["map"], abs=0.02)  # whole pixels
    # it went on from the checkpoint's weights, all of which are trained
    after = dict(detect.model.model.backbone.model.named_parameters())
    prefix = {"vit": "", "swin": "swin.", "resnet": "resnet."}[family]
    moved = {name: (tensor - after[prefix + name]).abs().max() for name, tensor in weights(checkpoints[family]).items()}
    assert 0 < max(moved.values()) < 0.02
    assert max(value for name, value in moved.items() if "embed" in name) > 0


@pytest.mark.slow
def test_segmentation_of_drawn_images(checkpoints, tmp_path, monkeypatch):
    segmentation = example("finetune_segmentation")
    monkeypatch.setattr(segmentation, "drawn_scenes", lambda count, seed: drawn_scenes(min(count, 12), seed))
    options = ["--model", str(checkpoints["resnet"]), "--output_dir", str(tmp_path / "out"), "--head_size", "8"]
    segmentation.main([*options, *OPTIONS.split()])
    model = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert [*model.config.id2label.values()] == ["ground", *TEXTURE_NAMES]
    assert 0 <= results(tmp_path / "out")["eval_mean_iou"] <= 1


def test_datasets_whose_classes_have_no_names(checkpoints, masked, boxed, tmp_path):
    for task, data, labels, sentence in [
        ("segmentation", masked, [], "have no names: give --labels"),
        ("detection", boxed, ["--labels", "a", "b"], "has the class 2, which --labels does not name: give 3 names"),
    ]:
        options = ["--model", str(checkpoints["vit"]), "--dataset_name", data, "--output_dir", str(tmp_path / "out")]
        with pytest.raises(SystemExit, match=sentence):
            example(f"finetune_{task}").main([*options, *labels])


@pytest.mark.slow
def test_detection_of_drawn_images_from_scratch(checkpoints, tmp_path, monkeypatch):
    detection = example("finetune_detection")
    monkeypatch.setattr(detection, "drawn_scenes", lambda count, seed: drawn_scenes(min(count, 12), seed))
    options = ["--model", str(checkpoints["vit"]), "--output_dir", str(tmp_path / "out"), "--from_scratch"]
    detection.main([*options, *"--head_size 16 --head_layers 1".split(), *OPTIONS.split()])
    model = transformers.RTDetrForObjectDetection.from_pretrained(tmp_path / "out")
    assert model.config.id2label == dict(enumerate(TEXTURE_NAMES))
    before = weights(checkpoints["vit"])["encoder.layer.0.mlp.fc1.weight"]
    assert not torch.allclose(model.model.backbone.model.encoder.layer[0].mlp.fc1.weight, before, atol=0.02)


@pytest.mark.parametrize("family", slow_but(FAMILIES, "vit"))
def test_instances(family, checkpoints, tmp_path, monkeypatch):
    output, instances = tmp_path / "out", example("finetune_instances")
    monkeypatch.setattr(instances, "drawn_scenes", lambda count, seed: drawn_scenes(8 if count == 2000 else 3, seed))
    options = ["--model", str(checkpoints[family]), "--output_dir", str(output), "--head_size", "32"]
    instances.main([*options, "--head_layers", "1", "--num_queries", "4", *OPTIONS.split()])
    assert 0 <= results(output)["map"] <= results(output)["map_50"] <= 1
    found = pipeline("image-segmentation", str(output))(Image.new("RGB", (60, 50)), subtask="instance", threshold=0.0)
    assert all(part["mask"].size == (60, 50) and part["label"] in TEXTURE_NAMES for part in found)
    # it went on from the checkpoint's weights, all of which are trained
    model = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(output)
    after = dict(model.model.pixel_level_module.encoder.named_parameters())
    prefix = {"vit": "", "swin": "swin.", "resnet": "resnet."}[family]
    moved = {name: (tensor - after[prefix + name]).abs().max() for name, tensor in weights(checkpoints[family]).items()}
    assert 0 < max(moved.values()) < 0.02
    assert max(value for name, value in moved.items() if "embed" in name) > 0


def test_masks_of_objects_are_those_of_their_numbers():
    for scene in drawn_scenes(5, seed=3):
        masks = example("finetune_instances").masks_of(scene)
        for mask, (left, top, width, height) in zip(masks, scene["objects"]["bbox"], strict=True):
            rows, columns = np.nonzero(mask)
            assert (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1) == (left, top, width, height)


def test_transfer_of_sizes_to_datasets(labelled, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "examples")
    transfer = example("transfer")
    tiny("vit").save_pretrained(tmp_path / "run")
    space = tiny("vit").config.backbone_config.space
    options = ["--run", str(tmp_path / "run"), "--sizes", str(space.smallest), "--datasets", labelled, "/no/data"]
    options += [*"--rates 1e-3 3e-3 --seeds 1 --holdout 0.5 --max_steps 1".split()]
    options += ["--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr("poa_hf.evaluation.transfer.split_classes", lambda data, share: (data, data))
    monkeypatch.setattr(transfer, "split_classes", lambda data, share: (data, data))  # twelve images of ten classes
    monkeypatch.setattr(transfer, "probed", lambda *args: 0.5)
    with pytest.raises(SystemExit, match="3 trainings failed"):
        transfer.main(options)
    rows = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert [(row["dataset"], row["method"], len(row["accuracies"])) for row in rows] == [
        (labelled, "finetune", 1), (labelled, "linear", 1), ("/no/data", "finetune", 0), ("/no/data", "linear", 0),
    ]  # fmt: skip
    assert all("/no/data" in row["error"] for row in rows[2:]) and rows[0]["error"] is None
    assert rows[0]["rate"] in (1e-3, 3e-3) and rows[0]["parameters"] == rows[1]["parameters"] > 10_000
    assert len((tmp_path / "out" / "transfer.md").read_text().splitlines()) == 2 + 4
    # a second call computes only what had failed
    capsys.readouterr()
    with pytest.raises(SystemExit):
        transfer.main(options)
    assert "train_runtime" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "transfer.json").read_text()) == rows


@pytest.mark.slow
def test_transfer_to_textures_of_extracted_and_random_weights(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    tiny("resnet").save_pretrained(tmp_path / "run")
    size = str(tiny("resnet").config.backbone_config.space.smallest)
    options = ["--run", str(tmp_path / "run"), "--sizes", size, "--starts", "extracted", "random", "--max_steps", "1"]
    options += [*"--rates 1e-3 --max_train_images 200 --max_test_images 50 --seeds 3".split()]
    example("transfer").main([*options, "--output_dir", str(tmp_path / "out")])
    rows = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert len(rows) == 4 and all(len(row["accuracies"]) == 1 and row["seconds"] > 0 for row in rows)


def test_mistakes_of_a_transfer_give_one_sentence(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    options = ["--run", str(tmp_path), "--output_dir", str(tmp_path / "out")]
    for more, sentence in [(["--starts", "imagenet"], "--starts imagenet does not exist"), ([], str(tmp_path))]:
        with pytest.raises(SystemExit) as exit:
            example("transfer").main([*options, *more])
        assert sentence in exit.value.code and "\n" not in exit.value.code


EXTRA = {"classification": [], "segmentation": ["--labels", "a", "b", "c"], "detection": [], "instances": []}


@pytest.fixture(scope="module")
def without_labels(tmp_path_factory) -> str:
    rows = [{"image": Image.new("RGB", (32, 32))}] * 4
    return write(tmp_path_factory.mktemp("data") / "plain", {"image": datasets.Image()}, train=rows, test=rows)


@pytest.mark.parametrize("task", EXTRA)
def test_mistakes_give_one_sentence(task, checkpoints, labelled, masked, boxed, without_labels, tmp_path):
    main = example(f"finetune_{task}").main
    good = {"classification": labelled, "segmentation": masked, "detection": boxed, "instances": boxed}[task]
    (tmp_path / "empty").mkdir()
    (tmp_path / "part").mkdir()  # a checkpoint without its weights
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "part" / name).write_text((checkpoints["vit"] / name).read_text())
    mistakes = {
        "needs": ["--model", str(checkpoints["vit"]), "--dataset_name", without_labels],
        "cannot be loaded": ["--model", str(checkpoints["vit"]), "--dataset_name", good, "--train_split", "training"],
        "is no": ["--model", str(tmp_path / "empty"), "--dataset_name", good],
        f"{tmp_path / 'part'} is no": ["--model", str(tmp_path / "part"), "--dataset_name", good],
    }
    for sentence, options in mistakes.items():
        with pytest.raises(SystemExit) as exit:
            main([*options, *EXTRA[task], "--output_dir", str(tmp_path / "out"), *OPTIONS.split()])
        assert sentence in exit.value.code and "\n" not in exit.value.code, exit.value.code


def test_mistakes_of_a_classifier(checkpoints, labelled, tmp_path):
    main = example("finetune_classification").main
    options = ["--dataset_name", labelled, "--output_dir", str(tmp_path / "out"), *OPTIONS.split()]
    with pytest.raises(SystemExit, match="no_split"):
        main(["--model", str(checkpoints["vit"]), *options, "--eval_split", "no_split"])
    with pytest.raises(SystemExit, match="cannot compute with --image_size 5"):
        main(["--model", str(checkpoints["vit"]), *options, "--image_size", "5"])
    tiny("vit").save_pretrained(tmp_path / "run")  # what a run saves, before an extraction
    with pytest.raises(SystemExit, match="poa extract"):
        main(["--model", str(tmp_path / "run"), *options])


def test_index_names_every_example():
    index = (ROOT / "examples" / "README.md").read_text()
    assert all(path.name in index for path in (ROOT / "examples").glob("*.py"))
    assert all(len(path.read_text().splitlines()) <= 150 for path in (ROOT / "examples").glob("finetune_*.py"))
