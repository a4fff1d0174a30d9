import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from PIL import Image
from transformers import AutoImageProcessor

from poa_hf import PoaConfig, PoaForPreTraining, PoaResNetConfig, PoaTrainingArguments, SubNetwork
from poa_hf.cli.main import main
from poa_hf.data.textures import TextureDataset
from poa_hf.formatting import format_quantity
from poa_hf.publishing.card.cards import write_card, write_supernet_card
from poa_hf.publishing.card.facts import CardFacts
from poa_hf.publishing.card.metadata import LICENSES, card_problems, is_hub_id
from poa_hf.publishing.card.owner import OwnerFacts
from poa_hf.publishing.card.results import eval_results
from poa_hf.publishing.card.values import training_time
from poa_hf.publishing.export import extract_to
from poa_hf.publishing.formats.format import find_format
from poa_hf.runs.evaluations import Evaluation
from poa_hf.runs.facts import RunFacts
from poa_hf.runs.training_time import ComputePart

from ...conftest import golden_config, run_python, tiny_config

SIZE = SubNetwork(16, 2)
DINOV2 = find_format("dinov2", None)
COSTS = CardFacts(RunFacts(tiny_config())).costs
FLOPS = {size: format_quantity(COSTS[SubNetwork.parse(size)].flops) for size in ("16x1", "16x2", "32x3")}


def record(size: str = "16x2", metric: str = "knn_accuracy", value: float = 0.5, **fields) -> Evaluation:
    usual = dict(
        model="run", task="knn", dataset="textures", test_split="test", test_images=100, train_split="train",
        train_images=200, date="2026-11-25", settings={"k": 20} if metric == "knn_accuracy" else {},
    )  # fmt: skip
    return Evaluation(size=size, metric=metric, value=value, **{**usual, **fields})


def facts_of(*evaluations: Evaluation, owner: OwnerFacts = OwnerFacts(), **fields) -> CardFacts:  # noqa: B008
    facts = CardFacts(RunFacts(tiny_config(), evaluations=evaluations, **fields), owner)
    vars(facts)["costs"] = COSTS  # what it would count each time
    return facts


def written(folder: Path, facts: CardFacts, name: str = "me/poa-small", supernet=None, size=SIZE) -> ModelCard:
    folder.mkdir(parents=True, exist_ok=True)
    write_card(folder, facts, size, DINOV2, name, 10_048, supernet)
    return loaded(folder)


def loaded(folder: Path) -> ModelCard:
    """A valid card, of which nothing is lost on the way through the Hub's own reader."""
    content = (folder / "README.md").read_bytes().decode()
    assert card_problems(content) == []
    card = ModelCard.load(folder / "README.md")
    assert card.data.to_dict() == yaml.safe_load(content.split("---\n")[1])
    assert "unknown" not in card.text.lower() and "None" not in card.text and "nan" not in card.text.split()
    return card


def blocks(card: ModelCard, language: str) -> list[str]:
    return [token.content for token in MarkdownIt().parse(card.text) if token.info == language]


def tables(card: ModelCard) -> list[list[list[str]]]:
    """The cells of each table as they are shown."""
    found, tokens = [], MarkdownIt().enable("table").parse(card.text)
    for token in tokens:
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level > 2:
            found[-1][-1].append("".join(child.content for child in token.children))
    return found


# -- the card's code

RUN = """
import sys
sys.modules["poa_hf"] = None  # importing it fails
import torch
from PIL import Image
torch.set_grad_enabled(False)
found = {}
for format in sys.argv[1:]:
    scope = {"image": Image.open("image.png")}
    exec(open(f"{format}.py").read(), scope)
    found[format] = scope["model"].config.model_type, scope["features"]
torch.save(found, "found")
"""


