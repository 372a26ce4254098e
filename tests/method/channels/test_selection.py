import json
import random

import numpy as np
import pytest
import torch
from helpers.nets import tiny_vit
from helpers.processes import run_python

from apla_mm.method import adapt
from apla_mm.method.channels.selection import (
    Selection,
    by_projection,
    listed_channels,
    load_channels,
    random_channels,
    resolve_r,
    top_channels,
)


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
    code = "from apla_mm.method.channels.selection import random_channels as f; print(f('a', 100, 10, 0))"
    assert run_python(code).stdout.strip().splitlines()[-1] == str(first)


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


def test_lists_by_the_numbers_of_blocks():
    vit = [f"blocks.{i}.attn.proj" for i in range(12)]
    by_number = {f"block_{i}": [i, 0] for i in range(12)}
    by_name = {name: [i, 0] for i, name in enumerate(vit)}
    assert by_projection(by_number, vit) == by_name and by_projection(by_name, vit) is by_name
    for names in (
        [f"layers.{i}.attn.attn.out_proj" for i in range(12)],
        [f"backbone.3.blocks.{i}.attn.out.0" for i in range(12)],
        [f"blocks.{i // 4}.{i}.attn.proj" for i in range(12)],  # DINOv2's in chunks
        [f"blocks.{i}.{i}.attn.proj" for i in range(12)],
    ):
        assert by_projection(by_number, names) == dict(zip(names, by_number.values(), strict=True))
    assert by_projection({"block_10": [1], "block_2": [2]}, vit[::-1]) == {vit[10]: [1], vit[2]: [2]}
    assert by_projection({"block_3": [1]}, ["blocks.3.attn.proj"]) == {"blocks.3.attn.proj": [1]}
    assert by_projection({"block_0": [1]}, ["block_0"]) == {"block_0": [1]}
    assert by_projection({**by_number, "block_12": [1]}, vit) == {**by_name, "block_12": [1]}  # for others to refuse


@pytest.mark.parametrize(
    "names",
    [
        ["stages.0.blocks.0.proj", "stages.0.blocks.1.proj", "stages.1.blocks.0.proj"],
        ["encoder.0.proj", "decoder.1.proj"],
        ["blocks.0.attn.proj", "pool.proj"],
        ["proj"],
        ["stages.1.blocks.0.proj"],
        ["stages.0.blocks.1.proj", "stages.1.blocks.0.proj"],
        [],
    ],
)
def test_numbers_of_blocks_may_not_tell_which_projection_is_meant(names):
    with pytest.raises(ValueError, match="as 'block_0', and the projections' names do not tell which block each is of"):
        by_projection({"block_0": [1]}, names)


def test_lists_by_numbers_that_are_none():
    with pytest.raises(ValueError, match="as 'block_0', and by other names, as 'blocks.1.proj': use one"):
        by_projection({"block_0": [1], "blocks.1.proj": [1]}, ["blocks.0.proj", "blocks.1.proj"])
    with pytest.raises(ValueError, match=r"listed several times: \['block_0', 'block_00'\]"):
        by_projection({"block_0": [1], "block_00": [1]}, ["blocks.0.proj", "blocks.1.proj"])


def test_authors_file_of_channels_is_taken_by_adapt(tmp_path):
    vit = tiny_vit(num_classes=0)
    (tmp_path / "inds.json").write_text(json.dumps({"block_0": [8, 1, 5], "block_1": [30, 2]}))
    report = adapt(vit, channels=tmp_path / "inds.json")
    assert [p.channels for p in report.projections] == [(1, 5, 8), (2, 30)]


def test_of_equal_scores_the_first_channels_are_chosen():
    assert top_channels(torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0]), 4, "proj") == [1, 2, 3, 4]
    assert top_channels(torch.zeros(1000), 7, "proj") == list(range(7))


def test_a_selection_is_a_name_or_a_dict():
    assert Selection.of("fisher") == Selection.of(dict(type="fisher")) == Selection("fisher", 8)
    for selection in ("random", "magnitude", dict(type="gradient", batches=3)):
        assert Selection.of(Selection.of(selection).as_argument()) == Selection.of(selection)
    assert [Selection.of(name).reads_data for name in ("random", "magnitude", "gradient", "fisher")] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("selection", "told"),
    [
        ("wanda", "must be one of 'random', 'magnitude', 'gradient', 'fisher'"),
        (None, "must be one of"),
        (dict(batches=2), "must be one of"),
        (dict(type="fisher", steps=2), "has steps, and takes type and batches alone"),
        (dict(type="magnitude", batches=2), "'magnitude' reads no data, leave batches out"),
        (dict(type="fisher", batches=0), "batches must be an int, at least 1"),
        (dict(type="fisher", batches=None), "batches must be an int, at least 1"),
        (dict(type="fisher", batches=True), "batches must be an int, at least 1"),
    ],
)
def test_what_is_no_selection_is_an_error(selection, told):
    with pytest.raises(ValueError, match=told):
        Selection.of(selection)
