"""apla-mm serve-costs with small models, as processes of their own."""

import json
from pathlib import Path

import pytest

from apla_mm.__main__ import main
from apla_mm.serve.malformed import malformed

pytestmark = pytest.mark.slow


def test_all_is_measured_and_printed(deltas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seconds", "1", "--clients", "2", "--counts", "2", "--malformed", "40"]
    main(["serve-costs", str(deltas), *options, "--json", str(tmp_path / "costs.json")])
    printed = capsys.readouterr().out
    told = json.loads((tmp_path / "costs.json").read_text())
    assert [one["what"] for one in told["loads"]] == [
        "objects",
        "regions",
        "both in turn",
        "both in turn, two models of their own",
    ]
    for one in told["loads"]:
        assert one["requests"] > 1 and 0 < one["p50"] <= one["p99"] and one["what"] in printed
    assert sum(told["malformed"].values()) == 40 and all(400 <= int(status) < 500 for status in told["malformed"])
    (memory,) = told["memory"]
    assert memory["tasks"] == 2 and memory["shared"] > 50 * 2**20


def test_malformed_requests_are_the_same_for_a_seed() -> None:
    one, other = (list(malformed("t", 24, seed=3)) for _ in range(2))
    assert one == other and len({path for _, path, _, _ in one}) > 3
    assert list(malformed("t", 24, seed=4)) != one