def test_the_code_of_a_card_loads_the_model_without_poa_hf(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8))
    image.save(tmp_path / "image.png")
    expected = {}
    for family, formats in {"vit": ("dinov2", "vit"), "swin": ("swin",), "resnet": ("gn_resnet",)}.items():
        torch.manual_seed(0)
        model = PoaForPreTraining(golden_config(family)).eval()
        size = model.config.backbone_config.space.spread[1]
        for format in formats:
            folder = tmp_path / f"poa small é {format}"
            extract_to(model, size, folder, format=format)
            card = loaded(folder)
            (code,) = blocks(card, "python")
            assert code.count("\n") == 5  # imports, a blank line, and three lines
            (tmp_path / f"{format}.py").write_text(code)
            pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
            with torch.no_grad():
                expected[format] = model.teacher(pixels, sub_network=size).pooler_output
            assert f"the shape (1, {expected[format].shape[1]})" in card.text
    env = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    run_python("-I", "-c", RUN, *expected, cwd=tmp_path, env=env)
    for format, (model_type, features) in torch.load(tmp_path / "found").items():
        assert model_type == format
        torch.testing.assert_close(features, expected.pop(format), rtol=1e-4, atol=1e-5)
    assert not expected


def test_the_code_of_a_timm_card(tmp_path):
    backbone = PoaResNetConfig(depths=[1, 2, 1, 1], min_depths=[1, 1, 1, 1], base_width=64, min_base_width=32)
    model = PoaForPreTraining(PoaConfig(backbone_config=backbone, num_prototypes=[8], head_hidden_size=8)).eval()
    extract_to(model, backbone.space.smallest, tmp_path / "poa-timm", format="timm")
    card = loaded(tmp_path / "poa-timm")
    assert card.data.library_name == "timm" and "transformers" not in card.text
    (code,) = blocks(card, "python")
    compile(code, "card", "exec")
    assert 'timm.create_model("local-dir:poa-timm", pretrained=True)' in code
    assert '"hf-hub:me/poa-timm"' in find_format("gn_resnet", "timm").snippet("me/poa-timm")


@pytest.mark.parametrize("name", ['we"ird', "back\\slash", "{braces}", "tick`s ``` ```` more", "é 模型"])
def test_the_code_holds_any_name(tmp_path, name):
    (code,) = blocks(written(tmp_path, facts_of(), name), "python")
    assert f"from_pretrained({json.dumps(name, ensure_ascii=False)})" in code
    compile(code, "card", "exec")


def test_the_code_of_a_supernet_card(tmp_path, tiny_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model.save_pretrained("super net")
    (tmp_path / "card").mkdir()
    write_supernet_card(tmp_path / "card", CardFacts.read(tiny_model, tmp_path / "super net"), "super net", {})
    (command,), (extract, train) = (
        blocks(loaded(tmp_path / "card"), "shell"),
        blocks(loaded(tmp_path / "card"), "python"),
    )
    assert main(shlex.split(command)[1:]) == 0 and (tmp_path / "poa-small" / "config.json").exists()
    scope = {}
    exec(extract, scope)
    assert scope["size"].num_parameters() == tiny_model.teacher.extract("small").num_parameters()
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: TextureDataset())
    few = "per_device_train_batch_size=2, num_local_crops=1, local_crop_size=16, dataloader_num_workers=0"
    exec(train.replace("max_steps=10_000,", f"max_steps=1, {few}, disable_tqdm=True,"), {})
    assert RunFacts.read(tmp_path / "runs" / "more").steps == 1


# -- what it says


