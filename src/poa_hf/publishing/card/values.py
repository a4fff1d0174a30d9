"""The values that the templates of cards show, as Markdown; what is not known is empty."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...data.crops import CropArguments
from ...data.sources import TEXTURES
from ...formatting import capitalised, enumerated, format_duration, format_quantity
from ...locations import is_repo_id
from ...models.configuration_poa import PoaConfig
from ...models.elastic_config import image_shape
from ...runs.comparison import Comparison
from ...runs.training_time import ComputePart
from ...sub_network import SubNetwork
from .facts import CardFacts
from .markdown import escape, link

HUB = "https://huggingface.co"
PAPER = "[POA](https://arxiv.org/abs/2408.01031)"
CITATION = """@inproceedings{zhang2024poa,
  title     = {{POA}: Pre-training Once for Models of All Sizes},
  author    = {Zhang, Yingying and Guo, Xin and Lao, Jiangwei and Yu, Lei and Ru, Lixiang and Wang, Jian and
               Ye, Guo and He, Huimei and Chen, Jingdong and Yang, Ming},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2024}
}"""


@dataclass(frozen=True)
class SizeRow:
    """One line of a table of sizes.

    Args:
        label: "this", "smallest" or "full", on a size's own card.
        model: The repository or folder of the size, on a supernet's card.
        quality: The measured value, in percent.
    """

    size: str
    parameters: str
    flops: str
    quality: str
    label: str = ""
    model: str = ""


@dataclass(frozen=True)
class Quality:
    """What a table of sizes shows in its column of measured values: its title, and a sentence about it."""

    title: str
    description: str


def run_values(facts: CardFacts) -> dict[str, Any]:
    """Return the values of `run.md.jinja`, which both kinds of cards end with."""
    how = how_trained(facts)
    return {
        "paper": PAPER,
        "about": facts.owner.about or "",
        "training_start": f"The model {how}",
        "dataset": dataset_name(facts),
        "is_only_ordered": facts.run.is_only_ordered,
        "is_warm_started": facts.run.started_from is not None,
        "foreign_teacher": "" if facts.run.distilled_from is None else _model_name(facts.run.distilled_from),
        "settings": settings(facts),
        "licence": licence(facts),
        "contact": escape(facts.owner.contact or ""),
        "citation": CITATION,
    }


def image_words(num_channels: int, library: str = "transformers") -> str:
    """Say what the code on the card of a model of these channels takes for an image."""
    if num_channels == 3:
        return "a PIL image" if library != "timm" else 'an RGB PIL image (`image.convert("RGB")`)'
    if num_channels == 1:
        return 'a grey PIL image (`image.convert("L")`)'
    if library == "timm":
        return f"a float tensor of shape ({num_channels}, height, width) with values from 0 to 1"
    # without torchvision, Pillow resizes two and four channels as if the last were opacity, and no others
    return (
        f'a uint8 array of shape ({num_channels}, height, width), given with `input_data_format="channels_first"`, '
        "which `transformers` resizes well where torchvision is installed (0 and 255 are the values of `image_range` "
        "in `preprocessor_config.json`, if it says any)"
    )


def processor_words(num_channels: int) -> str:
    """Say what the processor based on torchvision, which `AutoImageProcessor` prefers, does otherwise than Pillow's."""
    if num_channels not in (1, 3):
        return ""  # Pillow's cannot be used (see `image_words`)
    return (
        "Where torchvision is installed, `AutoImageProcessor` uses it to resize, which rounds otherwise than Pillow: "
        "pixel values differ by a few thousandths to hundredths, and features a little. "
        '`AutoImageProcessor.from_pretrained(..., backend="pil")` prepares images as in this run\'s evaluations.'
    )


def how_trained(facts: CardFacts) -> str:
    """Return the predicate of "The model ...": pre-trained from scratch, from another model, or distilled from one."""
    source, teacher = facts.run.started_from, facts.run.distilled_from
    if source is not None and facts.run.is_only_ordered:
        return (
            f"was initialised from {_model_name(source)}, its units put in order of importance, and not trained further"
        )
    if source is None and teacher is None:
        return "was pre-trained without labels"
    # the training of the other model may have used labels
    if source is None:
        return f"was distilled from {_model_name(teacher or '')} without labels"
    further = "pre-trained further" if teacher is None else f"distilled from {_model_name(teacher)}"
    return f"was initialised from {_model_name(source)} and {further} without labels"


