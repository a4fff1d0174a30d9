"""Pages of the site that are made from the repository while it is built, so that they cannot go stale.

- A line `<!-- generated: NAME ... -->` on a page is replaced by what the function of that name in `GENERATED` returns:
  the tables of arguments, configurations and commands.
- `CHANGELOG.md`, `CONTRIBUTING.md`, the examples and the measurements, which lie outside of `docs/`, become pages.
- Links on the pages are written for a reader of the repository. Those that leave `docs/` are turned to the page that
  shows the file, or into plain text where no page does.

MkDocs calls `on_files` and `on_page_markdown`; nothing here needs the network.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import io
import itertools
import json
import posixpath
import re
import shutil
import sys
import tempfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

# Files outside of docs/ and the pages that show them.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/README.md": "examples.md",
    "benchmarks/README.md": "measurements.md",
    "README.md": "index.md",
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^ *(```+|~~~+)")
_GENERATED = re.compile(r"^<!-- generated: (.+) -->$", re.M)


# -- what MkDocs calls


def on_files(files, config):
    """Add the pages that show files outside of `docs/`."""
    from mkdocs.structure.files import File

    for uri, text in _outside_pages().items():
        files.append(File.generated(config, uri, content=text))
    for picture in sorted((ROOT / "benchmarks" / "results").glob("*/*.png")):
        uri = f"results/{picture.relative_to(ROOT / 'benchmarks' / 'results').as_posix()}"
        files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fill in what is generated, and turn links that leave `docs/`."""
    markdown = _GENERATED.sub(lambda match: GENERATED[match[1].split()[0]](*match[1].split()[1:]), markdown)
    if page.file.generated_by:
        return markdown  # made by `on_files`, with its links turned
    return turn_links(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


# -- links


def turn_links(markdown: str, source: str, page: str) -> str:
    """Point relative links of `source`, a path in the repository, to pages of the site, as seen from `page`."""

    def turned(match: re.Match) -> str:
        is_picture, text, target = match[1], match[2], match[3]
        if re.match(r"[a-z]+:|#|/", target):
            return match[0]
        path, _, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        shown = page_of(path, anchor)
        if shown is None:
            return text if not is_picture else f"({text})"
        return f"{is_picture}[{text}]({posixpath.relpath(shown, posixpath.dirname(page) or '.')})"

    fence: str | None = None

    def is_code(line: str) -> bool:
        nonlocal fence
        mark = _FENCE.match(line)
        if mark and (fence is None or line.strip().startswith(fence)):
            fence = mark[1] if fence is None else None
        return bool(fence or mark)

    parts = ["\n".join(lines) if code else _LINK.sub(turned, "\n".join(lines))  # a link may go over two lines
             for code, lines in itertools.groupby(markdown.split("\n"), is_code)]  # fmt: skip
    return "\n".join(parts)


def page_of(path: str, anchor: str = "") -> str | None:
    """The page of the site, with the anchor, that shows a file of the repository; None if none does."""
    with_anchor = f"#{anchor}" if anchor else ""
    name = PurePosixPath(path).name
    if path in PAGES:
        return PAGES[path] + with_anchor
    if path.startswith("docs/"):
        return path.removeprefix("docs/") + with_anchor
    if path.startswith("benchmarks/results/") and name.endswith((".md", ".png")):
        return path.removeprefix("benchmarks/") + with_anchor
    if path in ("configs", "configs/accelerate"):
        return "reference/recipes.md"
    if path.startswith("configs/"):
        return f"reference/recipes.md#{_anchor(name)}"
    if path == "examples":
        return "examples.md"
    if path.startswith("examples/"):
        return f"examples.md#{_anchor(name)}"
    return "measurements.md" if path in ("benchmarks", "benchmarks/results") else None


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")


def _outside_pages() -> dict[str, str]:
    pages = {}
    for path, uri in PAGES.items():
        if uri != "index.md":
            pages[uri] = turn_links((ROOT / path).read_text(), path, uri) if (ROOT / path).exists() else _missing(path)
    for example in sorted((ROOT / "examples").glob("*.py")):
        pages["examples.md"] += f"\n## {example.name} {{ #{_anchor(example.name)} }}\n\n"
        pages["examples.md"] += f"```python\n{example.read_text().rstrip()}\n```\n"
    for notebook in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        pages["examples.md"] += f"\n## {notebook.name} {{ #{_anchor(notebook.name)} }}\n\n{_cells(notebook)}\n"
    results = sorted((ROOT / "benchmarks" / "results").glob("*.md"), reverse=True)
    pages["measurements.md"] += "\n\n## Results\n\n"
    for result in results:
        text = turn_links(result.read_text(), f"benchmarks/results/{result.name}", f"results/{result.name}")
        pages[f"results/{result.name}"] = text
        title = re.search(r"^# (.+)$", text, re.M)
        pages["measurements.md"] += (
            f"- {result.stem[:10]}: [{title[1] if title else result.stem}](results/{result.name})\n"
        )
    return pages


def _cells(notebook: Path) -> str:
    """The cells of a notebook as Markdown, its headings two levels down."""
    shown = []
    for cell in json.loads(notebook.read_text())["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            shown.append(f"```python\n{text}\n```")
        else:
            text = re.sub(r"^#", "###", text, flags=re.M)
            shown.append(turn_links(text, notebook.relative_to(ROOT).as_posix(), "examples.md"))
    return "\n\n".join(shown)


def _missing(path: str) -> str:
    return f"# {PurePosixPath(path).stem.capitalize()}\n\nThis copy of the repository has no `{path}`.\n"


# -- tables from the code


def training_arguments() -> str:
    """Every field of `PoaTrainingArguments`, under the headings that its source has as comments."""
    from poa_hf import PoaTrainingArguments

    parts = [part for part in reversed(PoaTrainingArguments.__mro__) if dataclasses.is_dataclass(part)]
    sections: dict[str, list[str]] = {}
    for part in sorted(parts, key=lambda part: part is not PoaTrainingArguments):
        own = [field for field in dataclasses.fields(part) if field.name in vars(part).get("__annotations__", {})]
        headings = _headings(part)
        for field in own:
            title = headings.get(field.name) or "Crops, colours and masks"
            sections.setdefault(title, []).append(_field_row(field))
    return "\n\n".join(f"## {title}\n\n{_table(_COLUMNS, rows)}" for title, rows in sections.items())


def recipe_arguments() -> str:
    """Fields of the other argument classes of `poa pretrain`: what to start from, the data, evaluation."""
    from poa_hf.cli import recipe

    titles = {"ModelArguments": "Start", "DataArguments": "Dataset", "EvaluationArguments": "Evaluation while training"}
    sections = []
    for name, title in titles.items():
        rows = [_field_row(field) for field in dataclasses.fields(getattr(recipe, name))]
        sections.append(f"## {title}\n\n{_table(_COLUMNS, rows)}")
    return "\n\n".join(sections)


def configuration(name: str) -> str:
    """The fields of one configuration class: its own, then those that it shares with its stock parent."""
    from transformers import PreTrainedConfig

    import poa_hf

    config_class = getattr(poa_hf, name)
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)} - {"hidden_size"}
    fields = [f for f in dataclasses.fields(config_class) if f.name not in general and not f.name.startswith("_")]
    meanings: dict[str, str] = {}
    for part in reversed(config_class.__mro__):
        meanings |= _documented(part) if part.__module__.startswith("transformers.models.") else {}
    meanings |= {field.name: _STOCK[field.name] for field in fields if field.name in _STOCK}
    for part in reversed(config_class.__mro__):
        meanings |= _documented(part) if part.__module__.startswith("poa_hf.") else {}
    unknown = [field.name for field in fields if field.name not in meanings]
    if unknown:
        raise ValueError(f"{name} says nothing of its fields {', '.join(unknown)}: document them in its docstring.")
    parent = next(part for part in config_class.__mro__[1:] if dataclasses.is_dataclass(part))
    new = {field.name for field in fields} - {field.name for field in dataclasses.fields(parent)}
    new |= set(_documented(config_class))
    own = [field for field in fields if field.name in new]
    shared = [field for field in fields if field.name not in new]
    table = _table(_COLUMNS, [_field_row(field, meanings[field.name]) for field in own])
    if shared:
        rows = [_field_row(field, meanings[field.name]) for field in shared]
        table += f"\n\nFields of `{parent.__name__}`:\n\n{_table(_COLUMNS, rows)}"
    return table


