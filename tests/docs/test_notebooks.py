"""The notebooks run from their first cell to their last, as they are, and are kept without outputs."""

import os
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.optional import needs
from helpers.processes import ON_CPU

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = needs("nbclient")
    import nbformat

    for name, value in dict(ON_CPU, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TMPDIR=str(tmp_path)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    _add_kernel(tmp_path, monkeypatch)
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)
    resources = dict(metadata=dict(path=str(tmp_path)))
    client.NotebookClient(notebook, timeout=600, startup_timeout=600, resources=resources).execute()
    if path.stem == "five_minutes":
        drawn = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
        assert len(drawn) >= 3  # an image, a prediction, the plot


def _add_kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have 'python3' be this interpreter, whatever kernels the machine has."""
    from ipykernel.kernelspec import write_kernel_spec

    write_kernel_spec(str(folder / "jupyter/kernels/python3"))
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(folder / "jupyter"))
    assert sys.executable in (folder / "jupyter/kernels/python3/kernel.json").read_text()
