"""A report on a run: one HTML page that needs nothing besides itself, and its pictures as PNG files.

Whatever a run does not have (yet) is missing from its report, which says so, and which command makes it.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import yaml
from transformers import AutoConfig, PreTrainedConfig

from ..elastic import ElasticSpace, SubNetwork
from ..publishing.export import resolve_run
from ..training.monitoring import collapse_warning
from ..training.recipe import parse_recipe
from . import report_charts as charts
from .command import column_title
from .costs import Costs, costs, elastic_config, image_shape
from .records import Evaluation, evaluations_file, load_evaluations
from .select import Quality, format_quantity, read_quality, select

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

_GENERATOR = '<meta name="generator" content="poa report">'
_FAMILIES = {"poa_vit": "ViT", "poa_swin": "Swin", "poa_resnet": "ResNet"}


@dataclass(frozen=True)
class Picture:
    """PNGs for light and for dark pages; the same for both where `dark` is None."""

    name: str
    caption: str
    light: bytes
    dark: bytes | None = None
    wide: bool = False

    def files(self) -> dict[str, bytes]:
        files = {f"{self.name}.png": self.light}
        return files if self.dark is None else files | {f"{self.name}-dark.png": self.dark}

    def uri(self, dark: bool = False) -> str:
        return "data:image/png;base64," + base64.b64encode(self.dark if dark else self.light).decode()


@dataclass
class Section:
    """Text, pictures, and of what is missing a sentence and the command that makes it, if one does."""

    id: str
    title: str
    text: str = ""
    pictures: list[Picture] = field(default_factory=list)
    missing: list[tuple[str, str | None]] = field(default_factory=list)

    def chart(self, name: str, caption: str, draw: Callable[..., Figure], *args, **options) -> None:
        """Draw a chart for light and for dark pages."""
        light, dark = (png(draw(theme, *args, **options), charts.DPI) for theme in charts.THEMES)
        self.pictures.append(Picture(name, caption, light, dark))


@dataclass
class RunRecords:
    """What a run has written down. `given` is what its user calls it, `folder` its own folder, not a checkpoint's."""

    given: str
    folder: Path
    config: PreTrainedConfig | None
    without_model: str | None
    lines: list[dict[str, Any]]
    arguments: dict[str, Any]
    recipe: dict[str, Any]
    evaluations: list[Evaluation]
    broken: str | None = None

    def command(self, name: str, *options: str) -> str:
        return shlex.join(["poa", name, self.given, *options])

    @property
    def labelled_data(self) -> str:
        return self.recipe.get("eval_dataset_name") or self.recipe.get("dataset_name") or "DATASET"

    def series(self, value: Callable[[dict], float | None]) -> tuple[list[int], list[float]]:
        """Steps and values of the lines that have one."""
        points = [(line["step"], value(line)) for line in self.lines]
        points = [(step, value) for step, value in points if isinstance(value, int | float)]
        return [step for step, _ in points], [value for _, value in points]

    def all_series(self, prefix: str) -> dict[str, tuple[list[int], list[float]]]:
        """Those of each name with a prefix, by the rest of the name."""
        names = dict.fromkeys(name for line in self.lines for name in line if name.startswith(prefix))
        return {name.removeprefix(prefix): self.series(lambda line, name=name: line.get(name)) for name in names}


def write_report(
    run: str | Path,
    output: str | Path | None = None,
    dataset_name: str | None = None,
    num_images: int = 4,
    quality: str = "knn",
) -> Path:
    """Write `index.html` and its pictures, PNG, into a folder. Gives the page's path.

    Args:
        run: output_dir of a run, one of its checkpoints, or any saved elastic model.
        output: the folder; by default `report` in the run's.
        dataset_name: images for crops and pictures, as `open_dataset` takes it; by default those that the run trains
            on, or the built-in textures where it does not say.
        num_images: how many of them, 1 to 16.
        quality: which accuracy charts show, `knn` or `linear`.

    Raises:
        ValueError: if there is no such run, matplotlib is not installed, `dataset_name` can't be opened, or the folder
            can't be written to or holds another page.
    """
    page, _ = make_report(run, output, dataset_name, num_images, quality)
    return page


