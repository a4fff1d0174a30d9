"""The notebooks of examples/notebooks: their code cells run in their order, as a notebook would run them."""

import json
import subprocess
from pathlib import Path

import pytest

from poa_hf.sub_network import SubNetwork

from .conftest import ROOT, run_python

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
# What the fast test changes in the cell of parameters: the way is the same, with less of everything.
LESS = {
    "start.ipynb": "steps, train_images, test_images = 1, 40, 20",
    "dinov2_to_family.ipynb": "steps, order_images, train_images, test_images = 1, 8, 40, 20",
}


def read(notebook: Path) -> list[dict]:
    book = json.loads(notebook.read_text())
    assert book["nbformat"] == 4
    return book["cells"]


def run_cells(notebook: Path, folder: Path, changed: str = "") -> subprocess.CompletedProcess:
    """Run the code cells in a new process in `folder`, with `changed` after the cell of parameters."""
    sources = []
    for cell in read(notebook):
        if cell["cell_type"] == "code":
            sources.append("".join(cell["source"]))
            if "parameters" in cell["metadata"].get("tags", []):
                sources.append(changed)
    program = folder / "cells.py"
    program.write_text("\n\n".join(sources))
    return run_python(str(program), cwd=folder, env={"MPLBACKEND": "Agg"}, timeout=900)


def check(notebook: str, folder: Path, printed: str) -> None:
    if notebook == "start.ipynb":
        small = json.loads((folder / "runs" / "start-small" / "config.json").read_text())
        best = SubNetwork(small["hidden_size"], small["num_hidden_layers"])
        assert f"best: {best} " in printed  # what was chosen is what was extracted
        assert sum(line.endswith("%") for line in printed.splitlines()) == 9  # every size of the recipe was measured
        assert f"Dinov2Model (4, {best.width})" in printed
    else:
        work = folder / "runs" / "dinov2"
        assert json.loads((work / "small" / "config.json").read_text())["model_type"] == "dinov2"
        for name in ("ordered", "trained"):  # each named size of both families was measured
            assert sum(line.split()[:1] == [f"runs/dinov2/{name}"] for line in printed.splitlines()) == 3


@pytest.mark.parametrize("notebook", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
def test_notebooks_are_stripped_and_portable(notebook):
    cells = read(notebook)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in code:  # no magic: any Python runs the cells
        compile("".join(cell["source"]), f"{notebook.name}:{cell['id']}", "exec")
    assert max(len(line) for cell in cells for line in cell["source"]) <= 121  # with its line feed


def test_index_names_every_notebook():
    index = (ROOT / "examples" / "README.md").read_text()
    assert {path.name for path in NOTEBOOKS} == set(LESS)
    assert all(f"(notebooks/{path.name})" in index for path in NOTEBOOKS)


@pytest.mark.slow  # two more of these would take the fast suite half a minute
@pytest.mark.parametrize("notebook", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
def test_notebooks_run_with_less_of_everything(notebook, tmp_path):
    result = run_cells(notebook, tmp_path, LESS[notebook.name])
    check(notebook.name, tmp_path, result.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1000)  # about a minute of one core, which a busy machine makes several
@pytest.mark.parametrize("notebook", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
def test_notebooks_run_as_they_are(notebook, tmp_path):
    result = run_cells(notebook, tmp_path)
    check(notebook.name, tmp_path, result.stdout)
