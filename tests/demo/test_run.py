"""The demo as a whole takes minutes; that it begins is seen here."""

from helpers import ROOT
from helpers.processes import run_python


def test_all_that_it_imports_is_there() -> None:
    modules = sorted(path.stem for path in (ROOT / "demo").glob("*.py"))
    assert "run" in modules
    run_python(f"import {', '.join(modules)}", env=dict(PYTHONPATH=f"{ROOT / 'demo'}:{ROOT}"))
