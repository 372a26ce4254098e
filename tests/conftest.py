import os
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from mmengine.registry import DefaultScope

pytest_plugins = ["helpers.fixtures"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _environment_as_before() -> Iterator[None]:
    """Tools and Runners set variables that decide how files are read and what ranks there are."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True, scope="module")
def _no_scope_of_other_tests() -> None:
    """Every Runner leaves its default scope behind, which decides where a name of the registries is looked for."""
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def _scope_as_before(_no_scope_of_other_tests: None) -> Iterator[None]:
    before = DefaultScope._instance_dict.copy()
    yield
    DefaultScope._instance_dict = before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests were skipped for which reason."""
    skipped = terminalreporter.getreports("skipped")
    reasons = Counter(" ".join(str(report.longrepr[2]).removeprefix("Skipped: ").split()) for report in skipped)
    if reasons:
        terminalreporter.section("skipped, by reason")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:5} {reason}")
