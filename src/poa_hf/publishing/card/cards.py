"""The model cards of a release: one for each size, and one for the supernet from which all sizes are cut.

A card states only what its run has recorded, so the same run gives the same bytes. The text is in the
templates of this folder, `size.md.jinja` and `supernet.md.jinja`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ...formatting import format_quantity
from ...locations import is_repo_id
from ...runs.facts import RunFacts
from ...sub_network import SubNetwork
from ..formats.format import Format
from ..hub.names import published_names
from . import values
from .facts import CardFacts
from .markdown import escape, link
from .picture import PICTURE, draw_sizes
from .results import eval_results, results_text
from .templates import render

CARD = "README.md"
__all__ = ["CARD", "PICTURE", "write_card", "write_supernet_card"]


def write_card(
    folder: Path,
    facts: CardFacts,
    sub_network: SubNetwork,
    format: Format,
    name: str,
    parameters: int,
    supernet: str | None = None,
    hints: str = "",
) -> None:
    """Write the card of one size, `README.md` and `family.png`, beside its checkpoint.

    Args:
        folder: The folder of the checkpoint.
        facts: The facts of the run.
        sub_network: The size.
        format: The format of the checkpoint.
        name: What the card's code loads: the id of the repository, `namespace/name`, or the name of the folder.
        parameters: The number of parameters of the checkpoint.
        supernet: The id of the supernet's repository, if that is published too.
        hints: What else the card says about the use of the checkpoint, as Markdown.
    """
    space = facts.space
    named = published_names(facts.config.backbone_config)
    size_names = [escape(label) for label, size in named.items() if size == sub_network]
    stock_config = facts.config.backbone_config.stock_config(sub_network)
    sizes = values.compared_sizes(facts, sub_network)
    records = facts.results(sub_network)
    snippet = format.snippet(name)
    text = render(
        "size.md.jinja",
        title=_title(name),
        model_kind=format.model_kind,
        parameters=format_quantity(parameters) if parameters >= 1e6 else f"{parameters:,}",
        how_trained=values.how_trained(facts),
        width=sub_network.width,
        depth="-".join(map(str, sub_network.depths)),
        size=f"`{sub_network}`" + "".join(f", called *{size_name}*" for size_name in size_names),
        one_of_sizes=f"one of {len(space)} sizes" if len(space) > 1 else "the only size",
        trained_sizes=values.trained_sizes(facts, sub_network),
        supernet=link(supernet, f"{values.HUB}/{supernet}") if is_repo_id(supernet) else "",
        snippet=snippet,
        image=values.image_words(stock_config.num_channels, format.library),
        processor=values.processor_words(stock_config.num_channels) if "AutoImageProcessor" in snippet else "",
        hints=hints,
        num_features=getattr(stock_config, "hidden_size", None) or stock_config.hidden_sizes[-1],
        requirements=format.requirements,
        caption=escape(draw_sizes(folder, facts, sub_network)),
        sizes=sizes,
        quality=values.quality_of(facts.quality, sizes),
        results=results_text(records),
        **values.run_values(facts),
    )
    tags = ["poa", "self-supervised", "elastic", format.name, *format.tags]
    base_model = supernet if is_repo_id(supernet) else None
    _write(folder, _metadata(facts, name, format.library, tags, base_model, eval_results(records)), text)


def write_supernet_card(folder: Path, facts: CardFacts, name: str, sizes: Mapping[SubNetwork, str]) -> None:
    """Write the card of the model from which all sizes are cut, `README.md` and `family.png`.

    Args:
        folder: The folder of the model.
        facts: The facts of the run.
        name: The id of its repository, or the name of its folder.
        sizes: The published sizes, each with the id of its repository or the name of its folder.
    """
    space = facts.space
    example = next(iter(space.named), str(space.smallest))
    rows = values.published_sizes(facts, sizes)
    text = render(
        "supernet.md.jinja",
        title=_title(name),
        num_sizes=len(space),
        trained_sizes=values.trained_sizes(facts),
        full=f"`{space.full}`",
        smallest=f"`{space.smallest}`",
        extract_command=shlex.join(["poa", "extract", name, "--size", example, "--output", f"poa-{example}"]),
        quoted_name=json.dumps(name, ensure_ascii=False),
        quoted_size=json.dumps(example),
        crop_sizes=values.crop_sizes(facts),
        caption=escape(draw_sizes(folder, facts)),
        sizes=rows,
        quality=values.quality_of(facts.quality, rows),
        num_others=len(space) - len(sizes),
        **values.run_values(facts),
    )
    source = facts.run.started_from
    base_model = source if is_repo_id(source) else None
    tags = ["poa", "self-supervised", "elastic", "supernet"]
    _write(folder, _metadata(facts, name, "poa_hf", tags, base_model, []), text)


def _title(name: str) -> str:
    return escape(name.rpartition("/")[2])


def _metadata(
    facts: CardFacts, name: str, library: str, tags: list[str], base_model: str | None, results: list[EvalResult]
) -> ModelCardData:
    """Return the block at the top of the card, which the Hub reads."""
    owner = facts.owner
    return ModelCardData(
        library_name=library,
        pipeline_tag="image-feature-extraction",
        tags=tags,
        base_model=base_model,
        license=owner.license,
        license_name=owner.license_name,
        license_link=owner.license_link,
        datasets=_dataset_ids(facts.run) or None,
        metrics=["accuracy"] if any(result.metric_type == "accuracy" for result in results) else None,
        model_name=name.rpartition("/")[2] if results else None,  # the name under which the Hub lists the results
        eval_results=results or None,
    )


def _dataset_ids(run: RunFacts) -> list[str]:
    """Return the Hub ids of the training images."""
    return [each for each in (run.dataset_id, *(part.id for part in run.datasets)) if each]


def _write(folder: Path, data: ModelCardData, text: str) -> None:
    card = ModelCard(f"---\n{data.to_yaml(line_break=chr(10))}\n---\n\n{text}")
    (folder / CARD).write_text(str(card), encoding="utf-8", newline="\n")
