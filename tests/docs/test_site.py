"""The documentation builds without a warning, needs nothing from another host, and its reference is complete."""

import argparse
import dataclasses
import html
import re
import subprocess
import sys

import pytest

import poa_hf
from poa_hf import PoaTrainingArguments
from poa_hf.cli.main import COMMANDS

from ..conftest import ROOT
from .site import command_parser

pytestmark = pytest.mark.slow  # test_pages.py checks links and names without building
pytest.importorskip("mkdocs", reason="the tools of the documentation are not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}


def text_of(site, page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", (site / page).read_text()))


def test_nothing_comes_from_another_host(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]+src=\"(https?:[^\"]+)|<link[^>]+href=\"(https?:[^\"]+)",
                            page.read_text())  # fmt: skip
        assert not loaded, f"{page.relative_to(site)} loads {loaded[0]}"


def test_reference_names_everything(site):
    api = text_of(site, "reference/api.html")
    missing = [name for name in poa_hf.__all__ if name != "__version__" and not re.search(rf"\b{name}\b", api)]
    arguments = text_of(site, "reference/arguments.html")
    missing += [field.name for field in dataclasses.fields(PoaTrainingArguments) if field.name not in arguments]
    configuration = text_of(site, "reference/configuration.html")
    for name in (name for name in poa_hf.__all__ if name.endswith("Config")):
        own = vars(getattr(poa_hf, name)).get("__annotations__", {})
        missing += [field for field in own if not field.startswith("_") and field not in configuration]
    commands = text_of(site, "reference/commands.html")
    for name in COMMANDS:
        for action in command_parser(name)._actions:
            if action.dest != "help" and action.help != argparse.SUPPRESS:
                missing += [option for option in action.option_strings if option not in commands]
    assert not missing, f"the reference lacks {', '.join(missing)}"


def test_every_command_is_in_the_reference(site):
    commands = (site / "reference" / "commands.html").read_text()
    assert [name for name in COMMANDS if f'id="{name}"' not in commands] == []