def trained_sizes(facts: CardFacts, sub_network: SubNetwork | None = None) -> str:
    """Return a sentence on which sizes were trained, if these are not all.

    Args:
        facts: The facts of the run.
        sub_network: The size that the card is about; None for that of all sizes.
    """
    space = facts.space
    if facts.run.is_only_ordered:
        return ""
    if facts.config.intact_weight == 1 and len(space) > 1:
        return "Only the full size was trained; the others are slices of its weights."
    if space.num_candidates in (None, len(space)):
        return ""
    sentence = f"Of these sizes, {space.num_candidates} were trained, spread evenly"
    if sub_network is None:
        return f"{sentence}; the others are slices of the same weights."
    if sub_network in space.candidates:
        return f"{sentence}, this one among them."
    return f"{sentence}; this one is a slice of the same weights that was not trained itself."


def _model_name(name: str) -> str:
    """Return the name of another model, with a link if it is on the Hub."""
    return link(name, f"{HUB}/{name}") if is_repo_id(name) else escape(name)


def dataset_name(facts: CardFacts) -> str:
    """Return the training images, with a link if they are on the Hub."""
    run = facts.run
    if run.dataset is None:
        return ""
    if run.datasets:
        return enumerated(
            f"{link(each.id, f'{HUB}/datasets/{each.id}') if each.id else escape(each.name)} ({each.share})"
            for each in run.datasets
        )
    if run.dataset == TEXTURES:
        return "the synthetic textures that poa_hf draws"
    if run.dataset_id is None:
        return f"{escape(run.dataset)} (a local folder)"
    name = link(run.dataset_id, f"{HUB}/datasets/{run.dataset_id}")
    details = [run.dataset_config, run.dataset_split and f"split {run.dataset_split}"]
    shown = ", ".join(escape(detail) for detail in details if detail)
    return f"{name} ({shown})" if shown else name


def licence(facts: CardFacts) -> str:
    """Return the licence of the weights."""
    owner = facts.owner
    if owner.license_name and owner.license_link:
        return link(owner.license_name, owner.license_link)
    return f"`{owner.license}`" if owner.license else ""


def settings(facts: CardFacts) -> dict[str, str]:
    """Return the settings of the run that are known, in the order in which the card shows them."""
    run, config = facts.run, facts.config
    ordered = "" if run.units_ordered_on is None else f"by the features of {run.units_ordered_on:,} images"
    if run.is_only_ordered:
        return {"units in order of importance": ordered}
    rows = {
        "steps": _count(run.steps),
        "images per step": _count(run.batch_size),
        "images seen": _count(run.images_seen),
        **dict(_training_arguments(run.arguments, run.peak_learning_rate)),
        "units in order of importance before sub-networks were trained": ordered,
        **_what_is_matched(config),
        "loss weight of the full-size student": f"{config.intact_weight:g}",
        "loss weight of same-view terms": f"{config.same_view_weight:g}" if config.same_view_weight != 1 else "",
        "targets of a smaller student": "of the teacher's slice of its size" if config.elastic_teacher else "",
        "loss weight of KoLeo": f"{config.koleo_weight:g}",
        "loss weight of Gram anchoring": _gram_anchoring(config),
        "training time": training_time(run.compute),
    }
    return {setting: value for setting, value in rows.items() if value}


def _what_is_matched(config: PoaConfig) -> dict[str, str]:
    """Return what the students learn from the teacher: prototypes, or the features of a foreign one."""
    fields = config.distillation or {}
    features = "image and patch features" if fields.get("patch_features") else "image features"
    if fields.get("loss") == "features":
        return {"learnt from the teacher": escape(f"{features}, {fields.get('metric')}")}
    prototypes = {"prototypes": " + ".join(f"{number:,}" for number in config.num_prototypes)}
    return {"learnt from the teacher": f"prototypes of {features}", **prototypes} if fields else prototypes


def _gram_anchoring(config: PoaConfig) -> str:
    """Return the weight of Gram anchoring and what the anchors come from; nothing without it."""
    if not config.gram_weight:
        return ""
    fields = config.gram_teacher or {}
    teacher = "the teacher at the start" if fields.get("teacher") is None else escape(str(fields["teacher"]))
    size = fields.get("image_size")
    return f"{config.gram_weight:g}, to {teacher}" + (f" at {size} pixels" if type(size) is int else "")