def command(name: str) -> str:
    """Usage, description and options of one command, from its parser."""
    parser = command_parser(name)
    positionals = [action for action in parser._actions if not action.option_strings]
    lines = [_sentence(parser.description)] if parser.description else []
    usage = " ".join([f"poa {name}", *(str(a.metavar or a.dest).upper() for a in positionals), "[options]"])
    lines.append(f"```text\n{usage}\n```")
    if positionals:
        rows = [f"| `{str(a.metavar or a.dest).upper()}` | {_cell(_help(parser, a)[0])} |" for a in positionals]
        lines.append(_table("| argument | meaning |", rows))
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.option_strings and a.dest != "help" and not _is_hidden(a)]
        if actions:
            if group.title not in (None, "options", "positional arguments"):
                lines.append(f"**{group.title[0].upper()}{group.title[1:]}**")
            lines.append(_table("| option | default | meaning |", [_option_row(parser, action) for action in actions]))
    if parser.epilog:
        lines.append(_sentence(parser.epilog))
    return "\n\n".join(lines)


def commands() -> str:
    """All commands, one section each."""
    from poa_hf.cli.main import COMMANDS

    return "\n\n".join(f"## poa {name} {{ #{name} }}\n\n{command(name)}" for name in COMMANDS)


def recipes() -> str:
    """Every file of configs/, as it is."""
    sections = []
    for path in [*sorted((ROOT / "configs").glob("*.yaml")), *sorted((ROOT / "configs" / "accelerate").iterdir())]:
        language = "shell" if path.suffix == ".sh" else "yaml"
        sections.append(
            f"## {path.name} {{ #{_anchor(path.name)} }}\n\n```{language}\n{path.read_text().rstrip()}\n```"
        )
    return "\n\n".join(sections)