def make_report(
    run: str | Path, output: str | Path | None, dataset_name: str | None, num_images: int, quality: str
) -> tuple[Path, list[Section]]:
    """`write_report`, which also gives what the page holds."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("The report's charts need matplotlib: install poa_hf[plots].") from error
    if not 1 <= num_images <= 16:
        raise ValueError(f"{num_images} images can't be shown: give 1 to 16.")
    if quality not in ("knn", "linear"):
        raise ValueError(f"{quality!r} is not an accuracy that charts show: use knn or linear.")
    records = read_run(run)
    folder = Path(output) if output is not None else records.folder / "report"
    _check_folder(folder)
    measured, sizes = Quality(), {}
    if records.config is not None:
        sizes = costs(records.config)
        if not records.broken:
            measured = read_quality(records.folder, records.config.space, quality)
    latencies = read_latencies(records)
    sections = [
        heat_map_section(records, measured, quality),
        pareto_section(records, measured, sizes, latencies, quality),
        (table := Section("sizes", "Sizes")),
        loss_section(records),
        collapse_section(records),
        crops_section(records, dataset_name, num_images),
        pictures_section(records, dataset_name, num_images),
    ]
    if not sizes:
        table.missing.append((records.without_model, None))
    html = _template().render(
        generator=_GENERATOR,
        name=records.folder.name,
        facts=_facts(records, sizes, measured),
        sections=sections,
        columns=_columns(records, sizes, latencies),
        sizes=[(size, _name(records, size)) for size in sizes],
        pixels=image_shape(records.config)[1] if sizes else None,
        date=datetime.now(UTC).date().isoformat(),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for section in sections:
            for picture in section.pictures:
                for name, content in picture.files().items():
                    (folder / name).write_bytes(content)
        (folder / "index.html").write_text(html, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{folder} can't be written to ({error.strerror}): give another --output.") from error
    return folder / "index.html", sections


def png(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    # without the version of matplotlib: the same figure has the same bytes
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


# -- what the run has written


def read_run(run: str | Path) -> RunRecords:
    """Everything but weights. ValueError if there is no run at all."""
    path = Path(run)
    without_model = None
    try:
        model = resolve_run(path)
    except ValueError as error:
        if not path.is_dir():
            raise
        model, without_model = None, str(error)
    folder = evaluations_file(model or path).parent
    recipe = _mapping(folder / "config.yaml", yaml.safe_load)
    lines = _lines(folder / "metrics.jsonl")
    config = None
    if model is not None:
        config = elastic_config(AutoConfig.from_pretrained(model))
    elif recipe:
        try:
            config = parse_recipe(["--config", str(folder / "config.yaml")]).model.backbone_config
        except (ValueError, TypeError):
            config = None  # written by another version: the model will tell
    elif not lines:
        raise ValueError(f"{run} holds neither a model nor a run's records: give the output_dir of a run.")
    arguments = _mapping(folder / "training_args.json", json.loads)
    try:
        evaluations, broken = load_evaluations(folder), None
    except ValueError as error:
        evaluations, broken = [], str(error)
    return RunRecords(str(run), folder, config, without_model, lines, arguments, recipe, evaluations, broken)


def read_latencies(records: RunRecords) -> dict[str, dict[SubNetwork, float]]:
    """Milliseconds of the sizes that `poa select` has measured for this model, by the column's title."""
    found = {}
    if records.config is None:
        return found
    space = records.config.space
    own = json.loads(json.dumps(records.config.stock_config(space.full).to_diff_dict()))
    for path in sorted(records.folder.glob("latency-*.json")):
        saved = _mapping(path, json.loads)
        try:
            sizes = {SubNetwork.parse(size): float(of["median_ms"]) for size, of in saved["measured"].items()}
            title = f"latency on {saved['device']}"
            title += f", batch of {saved['batch_size']}" if saved["batch_size"] != 1 else ""
            title += (", compiled" if saved["compiled"] else "") + ", ms"
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
        if saved.get("architecture") == own and sizes.keys() <= set(space):
            found[title] = sizes
    return found


def _lines(path: Path) -> list[dict]:
    """The lines of a log with a step; half-written ones, as a run that goes on may have, are left out."""
    found = []
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(content, dict) and isinstance(content.get("step"), int):
            found.append(content)
    return found