def test_a_card_of_a_run_says_all_that_is_known(tmp_path):
    evaluations = [
        record("16x1", value=0.41), record(value=0.52), record("32x3", value=0.63),
        record(metric="linear_accuracy", value=0.71234567),
    ]  # fmt: skip
    arguments = vars(PoaTrainingArguments(output_dir="/home/me/run", max_steps=1000, bf16=True))
    facts = facts_of(
        *evaluations, dataset="my/images", dataset_id="my/images", dataset_config="all", dataset_split="train",
        steps=1000, batch_size=1024, arguments=arguments, owner=OwnerFacts("apache-2.0", contact="me@example.org"),
        compute=(ComputePart("NVIDIA H100", 8, 0, 400, 3600), ComputePart("NVIDIA H100", 8, 400, 1000, 8400.0)),
    )  # fmt: skip
    card = written(tmp_path, facts, supernet="me/poa-supernet")
    data = card.data
    assert (data.base_model, data.datasets, data.license) == ("me/poa-supernet", ["my/images"], "apache-2.0")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-feature-extraction")
    assert {"poa", "self-supervised", "dinov2"} <= set(data.tags) and data.metrics == ["accuracy"]
    assert data.model_name == "poa-small"
    results = [(r.task_type, r.dataset_type, r.metric_type, r.metric_name, r.metric_value) for r in data.eval_results]
    assert results == [
        ("image-classification", "textures", "accuracy", "20-NN accuracy", 0.52),
        ("image-classification", "textures", "accuracy", "linear probe accuracy", 0.7123),
    ]
    family, measured, training = tables(card)
    assert family[1:] == [
        ["this", "16x2", "10k", FLOPS["16x2"], "52.0 %"], ["smallest", "16x1", "6.74k", FLOPS["16x1"], "41.0 %"],
        ["full", "32x3", "45.2k", FLOPS["32x3"], "63.0 %"],
    ]  # fmt: skip
    assert measured[1:] == [["20-NN accuracy", "52.0 %"], ["linear probe accuracy", "71.2 %"]]
    settings = dict(training[1:])
    assert settings["images seen"] == "1,024,000" and settings["peak learning rate (AdamW)"] == "0.004"
    assert settings["crops per image"] == "2 of 224 x 224 pixels, 8 of 96 x 96"
    assert settings["precision"] == "bfloat16 (autocast)" and settings["weight decay"] == "0.04 to 0.4"
    assert settings["training time"] == "3 h 20 min on 8 x NVIDIA H100 (26.7 device hours)"
    for said in (
        "[my/images](https://huggingface.co/datasets/my/images) (all, split train)", "me@example.org", "9 sizes",
        "arxiv.org/abs/2408.01031", "10,048 parameters", "[me/poa-supernet](https://huggingface.co/me/poa-supernet)",
    ):  # fmt: skip
        assert said in card.text
    assert "/home/me" not in card.content
    (citation,) = blocks(card, "bibtex")
    assert citation.strip() in (Path(__file__).parents[3] / "README.md").read_text()


def test_a_card_of_a_model_alone_says_less(tmp_path):
    card = written(tmp_path, facts_of())
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    family, training = tables(card)
    assert [row[0] for row in training] == [
        "setting",
        "prototypes",
        "loss weight of the full-size student",
        "loss weight of KoLeo",
    ]
    assert family[0] == ["", "size", "parameters", "FLOPs"] and "## Results" not in card.text
    assert "No licence was given" in card.text and "FLOPs against parameters" in card.text


@pytest.mark.parametrize(
    ("supernet", "base_model"),
    [("me/super", "me/super"), (None, None), ("runs/my super", None), ("/runs/super", None), ("super", None)],
)
def test_only_a_repository_is_a_base_model(tmp_path, supernet, base_model):
    card = written(tmp_path, facts_of(), supernet=supernet)
    assert card.data.base_model == base_model and ("cut from [" in card.text) == bool(base_model)


@pytest.mark.parametrize(
    ("source", "shown", "base_model"),
    [
        ("facebook/dinov2-large", "[facebook/dinov2-large](https://huggingface.co/facebook/dinov2-large)",
         "facebook/dinov2-large"),
        ("teacher_checkpoint.pth", "teacher_checkpoint.pth", None),
    ],
)  # fmt: skip
def test_a_warm_start_is_told(tmp_path, source, shown, base_model):
    facts = facts_of()
    facts.config.warm_started_from = source
    card = written(tmp_path / "size", facts, supernet="me/super")
    assert card.text.count(f"nitialised from {shown} and pre-trained further without labels") == 2
    assert "was pre-trained without labels" not in card.text and card.data.base_model == "me/super"
    (tmp_path / "supernet").mkdir()
    write_supernet_card(tmp_path / "supernet", facts, "me/super", {})
    assert loaded(tmp_path / "supernet").data.base_model == base_model


def test_licences(tmp_path):
    assert "apache-2.0" in LICENSES and "Apache-2.0" not in LICENSES
    owner = OwnerFacts("other", "my-licence-1.0", "https://example.org/licence")
    card = written(tmp_path, facts_of(owner=owner))
    assert (card.data.license, card.data.license_name) == ("other", "my-licence-1.0")
    assert "[my-licence-1.0](https://example.org/licence)" in card.text
    with pytest.raises(ValueError, match="did you mean apache-2.0"):
        OwnerFacts("Apache-2.0")


