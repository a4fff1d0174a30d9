"""Small cards of a tiny model, and what readers see of them."""

from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from poa_hf import SubNetwork
from poa_hf.formatting import format_quantity
from poa_hf.publishing.card.cards import write_card
from poa_hf.publishing.card.facts import CardFacts
from poa_hf.publishing.card.metadata import card_problems
from poa_hf.publishing.card.owner import OwnerFacts
from poa_hf.publishing.formats.format import find_format
from poa_hf.runs.evaluations import Evaluation
from poa_hf.runs.facts import RunFacts

from ...conftest import tiny_config

SIZE = SubNetwork(16, 2)
DINOV2 = find_format("dinov2")
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