def run_folder() -> str:
    """Every file in the folder of a run, from `poa_hf.runs.layout`."""
    from poa_hf.runs.layout import ENTRIES

    rows = [
        f"| `{entry.pattern}` | {_cell(_sentence(entry.content))} | {_cell(entry.writer)} | "
        f"{'yes' if entry.published else ''} |"
        for entry in ENTRIES
    ]
    return _table("| file | content | written by | in a published supernet |", rows)


def example_card() -> str:
    """The card that `poa extract` writes today for a size of `docs/example_run`, whose weights play no role."""
    from poa_hf import PoaConfig, PoaForPreTraining
    from poa_hf.cli.main import main

    with tempfile.TemporaryDirectory() as folder:
        run, output = Path(folder, "run"), Path(folder, "poa-tiny")
        shutil.copytree(ROOT / "docs" / "example_run", run)
        PoaForPreTraining(PoaConfig.from_pretrained(run)).save_pretrained(run)
        with contextlib.redirect_stdout(io.StringIO()):
            status = main(["extract", str(run), "--size", "base", "--output", str(output), "--license", "mit"])
        if status:
            raise ValueError("poa extract could not write the example of a card.")
        return f"````markdown\n{(output / 'README.md').read_text().strip()}\n````"


def public_api() -> str:
    """A mkdocstrings block for every public name, by kind."""
    import poa_hf

    names = {name: getattr(poa_hf, name) for name in poa_hf.__all__ if name != "__version__"}
    groups: dict[str, list[str]] = {title: [] for title in _KINDS}
    for name in sorted(names):
        groups[next(title for title, belongs in _KINDS.items() if belongs(name))].append(name)
    lines = []
    for title, members in groups.items():
        lines.append(f"## {title}")
        for name in members:
            lines.append(f"::: {names[name].__module__}.{names[name].__qualname__}")
            if name == "PoaTrainingArguments":
                lines[-1] += "\n    options:\n      show_signature: false"
                lines.append("Its fields are in the table of [training arguments](arguments.md).")
            elif name.endswith("Config"):
                lines.append("All fields are under [model configuration](configuration.md#" + name.lower() + ").")
    return "\n\n".join(lines)


