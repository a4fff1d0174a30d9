"""A card never contradicts itself: every number of a size is from one record, wherever on the card it stands."""

import random
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from poa_hf import SubNetwork
from poa_hf.figures import charts
from poa_hf.publishing.card.cards import write_card, write_supernet_card
from poa_hf.publishing.card.facts import CardFacts
from poa_hf.publishing.card.size_table import size_table
from poa_hf.publishing.formats.format import find_format
from poa_hf.runs.comparison import images_of
from poa_hf.runs.evaluations import Evaluation
from poa_hf.runs.facts import RunFacts
from poa_hf.runs.metrics import metric_name

from ...conftest import tiny_config
from ...runs.test_comparison import random_record
from .helpers import COSTS, tables

STEP = 50
SPACE = tiny_config().backbone_config.space
DINOV2 = find_format("dinov2", None)


def facts_of(*records: Evaluation) -> CardFacts:
    facts = CardFacts(RunFacts(tiny_config(), steps=STEP, evaluations=records))
    vars(facts)["costs"] = COSTS  # what it would count each time
    return facts


def shown(value: float) -> str:
    return f"{100 * value:.1f} %"


@pytest.fixture
def drawn(monkeypatch) -> list[dict]:
    """The qualities that pictures show, instead of pictures."""
    found = []

    def chart(theme, cost, quality, *args):
        found.append(dict(quality))
        return Blank()

    class Blank:
        def set_facecolor(self, color):
            pass

        def savefig(self, buffer, **options):
            buffer.write(b"")

    monkeypatch.setattr(charts, "pareto_chart", chart)
    monkeypatch.setattr(charts, "cost_chart", lambda *args: Blank())
    return found


def card_of(folder: Path, facts: CardFacts, size: SubNetwork) -> ModelCard:
    write_card(folder, facts, size, DINOV2, "me/poa", 10_048)
    return ModelCard.load(folder / "README.md")


def record(size: str, value: float, **fields) -> Evaluation:
    usual = dict(
        model="run", task="knn", metric="knn_accuracy", dataset="textures", test_split="test", test_images=1000,
        train_split="train", train_images=200, date="2026-11-25", settings={"k": 20}, step=STEP,
    )  # fmt: skip
    return Evaluation(size=size, value=value, **usual | fields)


def test_the_picture_the_tables_and_the_results_are_of_the_same_images(tmp_path, drawn):
    """Two sizes on 1,000 images and one of them on 5,000: the card once said 50 % above and 55 % below."""
    few = [record("16x2", 0.50), record("32x3", 0.60)]
    facts = facts_of(*few, record("16x2", 0.55, test_images=5000))
    card = card_of(tmp_path, facts, SubNetwork(16, 2))
    family, results = tables(card)[:2]
    assert family[1][-1] == "50.0 %" and results[1:] == [["20-NN accuracy", "50.0 %"]]
    assert [result.metric_value for result in card.data.eval_results] == [0.5]
    assert drawn == [{SubNetwork(16, 2): 0.5, SubNetwork(32, 3): 0.6}] and "55" not in card.text
    assert "20-NN accuracy on textures at step 50 (1,000 test images classified by 200 train images)." in card.text
    assert size_table(facts, None, {})["measured"] == {"knn_accuracy": facts.quality.description}


@pytest.mark.parametrize(
    "other",
    [
        record("16x2", 0.55, dataset="photos", test_images=5000),
        record("16x2", 0.55, test_split="validation", test_images=5000),
        record("16x2", 0.55, settings={"k": 10}, test_images=5000),
    ],
    ids=["dataset", "split", "k"],
)
def test_numbers_of_another_measure_are_shown_beside_it(tmp_path, drawn, other):
    card = card_of(tmp_path, facts_of(record("16x2", 0.50), record("32x3", 0.60), other), SubNetwork(16, 2))
    family, *results, _ = tables(card)
    assert family[1][-1] == "50.0 %" and sorted(row[1] for table in results for row in table[1:]) == [
        "50.0 %",
        "55.0 %",
    ]
    assert images_of(other) in card.text