@pytest.mark.parametrize(
    "name",
    ["a | b", "*bold* _em_ `code`", "<b>[x](y)</b>", "yes", "1.0", "null", "a: b #c", "- x", "é模", "two\nlines"],
)
def test_any_text_is_shown_as_it_is(tmp_path, name):
    owner = OwnerFacts(contact=f"me {name}")
    evaluation = record(dataset=name, dataset_config=name, metric=f"{name} score")
    card = written(tmp_path, facts_of(evaluation, dataset=name, owner=owner), name)
    shown = " ".join(name.split())
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_config) == (shown, name) and is_hub_id(result.dataset_type)
    assert tables(card)[1][1][0] == f"{shown} score"
    inline = [token for token in MarkdownIt().enable("table").parse(card.text) if token.type == "inline"]
    texts = ["".join(child.content for child in token.children) for token in inline]
    assert texts[0] == shown.rpartition("/")[2] and f"Contact: me {shown}" in texts
    assert any(f"on {shown} (a local folder) with" in text for text in texts)


@pytest.mark.parametrize(
    ("value", "stored", "shown"),
    [(1e-7, 0.0, "0.0 %"), (0.1 + 0.2, 0.3, "30.0 %"), (1, 1.0, "100.0 %"), (0.81600000858, 0.816, "81.6 %")],
)
def test_numbers_are_short(tmp_path, value, stored, shown):
    card = written(tmp_path, facts_of(record(value=value)))
    assert card.data.eval_results[0].metric_value == stored and isinstance(
        card.data.eval_results[0].metric_value, float
    )
    assert tables(card)[1][1] == ["20-NN accuracy", shown]
    assert re.search(rf"value: {re.escape(str(stored))}\n", card.content)


def test_of_many_results_the_metadata_holds_one_k_and_the_tables_all(tmp_path):
    evaluations = [
        *(record(value=0.1 + k / 1000, settings={"k": k, "temperature": 0.07}) for k in (10, 20, 100, 200)),
        *(record(dataset="my/flowers", dataset_config="v2", settings={"k": k}) for k in (5, 10)),
        record(test_images=50, value=0.9),  # fewer images
        record(value=0.8, date="2026-11-24", settings={"k": 20, "temperature": 0.07}),  # an earlier day
        record(metric="lowshot_accuracy", settings={"label_share": 0.01, "draws": 3, "seed": 0}),
        record(metric="lowshot_accuracy", settings={"label_share": 0.1, "draws": 3, "seed": 0}),
        record(metric="clustering_nmi", train_split=None, train_images=None),
        record(metric="clustering_ari", value=-0.02, train_split=None, train_images=None),
        record(metric="retrieval_map"),
        record(metric="retrieval_precision", settings={"k": 1}),
        record("32x3", value=0.99),
    ]
    card = written(tmp_path, facts_of(*evaluations))
    found = [(r.dataset_type, r.dataset_config, r.metric_name, r.metric_value) for r in card.data.eval_results]
    assert found == [
        ("my/flowers", "v2", "10-NN accuracy", 0.5),
        ("textures", None, "20-NN accuracy", 0.12),
        ("textures", None, "accuracy with 1 % of the labels", 0.5),
        ("textures", None, "accuracy with 10 % of the labels", 0.5),
        ("textures", None, "clustering adjusted Rand index", -0.02),
        ("textures", None, "clustering NMI", 0.5),
        ("textures", None, "retrieval mAP", 0.5),
        ("textures", None, "retrieval precision at 1", 0.5),
    ]
    _, flowers, textures, _ = tables(card)
    assert [row[0] for row in flowers[1:]] == ["5-NN accuracy", "10-NN accuracy"]
    assert [row[0] for row in textures[1:5]] == [f"{k}-NN accuracy" for k in (10, 20, 100, 200)] and len(textures) == 11
    assert "textures**, 100 images of test, against 200 of train" in card.text