GENERATED = {
    function.__name__: function
    for function in (
        *(training_arguments, recipe_arguments, configuration, command, commands),
        *(recipes, run_folder, example_card, public_api),
    )
}
_COLUMNS = "| field | default | meaning |"
_KINDS = {
    "Training": lambda name: name in ("PoaTrainer", "PoaTrainingArguments") or name.endswith(("Callback", "Guard")),
    "Sizes": lambda name: name in ("SubNetwork", "ElasticSpace"),
    "Data": lambda name: name in ("TextureDataset", "open_dataset", "open_splits", "class_features"),
    "Starting from other weights": lambda name: (
        name in ("init_from", "warm_start_config", "load_official_checkpoint", "order_units", "UnitOrder")
    ),
    "Choosing a size": lambda name: name in ("Budget", "KnnAccuracy", "costs", "evaluate_sizes", "select"),
    "Features of images": lambda name: name in ("embed", "Embeddings"),
    "Loading, extracting and publishing": lambda name: (
        name.startswith(("load_", "push", "Push")) or name in ("extract_to", "Release")
    ),
    "Configurations": lambda name: name.endswith("Config"),
    "Models": lambda name: name.startswith(("Poa", "GnResNet")),
}
# What transformers' own docstrings say of these is brief or, for vision models, off the point.
_STOCK = {
    "hidden_size": "Width of the full size.",
    "num_hidden_layers": "Blocks of the full size.",
    "num_attention_heads": "Heads of the full size, of `hidden_size / num_attention_heads` channels in every size.",
    "embed_dim": "Width of the first stage of the full size; each stage is twice as wide as the one before.",
    "depths": "Blocks of each stage of the full size.",
    "window_size": "Side of an attention window, in positions; it must fit the last feature map, `image_size / 32`.",
    "mlp_ratio": "Hidden width of a block's MLP over the block's width.",
    "hidden_act": "Activation of the MLPs, by its name in transformers.",
    "hidden_dropout_prob": "Dropout of embeddings and projections.",
    "attention_probs_dropout_prob": "Dropout of attention probabilities.",
    "drop_path_rate": "Stochastic depth: the share of images that skip a residual branch, in the students only.",
    "initializer_range": "Standard deviation of initial weights.",
    "layer_norm_eps": "What a LayerNorm adds to the variance.",
    "image_size": "Side of the images in pixels; usually the training's `global_crop_size`.",
    "patch_size": "Side of a patch in pixels.",
    "num_channels": "Channels of the images.",
    "qkv_bias": "Whether queries, keys and values have biases.",
    "layerscale_value": "Initial LayerScale: how much each residual branch counts at the start.",
    "use_swiglu_ffn": "SwiGLU in place of the MLP, as in DINOv2-giant.",
    "use_mask_token": "The token of hidden patches; pre-training needs it.",
    "apply_layernorm": "As a backbone for detection or segmentation: normalise the feature maps.",
    "reshape_hidden_states": "As a backbone: give feature maps of four dimensions instead of tokens.",
    "use_absolute_embeddings": "Absolute position embeddings beside the relative position bias.",
    "warm_started_from": "The model that the run was initialised from, if any; written by `--init_from`.",
    "encoder_stride": "Stride of transformers' masked-image-modelling decoder; not used here.",
}


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of `poa NAME`, caught when it prints its help."""
    from poa_hf.cli.main import main

    caught: list[argparse.ArgumentParser] = []

    def catch(parser, file=None):
        caught.append(parser)
        raise SystemExit(0)

    original, argparse.ArgumentParser.print_help = argparse.ArgumentParser.print_help, catch
    try:
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            main([name, "--help"])
    finally:
        argparse.ArgumentParser.print_help = original
    return caught[0]


def _headings(part: type) -> dict[str, str]:
    """The comment above each field that starts a section, for that field and those after it."""
    headings, title = {}, ""
    for line in inspect.getsource(part).splitlines():
        if comment := re.fullmatch(r"    # ([A-Z][\w ,]+)", line):
            title = comment[1]
        elif field := re.match(r"    (\w+): ", line):
            headings[field[1]] = title
        elif line.startswith("    def "):
            break
    return headings


def _documented(config_class: type) -> dict[str, str]:
    """What the `Args:` section of a class's own docstring says of each field."""
    doc = inspect.cleandoc(vars(config_class).get("__doc__") or "")
    section = re.search(r"^Args:\n((?:(?:[ \t]+.*)?\n)*)", doc + "\n", re.M)
    meanings, name = {}, None
    for line in inspect.cleandoc(section[1]).splitlines() if section else ():
        entry = re.match(r"(\w+)(?: \(.*\))?:\s*(.*)", line)
        if entry and not line.startswith(" "):
            name, meanings[entry[1]] = entry[1], entry[2]
        elif name and line.strip():
            meanings[name] = f"{meanings[name]} {line.strip()}".strip()
    return meanings


