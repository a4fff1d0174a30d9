import json
import shlex
import shutil
from pathlib import Path

import datasets
import pytest
from markdown_it import MarkdownIt

from poa_hf import PoaConfig, PoaTrainingArguments, SubNetwork
from poa_hf.cli.main import main
from poa_hf.data.textures import TextureDataset
from poa_hf.locations import is_hub_id
from poa_hf.publishing.card.cards import write_supernet_card
from poa_hf.publishing.card.facts import CardFacts
from poa_hf.publishing.card.metadata import LICENSES
from poa_hf.publishing.card.owner import OwnerFacts
from poa_hf.runs.facts import RunFacts
from poa_hf.runs.training_time import ComputePart
from poa_hf.selection.costs import Costs

from ...conftest import tiny_backbone, tiny_config
from .helpers import FLOPS, SIZE, blocks, facts_of, loaded, record, tables, written


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


def test_a_card_says_small_of_published_spaces_only(tmp_path):
    small = written(tmp_path / "tiny", facts_of(), size=SubNetwork(16, 1))
    assert "(`16x1`), which is one of" in small.text and "called" not in small.text
    facts = CardFacts(RunFacts(PoaConfig()))
    vars(facts)["costs"] = {size: Costs(size.width, size.depths[0], 1) for size in facts.space}  # quick
    published = written(tmp_path / "published", facts, size=SubNetwork(384, 12))
    assert "(`384x12`, called *small*), which is one of 143 sizes" in published.text


def test_a_card_says_whether_its_size_was_trained_itself(tmp_path):
    def text_of(size, **fields):
        config = PoaConfig(backbone_config=tiny_backbone(**fields), num_prototypes=[8])
        folder = tmp_path / f"{size}-{len(fields)}"
        folder.mkdir()
        if size is None:
            write_supernet_card(folder, CardFacts(RunFacts(config)), "all", {})
        else:
            written(folder, CardFacts(RunFacts(config)), size=size)
        return " ".join((folder / "README.md").read_text().split())

    candidates = tiny_backbone(num_candidates=3).space.candidates
    other = next(size for size in tiny_backbone().space if size not in candidates)
    expected = "Of these sizes, 3 were trained, spread evenly"
    assert f"{expected}, this one among them." in text_of(candidates[0], num_candidates=3)
    assert f"{expected}; this one is a slice of the same weights that was not" in text_of(other, num_candidates=3)
    assert f"{expected}; the others are slices of the same weights." in text_of(None, num_candidates=3)
    assert not any("Of these sizes" in text_of(size) for size in (None, other))


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


def test_one_size_is_no_family(tmp_path):
    backbone = tiny_config().backbone_config.plain_config(SIZE)
    facts = CardFacts(RunFacts(tiny_config(backbone), evaluations=(record(),)))
    card = written(tmp_path, facts)
    assert "Compared with" not in card.text and "the only size" in card.text and "## Results" in card.text


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
