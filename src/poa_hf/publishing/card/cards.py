"""The model cards of a published family: of each size, and of the supernet that all were cut from.

A card says what its run has written down, and nothing else; the same run gives the same bytes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ...data.crops import CropArguments
from ...elastic import SubNetwork
from ...formatting import format_quantity
from ...models.elastic_config import image_shape
from ..formats.format import Format
from . import sections as text
from .facts import CardFacts
from .markdown import code, escape, link, table
from .metadata import is_repo_id
from .picture import FILE_NAME as PICTURE
from .picture import draw_family
from .results import eval_results, results_text

CARD = "README.md"


def write_card(
    folder: Path,
    facts: CardFacts,
    sub_network: SubNetwork,
    format: Format,
    name: str,
    parameters: int,
    supernet: str | None = None,
) -> None:
    """Write the card of one size, `README.md` and `family.png`, beside its checkpoint.

    Args:
        name: The id of the repository, `namespace/name`, or the name of the folder, which the card's code loads.
        parameters: Of the checkpoint.
        supernet: The id of the repository of the model that it was cut from, if that is published too.
    """
    space = facts.space
    names = [given for given, size in space.named.items() if size == sub_network]
    called = f"`{sub_network}`" + "".join(f", called *{escape(given)}*" for given in names)
    depth = "-".join(map(str, sub_network.depths))
    count = f"{format_quantity(parameters)} parameters" if parameters >= 1e6 else f"{parameters:,} parameters"
    opening = (
        f"A {format.model_kind} of {count} that turns an image into features, {text.how_trained(facts)}. Its width "
        f"is {sub_network.width}, its depth {depth} ({called}): {text.count_sizes(space)} of one run of {text.PAPER}. "
        "It has no classifier."
    )
    if is_repo_id(supernet):
        opening += f" It was cut from {link(supernet, f'https://huggingface.co/{supernet}')}, which holds them all."
    stock = facts.config.backbone_config.stock_config(sub_network)
    features = getattr(stock, "hidden_size", None) or stock.hidden_sizes[-1]
    use = code(format.snippet(name), "python")
    use += f"\n\n`image` is a PIL image, and `features` has the shape (1, {features}). {format.requirements}"
    measured = facts.results(sub_network)
    caption = draw_family(folder, facts, sub_network)
    sections = {
        "": opening,
        " ": facts.owner.about,
        "Use": use,
        "Its size in the family": text.family_text(facts, sub_network, caption, PICTURE) if len(space) > 1 else None,
        "Results": results_text(measured),
        **_last_sections(facts),
    }
    results = eval_results(measured)
    data = _card_data(
        facts,
        name,
        format.library,
        ["poa", "self-supervised", "elastic", format.name],
        base_model=supernet if is_repo_id(supernet) else None,
        metrics=["accuracy"] if any(result.metric_type == "accuracy" for result in results) else None,
        eval_results=results or None,
    )
    _write(folder, data, name, sections)


def write_supernet_card(folder: Path, facts: CardFacts, name: str, sizes: Mapping[SubNetwork, str]) -> None:
    """Write the card of the model that all sizes were cut from, `README.md` and `family.png`.

    Args:
        name: The id of its repository, or the name of its folder.
        sizes: The published sizes, each with the id of its repository or the name of its folder.
    """
    space = facts.space
    shown = json.dumps(name, ensure_ascii=False)
    opening = (
        f"All {len(space)} sizes of one run of {text.PAPER}, in one model: teacher, student and projection heads of "
        f"the full size `{space.full}`, from which every size down to `{space.smallest}` is cut. poa_hf reads it; the "
        "sizes, once cut, are stock models that do not need it."
    )
    size = next(iter(space.named), str(space.smallest))
    command = f"poa extract {shlex.quote(name)} --size {shlex.quote(size)} --output {shlex.quote(f'poa-{size}')}"
    extract = code(command, "shell") + "\n\nor\n\n"
    extract += code(_EXTRACT.format(name=shown, size=json.dumps(size)), "python")
    train = code(_CONTINUE.format(name=shown, arguments=_arguments(facts)), "python")
    train += "\n\nThe optimizer starts anew."
    caption = draw_family(folder, facts)
    sections = {
        "": opening,
        " ": facts.owner.about,
        "Take a size out": extract,
        "Train on": train,
        "Sizes": _sizes_text(facts, sizes, caption),
        **_last_sections(facts),
    }
    tags = ["poa", "self-supervised", "elastic", "supernet"]
    source = facts.run.started_from if is_repo_id(facts.run.started_from) else None
    _write(folder, _card_data(facts, name, "poa_hf", tags, base_model=source), name, sections)


_EXTRACT = """from poa_hf import PoaForPreTraining

