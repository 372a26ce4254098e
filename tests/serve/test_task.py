"""Tasks on one base: what they share, and what stays as it was."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.deltas import write_variant
from PIL import Image

import apla_mm
from apla_mm.delta import BaseMismatchError, load_delta
from apla_mm.serve.base import Base
from apla_mm.serve.task import Task, base_of

pytestmark = pytest.mark.slow


def test_tasks_share_all_that_is_frozen_and_leave_the_base_as_it_was(
    deltas: Path, tmp_path: Path, make_picture: Callable[..., bytes]
) -> None:
    files = {name: deltas / f"{name}.delta.safetensors" for name in ("regions", "objects")}
    files["variant"] = tmp_path / "variant.safetensors"
    write_variant(files["regions"], files["variant"])
    loaded = {name: load_delta(path) for name, path in files.items()}
    base = base_of(loaded["regions"], "cpu")
    before = {name: tensor.clone() for name, tensor in base.tensors.items()}
    tasks = {name: Task(name, delta, base, "cpu") for name, delta in loaded.items()}
    shared = {id(tensor) for tensor in base.tensors.values()}
    for name, task in tasks.items():
        model = task._predictor.model
        own = [p for p in model.parameters() if id(p) not in shared]
        assert {id(p) for p in model.parameters()} >= shared
        assert sum(p.nbytes for p in own) <= task.nbytes
        # heads, and the channels twice: as they are switched in, and beside the weights of the adapted layers
        assert sum(p.numel() for p in own) == sum(
            value.numel() for value in (*loaded[name].rows.values(), *loaded[name].tensors.values())
        ) - sum(b.numel() for b in model.buffers() if any(b is x for x in model.state_dict(keep_vars=True).values()))
    (tmp_path / "image.png").write_bytes(make_picture())
    pixels = np.asarray(Image.open(tmp_path / "image.png"))
    (deltas_base,) = deltas.glob("base-*")
    (tmp_path / deltas_base.name).write_bytes(deltas_base.read_bytes())
    for name in ("regions", "variant", "regions", "objects", "variant"):
        (found,) = tasks[name].predict([tasks[name].prepare(pixels)])
        expected = apla_mm.load(files[name], device="cpu").predict(tmp_path / "image.png")
        for key in ("label_map", "boxes", "scores", "labels", "masks"):
            one, other = getattr(found, key), getattr(expected, key)
            assert one is other is None or np.array_equal(one, other)
        assert all(torch.equal(tensor, before[key]) for key, tensor in base.tensors.items())


def test_another_base_is_named(deltas: Path) -> None:
    delta = load_delta(deltas / "regions.delta.safetensors")
    base = base_of(delta, "cpu")
    moved = {name: tensor.detach() + 1 for name, tensor in base.tensors.items()}
    with pytest.raises(BaseMismatchError, match=rf"its base is '{base.name}', and this server has 'base-"):
        Task("regions", delta, Base(moved, "cpu"), "cpu")
    moved.popitem()
    with pytest.raises(BaseMismatchError, match="serve deltas of another base by a server of its own"):
        Task("regions", delta, Base(moved, "cpu"), "cpu")
