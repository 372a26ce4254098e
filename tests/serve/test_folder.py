"""Deltas that come, change, break and go while they are served."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.deltas import write_variant
from helpers.processes import wait_until
from helpers.serving import Server, serving

import apla_mm
from apla_mm.delta import load_delta

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(deltas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty but for the base."""
    folder = tmp_path_factory.mktemp("folder")
    (base,) = deltas.glob("base-*")
    shutil.copyfile(base, folder / base.name)
    return folder


@pytest.fixture(scope="module")
def own(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of that folder."""
    with serving(folder, tmp_path_factory.mktemp("own") / "log.txt") as server:
        yield server


def wait(server: Server, name: str, told: str) -> None:
    """Until the server tells so of a task."""
    wait_until(lambda: told in str(server.tasks().get(name)), 60, lambda: f"{told} in {server.tasks()}")


def put(source: Path, target: Path) -> None:
    shutil.copyfile(source, target.with_name(".copy"))
    os.replace(target.with_name(".copy"), target)


def assert_as_alone(server: Server, name: str, delta: Path, image: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(image)
    found = apla_mm.load(delta, device="cpu").predict(tmp_path / "image")
    told = server.predict(name, image)
    if found.boxes is None:
        assert told["pixels"] == {str(k): int((found.label_map == k).sum()) for k in np.unique(found.label_map)}
    else:
        assert np.array_equal(np.float32(told["scores"]), found.scores) and len(found.scores)


def test_from_an_empty_folder_to_tasks_that_come_change_break_and_go(
    own: Server, folder: Path, deltas: Path, make_picture: Callable[..., bytes], tmp_path: Path
) -> None:
    image = make_picture(1)
    empty = own.ask("GET", "/ready")
    assert empty.status == 503 and "no task is served" in empty.json["error"]
    objects, regions = deltas / "objects.delta.safetensors", deltas / "regions.delta.safetensors"
    put(objects, folder / "objects.delta.safetensors")
    wait(own, "objects", "'served'")
    assert own.ask("GET", "/ready").status == 200
    assert_as_alone(own, "objects", objects, image, tmp_path)

    # half of a file is waited for, and the whole one served
    whole = regions.read_bytes()
    with (folder / "regions.safetensors").open("wb", buffering=0) as file:
        file.write(whole[: len(whole) // 2])
        wait(own, "regions", "cannot be read yet")
        assert own.tasks()["regions"]["status"] == "waiting"
        file.write(whole[len(whole) // 2 :])
    wait(own, "regions", "'served'")
    assert "ERROR" not in own.log.read_text()
    assert_as_alone(own, "regions", regions, image, tmp_path)

    # another training's delta in its place
    write_variant(regions, folder / "next.safetensors", seed=1)
    wait(own, "next", "'served'")
    changed = tmp_path / "changed.delta.safetensors"
    write_variant(objects, changed, seed=2)
    before = own.predict("objects", image)
    put(changed, folder / "objects.delta.safetensors")
    wait_until(lambda: own.predict("objects", image) != before, 60, own.log.read_text)
    put(next(folder.glob("base-*")), tmp_path / next(folder.glob("base-*")).name)
    assert_as_alone(own, "objects", changed, image, tmp_path)
    assert_as_alone(own, "regions", regions, image, tmp_path)

    # a file that stays broken, and one that goes
    (folder / "next.safetensors").write_bytes(whole[:1000])
    wait(own, "next", "refused")
    gone = own.ask("POST", "/v1/predict/next", image)
    assert gone.status == 404 and "copy it again" in gone.json["error"]
    (folder / "regions.safetensors").unlink()
    wait(own, "regions", "'gone'")
    assert own.ask("POST", "/v1/predict/regions", image).status == 404
    assert "task regions: its file is not in the folder any more" in own.log.read_text()
    assert_as_alone(own, "objects", changed, image, tmp_path)


def test_what_cannot_be_served_is_refused_by_name(
    own: Server, folder: Path, deltas: Path, make_picture: Callable[..., bytes]
) -> None:
    put(deltas / "objects.delta.safetensors", folder / "objects.delta.safetensors")
    regions = deltas / "regions.delta.safetensors"
    header = load_delta(regions).header
    other = dict(header.base, **{next(iter(header.base)): "0" * 64})
    extra = dict(header.extra, base_file="base-0123456789abcdef.safetensors")
    write_variant(regions, folder / "other.delta.safetensors", base=other, extra=extra)
    write_variant(regions, folder / "silent.delta.safetensors", config="")
    evil = header.config.replace("type='EncoderDecoder'", "type='os.system'")
    assert evil != header.config
    write_variant(regions, folder / "evil.delta.safetensors", config=evil)
    shutil.copyfile(next(deltas.glob("base-*")), folder / "plain.safetensors")
    for name, told in {
        "other": "its base is 'base-0123456789abcdef.safetensors', and this server has 'base-",
        "silent": "holds no config",
        "evil": "code of its author",
        "plain": "plain weights are not a delta",
    }.items():
        wait(own, name, "refused")
        assert told in own.tasks()[name]["reason"]
        assert f"task {name}: refused: " in own.log.read_text()
    wait(own, "objects", "'served'")
    assert own.predict("objects", make_picture())["task"] == "objects"