model = PoaForPreTraining.from_pretrained({name})
size = model.teacher.extract({size})  # a stock model"""
_CONTINUE = """from datasets import load_dataset
from poa_hf import PoaForPreTraining, PoaTrainer, PoaTrainingArguments

images = load_dataset("my/images", split="train", streaming=True)
model = PoaForPreTraining.from_pretrained({name})
args = PoaTrainingArguments(
{arguments}
)
PoaTrainer(model, args, train_dataset=images).train()"""


def _arguments(facts: CardFacts) -> str:
    """Those of further training; the sides of crops, where they are not the usual ones."""
    usual = CropArguments()
    sides = {name: facts.run.arguments.get(name) for name in ("global_crop_size", "local_crop_size")}
    sides["global_crop_size"] = sides["global_crop_size"] or image_shape(facts.config.backbone_config)[1]
    given = {"output_dir": '"runs/more"', "max_steps": "10_000"}
    given |= {name: side for name, side in sides.items() if side and side != getattr(usual, name)}
    return "\n".join(f"    {name}={value}," for name, value in given.items())


def _sizes_text(facts: CardFacts, sizes: Mapping[SubNetwork, str], caption: str | None) -> str:
    space, quality = facts.space, facts.quality
    parts = [f"![{caption}]({PICTURE})\n\n{caption}."] if caption is not None else []
    if sizes:
        values = {} if quality is None else quality.values
        rows = []
        for size, repo in sorted(sizes.items(), key=lambda item: (facts.costs[item[0]].parameters, item[0])):
            costs = facts.costs[size]
            row = [f"`{size}`", format_quantity(costs.parameters), format_quantity(costs.flops)]
            row += [] if quality is None else [text.percent(values.get(size))]
            target = link(repo, f"https://huggingface.co/{repo}") if is_repo_id(repo) else escape(repo)
            rows.append([*row, target])
        head = ["size", "parameters", "FLOPs", *([] if quality is None else [quality.title]), "model"]
        parts.append(table(head, rows, right=range(1, len(head) - 1)))
        parts.append("FLOPs are those of one image, a multiplication and its addition counted once.")
        if quality is not None:
            parts[-1] += f" {escape(text.sentence(quality.description))}"
    if others := len(space) - len(sizes):
        parts.append(f"{others} {'other sizes' if sizes else 'sizes'} can be taken out as above.")
    return "\n\n".join(parts)


def _last_sections(facts: CardFacts) -> dict[str, str]:
    return {
        "Training": text.training_text(facts),
        "Licence": text.licence_text(facts),
        "Citation": code(text.CITATION, "bibtex"),
    }


def _card_data(facts: CardFacts, name: str, library: str, tags: list[str], **more) -> ModelCardData:
    owner = facts.owner
    return ModelCardData(
        library_name=library,
        pipeline_tag="image-feature-extraction",
        tags=tags,
        license=owner.license,
        license_name=owner.license_name,
        license_link=owner.license_link,
        datasets=[facts.run.dataset_id] if facts.run.dataset_id else None,
        model_name=name.rpartition("/")[2],
        **more,
    )


def _write(folder: Path, data: ModelCardData, name: str, sections: Mapping[str, str | None]) -> None:
    """Sections by their titles; those of blanks have none, and empty ones are left out."""
    if data.eval_results is None:
        data.model_name = None  # a name for results that are not there
    body = [f"# {escape(name.rpartition('/')[2])}"]
    body += [f"## {title}\n\n{part}" if title.strip() else part for title, part in sections.items() if part]
    card = ModelCard(f"---\n{data.to_yaml(line_break=chr(10))}\n---\n\n" + "\n\n".join(body) + "\n")
    (folder / CARD).write_text(str(card), encoding="utf-8", newline="\n")
