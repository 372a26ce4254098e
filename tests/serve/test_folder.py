"""Deltas that come, change, break and go while they are served."""

import json
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
from apla_mm.serve import folder as folder_module
from apla_mm.serve.folder import TaskFolder
from apla_mm.serve.metrics import Metrics
from apla_mm.serve.requests.limits import Limits
from apla_mm.serve.worker import Worker

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


@pytest.fixture
def looked_at(tmp_path: Path) -> Iterator[tuple[TaskFolder, Path]]:
    """Tasks of an empty folder, at which a test looks itself; and that folder."""
    worker = Worker(Limits(), Metrics())
    (tmp_path / "above/here/deltas").mkdir(parents=True)
    yield TaskFolder(tmp_path / "above/here/deltas", worker, "cpu"), tmp_path / "above/here/deltas"
    assert worker.stop(60)


def test_a_base_that_is_not_whole_yet_is_waited_for(
    looked_at: tuple[TaskFolder, Path], deltas: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks, folder = looked_at
    caplog.set_level("INFO", "apla_mm.serve")
    (base,) = deltas.glob("base-*")
    put(deltas / "regions.delta.safetensors", folder / "regions.delta.safetensors")
    (folder / base.name).write_bytes(base.read_bytes()[:2000])
    tasks.look()
    (told,) = tasks.entries
    assert told.status == "waiting" and "cannot be read yet: base" in told.reason
    shutil.copyfile(base, folder / base.name)
    for _ in range(3):
        tasks.look()
    assert tasks.entries[0].status == "served" and tasks.entries[0].reason == ""
    assert [line for line in caplog.messages if line.startswith("task")] == [
        "task regions: served, segmentation of 2 classes"
    ]


@pytest.mark.parametrize("place", [".", "bases", "../bases", "../../bases", "elsewhere"])
def test_a_base_may_come_wherever_it_is_looked_for(
    looked_at: tuple[TaskFolder, Path],
    deltas: Path,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(folder_module, "_SETTLES", 0.0)
    tasks, folder = looked_at
    if place == "elsewhere":
        monkeypatch.setenv("APLA_MM_BASES", str(folder / place))
    source = deltas / "regions.delta.safetensors"
    without_weights = load_delta(source).header.config.replace("vit.safetensors", "no.safetensors")
    write_variant(source, folder / "regions.safetensors", config=without_weights)
    for _ in range(3):
        tasks.look()
    assert tasks.entries[0].status == "refused" and "needs its base" in tasks.entries[0].reason
    assert len(caplog.messages) == 1  # it is not tried again without a reason
    (base,) = deltas.glob("base-*")
    (folder / place).mkdir(exist_ok=True)
    torn = base.read_bytes()
    (folder / place / base.name).write_bytes(bytes(1000) + torn[1000:])
    tasks.look()
    assert tasks.entries[0].status == "refused" and "damaged" in tasks.entries[0].reason
    (folder / place / base.name).write_bytes(torn)
    tasks.look()
    assert tasks.entries[0].status == "served"


def test_a_file_that_is_mended_in_place_is_read_again(
    looked_at: tuple[TaskFolder, Path], deltas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_SETTLES", 0.0)
    tasks, folder = looked_at
    shutil.copyfile(next(deltas.glob("base-*")), folder / next(deltas.glob("base-*")).name)
    whole, path = (deltas / "regions.delta.safetensors").read_bytes(), folder / "regions.safetensors"
    path.write_bytes(bytes(len(whole)))
    os.utime(path, (1, 1))
    tasks.look()
    assert tasks.entries[0].status == "refused"
    path.write_bytes(whole)  # as rsync does: of the same size, inode and time of change
    os.utime(path, (1, 1))
    tasks.look()
    assert tasks.entries[0].status == "served"


def test_a_file_that_was_refused_and_is_being_written_is_waited_for(
    looked_at: tuple[TaskFolder, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, folder = looked_at
    with monkeypatch.context() as patched:
        patched.setattr(folder_module, "_SETTLES", 0.0)
        (folder / "a.safetensors").write_bytes(b"x")
        tasks.look()
    assert tasks.entries[0].status == "refused"
    (folder / "a.safetensors").write_bytes(b"xy")
    tasks.look()
    assert tasks.entries[0].status == "waiting" and "cannot be read yet" in tasks.entries[0].reason


def test_of_many_files_that_go_the_last_are_forgotten(looked_at: tuple[TaskFolder, Path]) -> None:
    tasks, folder = looked_at
    for letter in "ba":
        for i in range(100):
            (folder / f"{letter}{i:03}.safetensors").write_bytes(b"x")
        tasks.look()
        for path in folder.iterdir():
            path.unlink()
        tasks.look()
    assert len(tasks.entries) == 100 and {entry.status for entry in tasks.entries} == {"gone"}


def test_names_that_no_text_can_hold_are_told_escaped(looked_at: tuple[TaskFolder, Path]) -> None:
    tasks, folder = looked_at
    with open(os.path.join(os.fsencode(folder), b"caf\xe9\n.safetensors"), "wb") as file:
        file.write(b"x")
    tasks.look()
    (told,) = (entry.as_json() for entry in tasks.entries)
    assert told["file"] == "caf\\udce9\\n.safetensors" and json.dumps(told, ensure_ascii=False).encode()