def _mapping(path: Path, parse: Callable[[str], Any]) -> dict:
    """A file's content; empty where it is not there or broken, which a report can do without."""
    try:
        content = parse(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


# -- sections


def heat_map_section(records: RunRecords, measured: Quality, task: str) -> Section:
    section = Section("quality", "Quality over the sizes")
    if not measured.values:
        section.missing.append(_no_quality(records, task))
        return section
    space = records.config.space
    low, high = min(measured.values.values()), max(measured.values.values())
    some = len(measured.values) < len(space)
    section.text = f"{measured.name}, of {f'{len(measured.values)} of the' if some else 'all'} {len(space)} sizes."
    if some:
        section.missing.append(("The other sizes, marked with a dot, have not been measured:", _evaluate(records)))
    for index, grid in enumerate(charts.grids(space, measured.values)):
        caption = f"{measured.title} accuracy by {grid.column_name} and {grid.row_name}"
        caption += f", {grid.title}." if grid.title else "."
        section.chart(f"quality-{index + 1}", caption, charts.heat_map, grid, low, high, f"{measured.title} accuracy")
    return section


def pareto_section(
    records: RunRecords,
    measured: Quality,
    sizes: Mapping[SubNetwork, Costs],
    latencies: Mapping[str, Mapping[SubNetwork, float]],
    task: str,
) -> Section:
    section = Section("pareto", "Quality against cost")
    if measured.values:
        section.text = "Each point is a size; those on the line are not beaten in quality by any that costs as little."
        axes = {
            "parameters": ("parameters", {size: of.parameters for size, of in sizes.items()}),
            "flops": ("FLOPs of one image (a multiply-add counts once)", {s: of.flops for s, of in sizes.items()}),
        }
        axes |= {f"latency-{index + 1}": latency for index, latency in enumerate(latencies.items())}
        named = {size: name for name, size in records.config.space.named.items()}
        for name, (title, cost) in axes.items():
            quality = {size: value for size, value in measured.values.items() if size in cost}
            if not quality:
                continue
            caption = f"{measured.title} accuracy against {title}"
            if len(quality) < len(measured.values):
                caption += f": the {len(quality)} sizes whose latency was measured (poa select --measure_all: all)"
            front = _front(quality, cost)
            options = (cost, quality, front, title, f"{measured.title} accuracy", named)
            section.chart(f"pareto-{name}", f"{caption}.", charts.pareto_chart, *options)
    else:
        section.missing.append(_no_quality(records, task))
    if not latencies and records.config is not None and records.without_model is None:
        command = records.command("select", "--device", "cpu")
        section.missing.append(("No latency has been measured (--device cuda: on a GPU):", command))
    return section


def _front(quality: Mapping[SubNetwork, float], cost: Mapping[SubNetwork, float]) -> list[SubNetwork]:
    front: list[SubNetwork] = []
    for size in sorted(quality, key=lambda size: (cost[size], -quality[size])):
        if not front or quality[size] > quality[front[-1]]:
            front.append(size)
    return front


def loss_section(records: RunRecords) -> Section:
    section = Section("loss", "Loss")
    if not records.lines:
        section.missing.append(_no_log(records))
        return section
    section.chart("loss", "Total loss.", charts.line_chart, {"loss": records.series(lambda line: line.get("loss"))})
    terms = {
        "cross-view": ("dino_local_crops_loss", "dino_global_crops_loss"),
        "same-view": ("distill_local_crops_loss", "distill_global_crops_loss"),
        "masked patches": ("ibot_loss",),
    }
    lines = {}
    for title, names in terms.items():
        if title == "masked patches":  # logged at half, and as 0 until it begins
            lines[title] = records.series(
                lambda line, names=names: _term(line, names, 2) if line.get("predict_masked_patches", True) else None
            )
        else:
            lines[title] = records.series(lambda line, names=names: _term(line, names))
    if lines := {title: points for title, points in lines.items() if points[0]}:
        caption = "The loss's terms, means over the heads, before they are weighted against each other."
        section.chart("loss-terms", caption, charts.line_chart, lines, bottom=0)
    rate = records.series(lambda line: line.get("learning_rate"))
    if rate[0]:
        section.chart("learning-rate", "Learning rate.", charts.line_chart, {"learning rate": rate}, bottom=0)
    knn = records.all_series("knn_")
    if knn:
        caption = "k-NN accuracy of the teacher while it trains."
        section.chart("knn", caption, charts.line_chart, knn, percent=True)
    else:
        command = shlex.join(["poa", "pretrain", "--config", "FILE.yaml", "--eval_steps", "1000"])
        section.missing.append(
            ("The accuracy was not measured while the model trained; a further run does it with", command)
        )
    return section


def _term(line: Mapping, names: tuple[str, ...], factor: float = 1) -> float | None:
    """The sum of some terms, as a mean over the heads; None for a line without them."""
    values = [value for name, value in line.items() if name.startswith(names)]
    heads = sum(name.startswith(names[0]) for name in line)
    return factor * sum(values) / heads if heads else None


def collapse_section(records: RunRecords) -> Section:
    section = Section("collapse", "Signs of collapse")
    known = [line for line in records.lines if "feature_spread" in line and "effective_rank" in line]
    if not known:
        section.missing.append(_no_log(records))
        return section
    if (batch := records.arguments.get("per_device_train_batch_size", 8)) < 8:
        section.text = f"Batches of {batch} images say little about how far features lie apart."
    else:
        fine = "No sign of collapse: features spread, in many directions, and targets tell images apart."
        section.text = f"Step {known[-1]['step']:,}: {collapse_warning(known[-1]) or fine}"
    for name, caption, options in (
        ("feature_spread", "Spread of the teacher's features: 0 if all images have one feature, 1 if directions are "
         "uniform.", dict(limit=(0.02, "collapsed below"), bottom=0)),
        ("effective_rank", "Effective rank: the number of directions in use.",
         dict(limit=(2, "collapsed below"), bottom=0)),
    ):  # fmt: skip
        lines = {name: records.series(lambda line, name=name: line.get(name))}
        section.chart(name.replace("_", "-"), caption, charts.line_chart, lines, **options)
    for prefix, caption, options in (
        ("teacher_entropy_", "Entropy of the teacher's targets over its maximum, by head; at 1 they are uniform.",
         dict(limit=(0.999, "collapsed above"), bottom=0, top=1.1)),
        ("prototype_use_", "Share of the prototypes in use that a batch could use, by head.", dict(bottom=0, top=1.05)),
    ):  # fmt: skip
        lines = {f"head {index}": points for index, points in records.all_series(prefix).items()}
        if lines:
            section.chart(prefix.strip("_").replace("_", "-"), caption, charts.line_chart, lines, **options)
    return section


def crops_section(records: RunRecords, dataset_name: str | None, num_images: int) -> Section:
    """The crops and masks of one batch."""
    section = Section("crops", "What the model is shown")
    if records.config is None:
        section.missing.append((records.without_model, None))
        return section
    from ..data.loader import PretrainingLoader
    from .plots import crops_figure

    args = _crop_arguments(records)
    grid = args.global_crop_size // records.config.patch_grid
    try:
        dataset, name = _open(records, dataset_name)
        column = records.arguments.get("image_column") if dataset_name is None else None
        loader = PretrainingLoader(
            dataset, args, num_images, (grid, grid), image_column=column, block_size=max(16, num_images)
        )
        batch = next(iter(loader))
    except (ValueError, OSError) as error:
        if dataset_name is not None:
            raise
        section.missing.append(_no_images(records, error))
        return section
    section.text = (
        f"A batch of {name}: of each image two global crops, masked patches hatched, and {args.num_local_crops} local "
        "crops at the same scale."
    )
    if not records.arguments:
        section.text += " The run does not say how its crops are made: these are the usual ones."
    figure = crops_figure(batch, num_images, args.image_mean, args.image_std)
    section.pictures.append(Picture("crops", "Crops and masks.", png(figure, 150), wide=True))
    return section


def _crop_arguments(records: RunRecords):
    from ..data.crops import CropArguments

    known = {f.name for f in fields(CropArguments)}
    given = {name: value for name, value in records.arguments.items() if name in known}
    if given:
        return CropArguments(**given)
    # the usual 96 of 224 pixels, in whole patches
    side, patch = image_shape(records.config)[1], records.config.patch_grid
    return CropArguments(global_crop_size=side, local_crop_size=max(patch, round(side * 96 / 224 / patch) * patch))


def _open(records: RunRecords, dataset_name: str | None, texture_size: int | None = None) -> tuple[Any, str]:
    """The images, and what they are called."""
    from ..data.sources import TEXTURES, open_dataset
    from ..data.textures import TextureDataset

    name = dataset_name or records.recipe.get("dataset_name") or TEXTURES
    if name == TEXTURES:
        return (TextureDataset() if texture_size is None else TextureDataset(size=texture_size)), "built-in textures"
    shown = Path(name).name if Path(name).exists() else name
    if dataset_name is not None:
        return open_dataset(name), shown
    options = {"config_name": records.recipe.get("dataset_config_name")}
    options |= {"split": split} if (split := records.recipe.get("dataset_split")) else {}
    return open_dataset(name, **options, streaming=records.recipe.get("streaming", True)), shown


def pictures_section(records: RunRecords, dataset_name: str | None, num_images: int) -> Section:
    """Attention maps and patch components of the same images for three sizes of the teacher."""
    section = Section("pictures", "What three sizes see")
    if records.without_model is not None:
        section.missing.append((records.without_model, None))
        return section
    from .pictures import attention_maps, patch_features, patch_pca
    from .plots import attention_figure, pca_figure
    from .subjects import load_subject

    try:
        subject = load_subject(records.given)
        pixels, name = _images(records, subject.processor, dataset_name, num_images)
    except (ValueError, OSError) as error:
        if dataset_name is not None:
            raise
        section.missing.append(_no_images(records, error))
        return section
    model, processor = subject.model, subject.processor
    sizes = three_sizes(records.config.space)
    titles = {size: _name(records, size) for size in sizes}
    titles = {size: f"{size} ({name})" if name else str(size) for size, name in titles.items()}
    step = "" if subject.step is None else f" at step {subject.step:,}"
    section.text = f"Images of {name} by the teacher{step}, in {pixels.shape[2]} x {pixels.shape[3]} pixels."
    normalised = (processor.image_mean, processor.image_std)
    if hasattr(records.config, "depths"):
        family = _FAMILIES.get(records.config.model_type, "This family")
        section.text += f" {family} has no class token whose attention could be shown: patch components alone."
    else:
        maps = {titles[size]: attention_maps(model, pixels, size) for size in sizes}
        figure = attention_figure(pixels, maps, *normalised)
        caption = "Where the class token looks: attention of the last block, mean over its heads."
        section.pictures.append(Picture("attention", caption, png(figure, 150), wide=True))
    features = {size: patch_features(model, pixels, size) for size in sizes}
    reference = features[sizes[-1]]
    colours = {
        titles[size]: patch_pca(own, reference=None if own is reference else reference)
        for size, own in features.items()
    }
    caption = "The first three principal components of the patches as red, green and blue: like colours, like features."
    figure = pca_figure(pixels, colours, *normalised)
    section.pictures.append(Picture("patch-pca", caption, png(figure, 150), wide=True))
    return section


def three_sizes(space: ElasticSpace) -> list[SubNetwork]:
    """The named sizes if there are three, else the smallest, a middle and the full one; from small to large."""
    by_size = sorted(space, key=lambda size: (size.width * size.width * sum(size.depths), size))
    named = set(space.named.values())
    wanted = named if len(named) == 3 else {by_size[0], by_size[len(by_size) // 2], by_size[-1]}
    return [size for size in by_size if size in wanted]


def _images(records: RunRecords, processor, dataset_name: str | None, count: int) -> tuple[Tensor, str]:
    """So many images as the processor makes them (count, 3, H, W), but large enough for some 14 x 14 features, and what
    they are called."""
    from ..data.decoding import UndecodableImage, open_image
    from ..data.stream import IndexedImages, StreamedImages

    config = records.config
    pixels = config.patch_grid if not hasattr(config, "depths") else 32
    side = processor.crop_size["height"]
    scale = min(4, max(1, -(-14 * pixels // side)))
    # textures do not grow with the image: the larger one holds more of them
    dataset, name = _open(records, dataset_name, texture_size=40 * scale)
    column = records.arguments.get("image_column") if dataset_name is None else None
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        images = IndexedImages(dataset, column)
        # from all over: neighbours may be of one class
        chosen = np.random.default_rng(0).integers(len(images), size=4 * count) if len(images) > count else None
        values = (images[int(index)] for index in (range(len(images)) if chosen is None else dict.fromkeys(chosen)))
    else:
        images = StreamedImages(dataset, column)
        shards = itertools.cycle([images.rows(images.open_shard(i)) for i in range(min(images.num_shards, count))])
        values = itertools.islice((next(rows, None) for rows in shards), 8 * count)
    decoded = []
    for value in values:
        try:
            decoded.append(open_image(value))
        except UndecodableImage:
            continue
        if len(decoded) == count:
            break
    if not decoded:
        raise ValueError(f"{name} gives no image that can be decoded: name other images.")
    edges = {"size": {"shortest_edge": round(processor.size["shortest_edge"] * scale)}}
    edges["crop_size"] = {"height": side * scale, "width": side * scale}
    return processor(decoded, return_tensors="pt", **edges).pixel_values, name


# -- what is missing, and the table


def _evaluate(records: RunRecords) -> str:
    return records.command("evaluate", "--dataset_name", records.labelled_data, "--sizes", "all")


def _no_quality(records: RunRecords, task: str) -> tuple[str, str | None]:
    if records.broken:
        return records.broken, None
    if records.without_model is not None:
        return records.without_model, None
    if records.evaluations:
        return f"No size has been measured yet by {'k-NN' if task == 'knn' else 'a linear probe'}:", _evaluate(records)
    return "No size has been measured yet:", _evaluate(records)


def _no_log(records: RunRecords) -> tuple[str, str | None]:
    return "The run has no log (metrics.jsonl), which pre-training writes:", "poa pretrain --config FILE.yaml"


def _no_images(records: RunRecords, error: Exception) -> tuple[str, str]:
    reason = " ".join(str(error).split()).rstrip(".")
    return f"There are no images to show ({reason}); with images of your own:", records.command(
        "report", "--dataset_name", "FOLDER"
    )


def _name(records: RunRecords, size: SubNetwork) -> str:
    return ", ".join(name for name, named in records.config.space.named.items() if named == size)


def _facts(records: RunRecords, sizes: Mapping[SubNetwork, Costs], measured: Quality) -> list[tuple[str, str]]:
    facts = []
    if sizes:
        family = _FAMILIES.get(records.config.model_type, records.config.model_type)
        ends = (
            format_quantity(min(of.parameters for of in sizes.values())),
            format_quantity(max(of.parameters for of in sizes.values())),
        )
        facts += [("family", family), ("sizes", str(len(sizes))), ("parameters", f"{ends[0]} to {ends[1]}")]
    if records.lines:
        last, planned = records.lines[-1], records.arguments.get("max_steps")
        facts.append(("steps", f"{last['step']:,}" + (f" of {planned:,}" if planned else "")))
        if isinstance(last.get("loss"), int | float):
            facts.append(("last loss", f"{last['loss']:.3f}"))
    if name := records.recipe.get("dataset_name"):
        facts.append(("trained on", Path(name).name if Path(name).exists() else name))
    if measured.values:
        best = select(records.config.space, costs=sizes, quality=measured.values).best
        facts.append((f"best {measured.title}", f"{measured.values[best]:.1%} ({best})"))
    return facts


@dataclass(frozen=True)
class Column:
    """A column of the table: what is sorted by, and how it is shown."""

    title: str
    values: Mapping[SubNetwork, float]
    shown: Callable[[float], str]


def _columns(
    records: RunRecords,
    sizes: Mapping[SubNetwork, Costs],
    latencies: Mapping[str, Mapping[SubNetwork, float]],
) -> list[Column]:
    columns = [
        Column("parameters", {size: of.parameters for size, of in sizes.items()}, format_quantity),
        Column("FLOPs", {size: of.flops for size, of in sizes.items()}, format_quantity),
    ]
    columns += [Column(title, values, "{:.3g}".format) for title, values in latencies.items()]
    if not sizes:
        return []
    # one column for each metric and dataset: the latest step, of it the records of the most sizes
    sets: dict[tuple, dict[str, list[Evaluation]]] = {}
    for record in records.evaluations:
        if record.size in map(str, sizes):
            kind = record.dataset, column_title(record)
            sets.setdefault(kind, {}).setdefault(replace(record, size="", model="").key, []).append(record)
    several = len({dataset for dataset, _ in sets}) > 1
    for (dataset, title), alternatives in sets.items():
        latest = max(alternatives.values(), key=lambda found: (found[0].step or 0, len(found), found[0].test_images))
        values = {SubNetwork.parse(record.size): record.value for record in latest}
        title = f"{title}, {dataset}" if several else title
        columns.append(Column(f"{title}, %", values, lambda value: f"{100 * value:.1f}"))
    return columns


def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(Path(__file__).with_name("report_template.html").read_text(encoding="utf-8"))


def _check_folder(folder: Path) -> None:
    """Refuse what is no folder, and a page that is not ours. ValueError."""
    for parent in (folder.absolute(), *folder.absolute().parents):
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{parent} is a file: give another --output.")
    page = folder / "index.html"
    if page.exists() and _GENERATOR not in page.read_text(errors="replace"):
        raise ValueError(f"{page} is another page: give another --output.")