def test_results_on_folders_name_datasets_as_ids():
    names = {"my photos": "my-photos", "..hidden": "hidden", "模型": "dataset", "a--b": "a-b", "x" * 200: "x" * 96}
    for name, expected in {**names, "ILSVRC/imagenet-1k": "ILSVRC/imagenet-1k", "cifar10": "cifar10"}.items():
        assert eval_results([record(dataset=name)])[0].dataset_type == expected


def test_times_add_up_by_device():
    parts = [
        ComputePart("CPU", 1, 0, 1, 12.34), ComputePart("CPU", 1, 1, 2, 20), ComputePart("CPU", 2, 2, 3, 600),
        ComputePart("NVIDIA A100", 8, 3, 4, 2 * 3600),
    ]  # fmt: skip
    assert training_time(parts) == (
        "32 s on a CPU, then 10 min on CPUs (2 processes), then 2 h on 8 x NVIDIA A100 (16 device hours)"
    )
    assert training_time([]) == ""


# -- the picture


def test_the_picture_shows_quality_where_it_was_measured_and_marks_the_size(tmp_path):
    measured = [record(str(size), value=0.1 * i) for i, size in enumerate(tiny_config().backbone_config.space, 1)]
    pictures = {}
    for facts, texts in ((facts_of(*measured), "20-NN accuracy against"), (facts_of(measured[0]), "FLOPs against")):
        for size in (SIZE, SubNetwork(32, 3)):
            card = written(tmp_path / f"{size}", facts, size=size)
            assert texts in card.text and "](family.png)" in card.text
            image = Image.open(tmp_path / f"{size}" / "family.png")
            assert image.format == "PNG" and image.getpixel((0, 0)) == (255, 255, 255, 255) and image.width < 800
            pictures[texts, size] = image.tobytes()
    assert len(set(pictures.values())) == 4


def test_a_size_that_was_not_measured_is_marked_among_the_costs(tmp_path):
    card = written(tmp_path, facts_of(record("16x1"), record("32x3")))
    assert "FLOPs against parameters" in card.text
    assert tables(card)[0][1] == ["this", "16x2", "10k", FLOPS["16x2"], ""]


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    card = written(tmp_path, facts_of())
    assert "family.png" not in card.text and not (tmp_path / "family.png").exists() and len(tables(card)) == 2


def test_one_size_is_no_family(tmp_path):
    backbone = tiny_config().backbone_config.plain_config(SIZE)
    facts = CardFacts(RunFacts(tiny_config(backbone), evaluations=(record(),)))
    card = written(tmp_path, facts)
    assert "Compared with" not in card.text and "the only size" in card.text and "## Results" in card.text


# -- files


def test_the_same_run_gives_the_same_bytes(tmp_path):
    def files(folder, facts):
        written(folder / "size", facts)
        write_supernet_card(folder, facts, "me/super", {SIZE: "me/poa-small"})
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}

    evaluations = [record(), record("32x3", value=0.7), record(metric="linear_accuracy")]
    one = files(tmp_path / "one", facts_of(*evaluations))
    two = files(tmp_path / "two", facts_of(*reversed(evaluations)))
    assert one == two and len(one) == 4


def test_extraction_writes_the_facts_of_its_run_and_replaces_them(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "run")
    records = [{**vars(record(value=value)), "size": size} for size, value in (("16x2", 0.5), ("16x1", 0.25))]
    (tmp_path / "run" / "evaluations.json").write_text(json.dumps(records))
    argv = ["extract", str(tmp_path / "run"), "--size", "16x2,16x1", "--output", str(tmp_path / "out")]
    for licence in ("mit", "cc-by-4.0"):
        assert main([*argv, "--license", licence, "--overwrite"]) == 0
        for size, value in (("16x2", 0.5), ("16x1", 0.25)):
            card = loaded(tmp_path / "out" / size)
            assert card.data.license == licence and card.data.eval_results[0].metric_value == value
            assert (tmp_path / "out" / size / "family.png").exists()
    shutil.rmtree(tmp_path / "out")
    assert main([*argv, "--license", "MIT"]) == 2 and not (tmp_path / "out").exists()