def _training_arguments(arguments: Mapping[str, Any], peak_learning_rate: float | None) -> Iterator[tuple[str, str]]:
    """Yield the trainer's arguments that change what is learnt. Those that are no numbers are left out."""
    arguments = {name: value for name, value in arguments.items() if isinstance(value, int | float)}

    def schedule(first: str, last: str) -> str:
        """Return the first and the last value of a schedule."""
        if first not in arguments or last not in arguments:
            return ""
        return " to ".join(f"{value:g}" for value in dict.fromkeys((arguments[first], arguments[last])))

    if peak_learning_rate is not None:
        yield "peak learning rate (AdamW)", f"{peak_learning_rate:.3g}"
    if "warmup_steps" in arguments:
        yield "warm-up", f"{arguments['warmup_steps']:,} steps"
    yield "weight decay", schedule("weight_decay", "final_weight_decay")
    yield "teacher momentum", schedule("teacher_momentum", "final_teacher_momentum")
    yield "teacher temperature", schedule("teacher_temperature", "final_teacher_temperature")
    if {"global_crop_size", "local_crop_size", "num_local_crops"} <= arguments.keys():
        large, small, count = (arguments[name] for name in ("global_crop_size", "local_crop_size", "num_local_crops"))
        local_crops = f", {count} of {small} x {small}" if count else ""
        yield "crops per image", f"2 of {large} x {large} pixels{local_crops}"
    if first := arguments.get("elastic_start_step"):
        yield "steps before smaller students were trained", f"{first:,}"
    if (students := arguments.get("num_elastic_students")) and students != 1:
        yield "smaller students per step", f"up to {students}"
    if "bf16" in arguments:
        yield "precision", "bfloat16 (autocast)" if arguments["bf16"] else "float32"


def training_time(parts: Iterable[ComputePart]) -> str:
    """Return the time on each kind of machine, such as `3 h 20 min on 8 x NVIDIA H100 (26.7 device hours)`."""
    seconds: dict[tuple[str, int], float] = {}
    for part in parts:
        machine = part.device, part.processes
        seconds[machine] = seconds.get(machine, 0) + part.seconds
    texts = []
    for (device, processes), duration in seconds.items():
        if device == "CPU":
            machines = "a CPU" if processes == 1 else f"CPUs ({processes} processes)"
            texts.append(f"{format_duration(duration)} on {machines}")
        else:
            device_hours = processes * duration / 3600
            machines = f"{processes} x {escape(device)}"
            texts.append(f"{format_duration(duration)} on {machines} ({device_hours:.3g} device hours)")
    return ", then ".join(texts)


def compared_sizes(facts: CardFacts, sub_network: SubNetwork) -> list[SizeRow]:
    """Return the rows of a size, the smallest and the full one; none if the run has only one size."""
    space = facts.space
    if len(space) == 1:
        return []
    labels: dict[SubNetwork, list[str]] = {}
    for label, size in (("this", sub_network), ("smallest", space.smallest), ("full", space.full)):
        labels.setdefault(size, []).append(label)
    return [
        size_row(facts, size, label=first + "".join(f" ({other})" for other in others))
        for size, (first, *others) in labels.items()
    ]


def published_sizes(facts: CardFacts, models: Mapping[SubNetwork, str]) -> list[SizeRow]:
    """Return the rows of the published sizes, from few to many parameters."""
    rows = []
    for size in sorted(models, key=lambda size: (facts.costs[size].parameters, size)):
        model = models[size]
        rows.append(size_row(facts, size, model=link(model, f"{HUB}/{model}") if is_repo_id(model) else escape(model)))
    return rows


def size_row(facts: CardFacts, size: SubNetwork, label: str = "", model: str = "") -> SizeRow:
    """Return the costs and the measured value of one size."""
    costs = facts.costs[size]
    values = facts.quality.values if facts.quality else {}
    return SizeRow(
        size=f"`{size}`",
        parameters=format_quantity(costs.parameters),
        flops=format_quantity(costs.flops),
        quality=f"{100 * values[size]:.1f} %" if size in values else "",
        label=label,
        model=model,
    )


def quality_of(comparison: Comparison | None, rows: Iterable[SizeRow]) -> Quality | None:
    """Return what the column of measured values shows; None if none of the rows was measured."""
    if comparison is None or not any(row.quality for row in rows):
        return None
    description = comparison.description
    return Quality(escape(comparison.title), escape(f"{capitalised(description)}."))


def crop_sizes(facts: CardFacts) -> dict[str, int]:
    """Return the arguments of further training for the sides of crops, if they are not the default ones."""
    known = {name: size for name, size in facts.run.arguments.items() if size and isinstance(size, int)}
    sizes = {"global_crop_size": image_shape(facts.config.backbone_config)[1]} | known
    usual = {name: getattr(CropArguments(), name) for name in ("global_crop_size", "local_crop_size")}
    return {name: sizes[name] for name in usual if sizes.get(name, usual[name]) != usual[name]}


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
