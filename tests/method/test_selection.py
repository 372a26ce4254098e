import json
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from apla_mm.method.selection import listed_channels, load_channels, random_channels, resolve_r


@pytest.mark.parametrize(
    ("r", "expected"), [("full", 768), (1, 1), (768, 768), (0.25, 192), (1.0, 768), (1e-9, 1), (0.5, 384)]
)
def test_resolve_r(r, expected):
    assert resolve_r(r, 768, "proj") == expected


@pytest.mark.parametrize("r", [0, -1, 769, 10**6, 0.0, 1.5, -0.5, "half", True, None, float("nan")])
def test_bad_r_names_the_projection_and_its_size(r):
    with pytest.raises(ValueError, match=r"'blocks.0.attn.proj' with 768 output channels.*1 to 768"):
        resolve_r(r, 768, "blocks.0.attn.proj")


def test_channels_are_fixed_for_all_time():
    # a change of these breaks the reproducibility of everything trained before
    assert random_channels("blocks.0.attn.proj", 768, 8, 0) == [66, 100, 181, 331, 373, 454, 588, 698]


def test_channels_do_not_depend_on_any_random_state():
    first = random_channels("a", 100, 10, 0)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    state = torch.get_rng_state()
    assert random_channels("a", 100, 10, 0) == first
    assert torch.equal(torch.get_rng_state(), state)
    code = "from apla_mm.method.selection import random_channels as f; print(f('a', 100, 10, 0))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().splitlines()[-1] == str(first)


def test_channels_differ_by_seed_and_name_and_nest_by_r():
    draws = {(s, n): tuple(random_channels(n, 100, 10, s)) for s in (0, 1) for n in ("a", "b")}
    assert len(set(draws.values())) == 4
    assert set(random_channels("a", 100, 5, 0)) < set(random_channels("a", 100, 10, 0))
    assert random_channels("a", 100, 100, 0) == list(range(100))


def test_channels_are_uniform():
    counts = np.zeros(16)
    for seed in range(2000):
        counts[random_channels("a", 16, 4, seed)] += 1
    expected = 2000 * 4 / 16
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 38  # 15 degrees of freedom, p = 0.001


def test_listed_channels_are_checked():
    lists = {"a": [3, 1], "b": [1, 1], "c": [], "d": [9], "e": [0.5]}
    assert listed_channels(lists, "a", 5) == [1, 3]
    for name, message in [("b", "distinct"), ("c", "at least one"), ("d", r"\[0, 5\)"), ("e", "not ints"), ("z", "no")]:
        with pytest.raises(ValueError, match=f"{message}"):
            listed_channels(lists, name, 5)


def test_load_channels(tmp_path):
    path = tmp_path / "channels.json"
    path.write_text(json.dumps({"a": [1]}))
    assert load_channels(path) == {"a": [1]}
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        load_channels(tmp_path / "none.json")
    for text in ("{", "[1]", '{"a": 3}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"channels\.json"):
            load_channels(str(path))
