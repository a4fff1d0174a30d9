"""The architecture of the package: modules import from folders above them only, and without circles."""

import ast
from pathlib import Path

import pytest

from .conftest import ROOT

# Data flows down this list (docs/architecture.md); a module imports from what comes before it, never from what follows.
ORDER = (
    *(
        "formatting",
        "ranges",
        "locations",
        "hub",
        "yaml_files",
        "sub_network",
        "elastic",
        "slice_rules",
        "slicing",
        "objective",
        "models",
        "data",
        "runs",
        "training",
    ),
    *("official", "warm_start", "evaluation", "selection", "figures", "embedding", "report", "publishing", "cli"),
)
PACKAGE = ROOT / "src" / "poa_hf"
# The package's own face: names that are imported on first use, and paths of an earlier version.
FACE = {"__init__", "__main__", "_moved", "_registration"}


def modules(root: Path) -> dict[str, Path]:
    """Python files below a folder by dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of the same tree that a module imports, wherever in the file."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module or "").split(".")] if node.module else base
            if not node.level and module[:1] == ["poa_hf"]:
                module = module[1:]
            elif not node.level and ".".join(module) not in known:
                continue
            for alias in node.names:
                inner, outer = ".".join([*module, alias.name]), ".".join(module)
                names.add(inner if inner in known else outer)
    return {found for found in names if found in known and found != name}


def test_imports_go_up_only():
    known = modules(PACKAGE)
    wrong = []
    for name, path in known.items():
        place = name.split(".")[0]
        if place in FACE:
            continue
        for other in imported(name, path, known):
            source = other.split(".")[0]
            if source not in FACE and ORDER.index(source) > ORDER.index(place):
                wrong.append(f"{name} imports {other}, which lies below it")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("root", [PACKAGE, ROOT / "benchmarks"], ids=["poa_hf", "benchmarks"])
def test_no_circles(root):
    known = modules(root)
    graph = {name: imported(name, path, known) for name, path in known.items() if name not in FACE}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name in done:
            return
        for other in sorted(graph.get(name, ())):
            visit(other, (*way, name))
        done.add(name)

    for name in graph:
        visit(name, ())