def _field_row(field: dataclasses.Field, meaning: str | None = None) -> str:
    default = field.default if field.default is not dataclasses.MISSING else None
    if field.default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    text = field.metadata["help"] if meaning is None else meaning
    return f"| `{field.name}` | {'`None`' if default is None else _value(default)} | {_cell(text)} |"


def _option_row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    is_flag = action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction)
    metavar = "" if is_flag else f" {_metavar(action)}"
    options = ", ".join(f"`{option}{metavar}`" for option in action.option_strings)
    text, default = _help(parser, action)
    if action.required:
        default = "required"
    elif not default and not is_flag:
        default = _value(action.default)
    return f"| {options} | {default} | {_cell(text)} |"


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    return action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str]:
    """What the help says of an action, and the default that it gives there in brackets, if it does."""
    text = " ".join((parser._get_formatter()._expand_help(action) if action.help else "").split())
    if match := re.fullmatch(r"(.*?)\s*\((?:default|by default):? ([^()]*)\)\.?", text):
        default = match[2] if " " in match[2] else f"`{match[2]}`"
        return _sentence(match[1]), default
    return _sentence(text), ""


def _is_hidden(action: argparse.Action) -> bool:
    return action.help == argparse.SUPPRESS


def _value(value: object) -> str:
    if value is None or value is argparse.SUPPRESS or value == "==SUPPRESS==":
        return ""
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, list | tuple):
        return f"`{' '.join(f'{x:g}' if isinstance(x, float) else str(x) for x in value)}`"
    return f"`{value}`"


def _sentence(text: str) -> str:
    text = " ".join(str(text).split())
    if not text:
        return ""
    text = text if text.endswith("...") else f"{text.rstrip('.')}."
    return text if "_" in text.split()[0] else f"{text[0].upper()}{text[1:]}"


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _table(header: str, rows: list[str]) -> str:
    columns = header.count("|") - 1
    return "\n".join([header, f"|{' --- |' * columns}", *rows])
