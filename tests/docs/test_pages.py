"""The pages and the README say what is so: links lead somewhere, commands exist, and marked blocks run as they stand.

A block below a line `<!-- run -->` is run, those of a page in order in one folder. `<!-- run; pretrain: --max_steps 3
-->` adds options to the commands of that block, so that it takes seconds; a page with `run slowly` is a slow test.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from poa_hf.cli.main import main

from ..conftest import QUICKSTART, ROOT, TINY
from .site import command_parser, hooks, written_recipe

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"(?:^<!-- (run[^>]*) -->\n)?^( *)```(\w*)\n(.*?)^\2```$", re.M | re.S)
WIDTH = 120


def blocks(page: Path) -> list[tuple[str | None, str, str]]:
    """(marker, language, text) of every fenced block of a page."""
    return [(match[1], match[3], match[4]) for match in BLOCK.finditer(page.read_text())]


def commands(text: str) -> list[list[str]]:
    """The words of each line of a shell block that calls `poa`, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if "poa " in line]
    return [line[line.index("poa") :] for line in words if "poa" in line and "|" not in line]


def runnable() -> list:
    """The pages with blocks to run, slow ones marked."""
    texts = {name: (ROOT / name).read_text() for name in NAMES}
    slow = {name: [pytest.mark.slow] * ("<!-- run slowly" in text) for name, text in texts.items()}
    return [pytest.param(name, marks=slow[name]) for name, text in texts.items() if "<!-- run" in text]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    found = set()
    for title in re.findall(r"^#+ (.+)$", text, re.M):
        plain, explicit = re.sub(r"\s*\{.*\}$", "", title), re.search(r"\{ ?#([\w-]+) ?\}$", title)
        found.add(explicit[1] if explicit else re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    prose = re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^()\s]+)\)", prose):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{name} links to {target}, which does not exist"
        if anchor and other.suffix == ".md" and "<!-- generated" not in other.read_text():
            assert anchor in anchors(other), f"{name} links to {target}: no such heading"


def test_files_that_are_named_exist():
    package = [ROOT / "src" / "poa_hf", ROOT]
    for page in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        prose = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.M | re.S)
        for path in re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|yaml|sh|md))\b", prose):
            assert any((root / path).exists() for root in package), f"{page.name} names {path}, which does not exist"


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_short(name):
    prose = re.sub(r"^ *```.*?^ *```$", "", (ROOT / name).read_text(), flags=re.M | re.S)
    long = [line for line in prose.splitlines() if len(line) > WIDTH and not line.startswith(("|", "<!--"))]
    assert not long, f"{name} has lines of more than {WIDTH} columns: {long[0]}"


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name):
    for _, language, text in blocks(ROOT / name):
        for words in commands(text) if language == "shell" else ():
            options = {word.partition("=")[0] for word in words[2:] if word.startswith("--") and len(word) > 2}
            if words[1] == "COMMAND" or words[1].startswith("-"):
                continue
            known = {option for action in command_parser(words[1])._actions for option in action.option_strings}
            unknown = {option for option in options if not option.startswith("--model.")} - known
            assert not unknown, f"{name}: poa {words[1]} has no {', '.join(sorted(unknown))}"
            for option, value in zip(words, words[1:], strict=False):
                if words[1] == "pretrain" and option == "--config" and value != "FILE.yaml":
                    assert written_recipe(value).exists(), f"{name}: there is no recipe {value}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", runnable())
def test_marked_blocks_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "__main__"}
    for marker, language, text in blocks(ROOT / name):
        if marker is None:
            continue
        if language == "python":
            exec(compile(text, name, "exec"), namespace)
            continue
        extra = dict(part.strip().split(":", 1) for part in marker.split(";")[1:])
        for words in commands(text):
            argv = [*words[1:], *shlex.split(extra.get(words[1], ""))]
            assert main(argv) == 0, f"{name}: {' '.join(words)}"


def test_the_log_page_names_every_key(tmp_path):
    options = ["--config", QUICKSTART, *TINY.split(), "--output_dir", str(tmp_path / "run"), "--eval_steps", "2"]
    options += ["--eval_max_train_images", "30", "--eval_max_test_images", "10", "--masked_prediction_start_step", "0"]
    assert main(["pretrain", *options, "--logging_steps", "1"]) == 0
    keys = {key for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    page = (ROOT / "docs" / "log.md").read_text()
    named = {re.sub(r"_h$", "_0", name) for name in re.findall(r"`([a-z_0-9]+)`", page)}
    missing = {key for key in keys if re.sub(r"_\d+$", "_0", key) not in named and not re.match(r"knn_\d+x", key)}
    assert not missing, f"docs/log.md says nothing of {', '.join(sorted(missing))}"


def test_sentences_are_those_of_the_code():
    source = "\n".join(path.read_text() for path in sorted((ROOT / "src" / "poa_hf").rglob("*.py")))
    source = re.sub(r"\"\s*\n\s*f?\"", "", source)  # a sentence over several lines
    source = re.sub(r"\{[^{}]*\}|%[sd]", "*", source)
    table = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Sentences")[2]
    for sentence in re.findall(r"^\| `(.+?)` \|", table, re.M):
        for part in re.split(r"\.\.\.|\bN\b|\bM\b|'train'", sentence):
            assert part.strip(" :") in source, f"no message of the code says {part!r}"


def test_the_site_turns_links_that_leave_the_docs():
    text = "[it\nwas](../benchmarks/results/2026-11-27-order.md)\n```\n[as it is](../README.md)\n```\n[it](../LICENSE)"
    turned = "[it\nwas](results/2026-11-27-order.md)\n```\n[as it is](../README.md)\n```\nit"
    assert hooks().turn_links(text, "docs/page.md", "page.md") == turned
