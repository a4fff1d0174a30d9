"""The sections of a card that say what a run was; each is empty where nothing is known."""

from __future__ import annotations

from collections.abc import Iterable

from ...data.sources import TEXTURES
from ...elastic import ElasticSpace, SubNetwork
from ...formatting import format_duration, format_quantity
from ...runs.training_time import ComputePart
from .facts import CardFacts
from .markdown import escape, link, table
from .metadata import is_repo_id

PAPER = "[POA](https://arxiv.org/abs/2408.01031)"
CITATION = """@inproceedings{zhang2024poa,
  title     = {{POA}: Pre-training Once for Models of All Sizes},
  author    = {Zhang, Yingying and Guo, Xin and Lao, Jiangwei and Yu, Lei and Ru, Lixiang and Wang, Jian and
               Ye, Guo and He, Huimei and Chen, Jingdong and Yang, Ming},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2024}
}"""


def count_sizes(space: ElasticSpace) -> str:
    return f"one of {len(space)} sizes" if len(space) > 1 else "the one size"


def data_name(facts: CardFacts) -> str:
    """The training images, with a link where the Hub has them; empty where they are not known."""
    if facts.run.dataset is None:
        return ""
    if facts.run.dataset == TEXTURES:
        return "the textures that poa_hf draws"
    if facts.run.dataset_id is None:
        return f"{escape(facts.run.dataset)} (a folder)"
    name = link(facts.run.dataset_id, f"https://huggingface.co/datasets/{facts.run.dataset_id}")
    parts = [facts.run.dataset_config, facts.run.dataset_split and f"split {facts.run.dataset_split}"]
    parts = ", ".join(escape(part) for part in parts if part)
    return f"{name} ({parts})" if parts else name


def how_trained(facts: CardFacts) -> str:
    """Without labels: from nothing, or from another model, whose training may have had them."""
    source = facts.run.started_from
    if source is None:
        return "pre-trained without labels"
    name = link(source, f"https://huggingface.co/{source}") if is_repo_id(source) else escape(source)
    return f"started from {name} and trained on without labels"


def training_text(facts: CardFacts) -> str:
    """What the model learnt from, how, and what that cost."""
    config = facts.config
    data = data_name(facts)
    how = how_trained(facts)
    text = f"{how[0].upper()}{how[1:]}{f' on {data}' if data else ''}, by {PAPER}: a full-size student and, at each "
    text += "step, a smaller one cut from its weights learn from a teacher, their moving average, "
    text += "so that one run gives models of all sizes. They are cut from the teacher."
    if facts.run.started_from:
        text += " How the model that it started from was trained, and its licence, count too."
    rows = [
        ("steps", _number(facts.run.steps)),
        ("images per step", _number(facts.run.batch_size)),
        ("images seen", _number(facts.run.images_seen)),
        *_arguments(facts),
        ("prototypes", " + ".join(f"{number:,}" for number in config.num_prototypes)),
        ("weight of the full student, of KoLeo", f"{config.intact_weight:g}, {config.koleo_weight:g}"),
        ("time", compute_text(facts.run.compute)),
    ]
    return f"{text}\n\n" + table(("setting", "value"), [row for row in rows if row[1]])


def _arguments(facts: CardFacts) -> Iterable[tuple[str, str]]:
    """Those of the trainer that change what is learnt."""
    known = facts.run.arguments

    def between(first: str, last: str) -> str:
        values = [known[name] for name in (first, last) if name in known]
        return " to ".join(f"{value:g}" for value in dict.fromkeys(values)) if len(values) == 2 else ""

    if facts.run.peak_learning_rate is not None:
        yield "peak learning rate (AdamW)", f"{facts.run.peak_learning_rate:.3g}"
    if "warmup_steps" in known:
        yield "warm-up", f"{known['warmup_steps']:,} steps"
    yield "weight decay", between("weight_decay", "final_weight_decay")
    yield "teacher momentum", between("teacher_momentum", "final_teacher_momentum")
    yield "teacher temperature", between("teacher_temperature", "final_teacher_temperature")
    if {"global_crop_size", "local_crop_size", "num_local_crops"} <= known.keys():
        sides = known["global_crop_size"], known["local_crop_size"]
        crops = f"2 of {sides[0]} x {sides[0]} pixels"
        if known["num_local_crops"]:
            crops += f", {known['num_local_crops']} of {sides[1]} x {sides[1]}"
        yield "crops of an image", crops
    if "bf16" in known:
        yield "precision", "bfloat16 (autocast)" if known["bf16"] else "float32"


def compute_text(parts: Iterable[ComputePart]) -> str:
    """`3 h 20 min on 8 x NVIDIA A100-SXM4-80GB (26.7 GPU hours)`, and so on for each kind of machine."""
    seconds: dict[tuple[str, int], float] = {}
    for part in parts:
        key = part.device, part.processes
        seconds[key] = seconds.get(key, 0) + part.seconds
    texts = []
    for (device, processes), duration in seconds.items():
        if device == "CPU":
            where = "a CPU" if processes == 1 else f"CPUs ({processes} processes)"
            texts.append(f"{format_duration(duration)} on {where}")
        else:
            hours = processes * duration / 3600
            where = f"{processes} x {escape(device)}"
            texts.append(f"{format_duration(duration)} on {where} ({hours:.3g} device hours)")
    return ", then ".join(texts)


def family_text(facts: CardFacts, sub_network: SubNetwork, caption: str | None, picture: str) -> str:
    """The size beside the smallest and the full one, and the picture of all."""
    space, quality = facts.space, facts.quality
    sizes = {"this": sub_network, "smallest": space.smallest, "full": space.full}
    head = ["", "size", "parameters", "FLOPs"]
    values = {} if quality is None else quality.values
    if not any(size in values for size in sizes.values()):
        quality = None
    if quality is not None:
        head.append(quality.title)
    rows: list[list[str]] = []
    for name, size in sizes.items():
        if name != "this" and size == sub_network:
            rows[0][0] += f", the {name}"
            continue
        costs = facts.costs[size]
        row = [name, f"`{size}`", format_quantity(costs.parameters), format_quantity(costs.flops)]
        rows.append(row if quality is None else [*row, percent(values.get(size))])
    text = table(head, rows, right=range(2, len(head)))
    text += "\n\nFLOPs are those of one image, a multiplication and its addition counted once."
    if quality is not None:
        text += f" {escape(sentence(quality.description))}"
    if caption is not None:
        text = f"![{caption}]({picture})\n\n{caption}.\n\n{text}"
    return text


def licence_text(facts: CardFacts) -> str:
    owner = facts.owner
    if owner.license is None:
        text = "No licence was given for these weights. They were learnt from images, so what may be done with them "
        text += "depends on those images too: ask whoever published them."
    elif owner.license == "other":
        text = f"The weights are under {link(owner.license_name, owner.license_link)}."
    else:
        text = f"The weights are under `{owner.license}`."
    return text + (f"\n\nContact: {escape(owner.contact)}" if owner.contact else "")


def sentence(text: str) -> str:
    """Text with a capital first letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
