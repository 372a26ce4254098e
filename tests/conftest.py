from collections import Counter

import pytest
import torch

pytest_plugins = ["helpers.fixtures"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests were skipped for which reason."""
    skipped = terminalreporter.getreports("skipped")
    reasons = Counter(" ".join(str(report.longrepr[2]).removeprefix("Skipped: ").split()) for report in skipped)
    if reasons:
        terminalreporter.section("skipped, by reason")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:5} {reason}")
