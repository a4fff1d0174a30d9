"""What the tests of the pages need of the site's own hooks (docs/hooks.py)."""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

from ..conftest import ROOT


@functools.cache
def hooks() -> ModuleType:
    """`docs/hooks.py`, which is not part of a package."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def command_parser(name: str):
    """The parser of `poa NAME`."""
    return hooks().command_parser(name)


def written_recipe(name: str) -> Path:
    """The file of a recipe that a page gives by path or by name."""
    path = ROOT / name
    return path if path.suffix == ".yaml" else ROOT / "configs" / f"{name}.yaml"