def test_a_supernet_card_lists_what_is_published(tmp_path):
    evaluations = [record(str(size)) for size in (SIZE, SubNetwork(32, 3))]
    facts = facts_of(*evaluations, owner=OwnerFacts("mit", about="Made for *tests*."))
    sizes = {SubNetwork(32, 3): "me/large", SIZE: "me/mid", SubNetwork(16, 1): "folder/of my own"}
    write_supernet_card(tmp_path, facts, "me/super", sizes)
    card = loaded(tmp_path)
    assert card.data.library_name == "poa_hf" and card.data.license == "mit" and card.data.eval_results is None
    assert tables(card)[0][1:] == [
        ["16x1", "6.74k", FLOPS["16x1"], "", "folder/of my own"],
        ["16x2", "10k", FLOPS["16x2"], "50.0 %", "me/mid"],
        ["32x3", "45.2k", FLOPS["32x3"], "50.0 %", "me/large"],
    ]
    assert "[me/mid](https://huggingface.co/me/mid)" in card.text and "(https://huggingface.co/folder" not in card.text
    assert "6 other sizes" in card.text and "Made for *tests*." in card.text and (tmp_path / "family.png").exists()


# -- the rules


def with_data(**fields) -> str:
    return f"---\n{yaml.safe_dump({'license': 'mit', **fields})}---\n# Text\n"


RESULT = {
    "task": {"type": "image-classification"},
    "dataset": {"type": "cifar10", "name": "CIFAR-10"},
    "metrics": [{"type": "accuracy", "value": 0.5}],
}


def test_what_the_hub_takes_passes():
    assert card_problems(with_data()) == []
    index = [{"name": "x", "results": [RESULT]}]
    full = dict(
        tags=["a"], language=["en", "code"], datasets="imagenet-1k", base_model=["a/b", "gpt2"],
        pipeline_tag="robotics",
        base_model_relation="merge", library_name="timm", metrics=["wer"], co2_eq_emissions={"emissions": 3},
    )  # fmt: skip
    assert card_problems(with_data(**full, **{"model-index": index})) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("# Text\n", "does not begin with metadata"),
        ("---\na: [\n---\n", "not valid YAML"),
        ("---\n- a\n---\n", "not a mapping"),
        (with_data(license="Apache-2.0"), "did you mean apache-2.0"),
        (with_data(license="other"), "license_name"),
        (with_data(pipeline_tag="image-features"), "not a task"),
        (with_data(tags=[1.0]), '"tags" 1.0'),
        (with_data(language="English"), "two or three letters"),
        (with_data(base_model="/runs/mine"), "id of a model"),
        (with_data(base_model="me/a b"), "id of a model"),
        (with_data(base_model="a/b/c"), "id of a model"),
        (with_data(base_model_relation="extracted"), "base_model_relation"),
        (with_data(datasets=["my photos"]), "id of a dataset"),
        (with_data(library_name=3), "library_name"),
        (with_data(co2_eq_emissions={"source": "x"}), "emissions"),
        (with_data(**{"model-index": {"name": "x"}}), "must be a list"),
        (with_data(**{"model-index": [{"results": [RESULT]}]}), "name"),
        (with_data(**{"model-index": [{"name": "x", "results": []}]}), "results"),
        *(
            (with_data(**{"model-index": [{"name": "x", "results": [RESULT | changed]}]}), problem)
            for changed, problem in [
                ({"task": {"type": "knn"}}, "task.type"),
                ({"dataset": {"type": "my photos", "name": "x"}}, "dataset.type"),
                ({"dataset": {"type": "x"}}, "dataset.name"),
                ({"dataset": {"type": "x", "name": "x", "config": 3}}, "a string as config"),
                ({"metrics": []}, "metrics"),
                ({"metrics": [{"value": 1}]}, "metrics[0].type"),
                ({"metrics": [{"type": "x", "value": float("nan")}]}, "metrics[0].value"),
                ({"metrics": [{"type": "x"}]}, "metrics[0].value"),
            ]
        ),
    ],
)
def test_what_the_hub_refuses_is_found(content, problem):
    (found,) = card_problems(content)
    assert problem in found