@pytest.mark.parametrize(
    "other",
    [
        record("16x2", 0.55, step=40, test_images=5000),
        record("16x2", 0.55, step=60),
        record("16x2", 0.55, step=None, test_images=5000),
        record("16x2", float("nan"), date="2026-11-26"),
        record("-", 0.55, test_images=5000),
        record("16x2", 0.55, train_images=100),
        record("16x2", 0.55, settings={"k": 20, "temperature": 1.0}),
    ],
    ids=["an earlier step", "a later step", "no step", "not a number", "a stock checkpoint", "votes", "settings"],
)
def test_what_does_not_count_is_not_shown(tmp_path, drawn, other):
    card = card_of(tmp_path, facts_of(record("16x2", 0.50), record("32x3", 0.60), other), SubNetwork(16, 2))
    assert "50.0 %" in card.text and "55.0 %" not in card.text and "nan" not in card.text


def test_a_size_that_the_tables_lack_says_on_how_many_images_it_was_measured(tmp_path, drawn):
    facts = facts_of(record("16x1", 0.40), record("32x3", 0.60), record("16x2", 0.55, test_images=5000))
    card = card_of(tmp_path, facts, SubNetwork(16, 2))
    family, results = tables(card)[:2]
    assert [row[-1] for row in family[1:]] == ["", "40.0 %", "60.0 %"] and results[1][1] == "55.0 %"
    assert "5,000 test images classified by 200 train images:" in card.text and drawn == []


@pytest.mark.parametrize("seed", range(30))
def test_no_two_numbers_contradict_each_other(tmp_path, drawn, seed):
    generator = random.Random(seed)
    sizes = tuple(map(str, SPACE))
    records = [random_record(generator, index, sizes) for index in range(generator.choice((3, 10, 40, 150)))]
    facts = facts_of(*records)
    by_text = {shown(r.value): r for r in records}
    assert len(by_text) == len(records)

    def common(texts) -> set:
        """What the records of some numbers have in common; more than one entry where they do not compare."""
        return {by_text[text].key.replace(f'"size": "{by_text[text].size}"', "") for text in texts}

    tables_of_sizes = {}
    for size in SPACE:
        drawn.clear()
        card = card_of(tmp_path, facts, size)
        family, *results, _ = tables(card)
        if len(family[0]) == 5:
            rows = {row[1]: row[4] for row in family[1:] if row[4]}
            assert all(by_text[text].size == name for name, text in rows.items()) and len(common(rows.values())) == 1
            tables_of_sizes |= rows
            (example,) = [by_text[text] for text in list(rows.values())[:1]]
            assert images_of(example) in card.text
        titles = re.findall(r"^\*\*(\w+)\*\*, (.*):$", card.text, re.MULTILINE)
        assert len(titles) == len(results)
        seen = {}
        for (dataset, images), table in zip(titles, results, strict=True):
            for name, text in table[1:]:
                found = by_text[text]
                assert (found.size, found.dataset, metric_name(found)) == (str(size), dataset, name)
                assert found.step in (None, STEP)
                assert images_of(found) == images or found.train_images is None and images.startswith(images_of(found))
                measure = dataset, found.test_split, name
                assert measure not in seen, "two numbers for the same measure"
                seen[measure] = text
        if text := tables_of_sizes.get(str(size)):
            found = by_text[text]
            assert seen[found.dataset, found.test_split, metric_name(found)] == text
        stored = {
            (r.dataset_name, r.dataset_split, r.metric_name): shown(r.metric_value)
            for r in card.data.eval_results or ()
        }
        assert stored.items() <= seen.items()
        if text:  # and the metadata has that very number
            assert text in stored.values()
        for quality in drawn:
            assert all(tables_of_sizes.get(str(s), shown(value)) == shown(value) for s, value in quality.items())
    assert len(common(tables_of_sizes.values())) <= 1, "the cards of two sizes show numbers that do not compare"

    drawn.clear()
    write_supernet_card(tmp_path, facts, "me/super", {size: f"me/{size}" for size in SPACE})
    (table, *_) = tables(ModelCard.load(tmp_path / "README.md"))
    stored = size_table(facts, None, {})
    for metric in ("knn_accuracy", "linear_accuracy"):
        values = {row["size"]: row[metric] for row in stored["sizes"] if row[metric] is not None}
        assert len(common(map(shown, values.values()))) == bool(values)
        if facts.quality is not None and metric == facts.quality.metric:
            numbers = {row[0]: row[3] for row in table[1:] if row[3]}
            assert numbers == {name: shown(value) for name, value in values.items()}
            assert tables_of_sizes.items() <= numbers.items()
            assert all(quality == facts.quality.values for quality in drawn)
