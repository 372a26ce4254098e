"""What a training by apla-mm train leaves to be read: text, scalars, and TensorBoard's events."""

import re
from pathlib import Path

import pytest
from helpers.data_sets import write_photos
from helpers.logs import log_of, scalars_of
from helpers.small_run import CONFIG, TRAIN, run_small
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.slow

LRS = {"lr", "base_lr", "backbone.lr", "decode_head+auxiliary_head.lr"}


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    options = [f"data_root={write_photos(folder / 'data')}", "vis_backends=TensorboardVisBackend"]
    run_small(TRAIN, CONFIG, "--work-dir", folder / "work", options=options)
    return folder / "work"


@pytest.fixture(scope="module")
def scalars(work_dir: Path) -> list[dict[str, float]]:
    return scalars_of(work_dir)


def test_text_log_tells_the_groups_once_and_progress_in_every_line(work_dir: Path) -> None:
    log = log_of(work_dir)
    lines = re.findall(r"Iter\(train\) \[(\d)/4\]  (.*)", log)
    assert [number for number, _ in lines] == ["1", "2", "3", "4"]
    for _, line in lines:
        assert set(re.findall(r"(\S*lr): [\d.]+e-\d+ ", line)) == LRS
        assert re.search(r"  eta: \d:\d\d:\d\d  time: [\d.]+  data_time: [\d.]+  ", line)
        assert re.search(r"  loss: \d\.\d{4}  ", line)
    for once in ("what trains:", "optimizer's groups, before the schedule:", "peak memory after 4 iterations: "):
        assert log.count(once) == 1
    assert re.search(r"\ndecode_head\+auxiliary_head +[\d,]+ +0.01 +0.01\n", log)
    assert "paramwise_options" not in log


def test_scalars_hold_losses_learning_rates_and_the_score(scalars: list[dict[str, float]]) -> None:
    steps = scalars[:-1]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    for row in steps:
        assert row.keys() >= {"loss", "time", "data_time", *LRS}
        assert row["decode_head+auxiliary_head.lr"] == pytest.approx(10 * row["backbone.lr"])
    # half of it in the warm-up's first iteration, then in a straight line down to none in the eighth
    assert [row["backbone.lr"] for row in steps] == pytest.approx([5e-4, 5e-4, 5e-4 * 5 / 6, 5e-4 * 4 / 6])
    assert "mIoU" in scalars[-1]


def test_tensorboard_holds_what_the_scalars_do(work_dir: Path, scalars: list[dict[str, float]]) -> None:
    (path,) = work_dir.glob("*/vis_data/events.out.tfevents.*")
    events = EventAccumulator(str(path)).Reload()
    for tag in ("loss", *LRS):
        told = [(event.step, event.value) for event in events.Scalars(tag)]
        assert told == [(row["step"], pytest.approx(row[tag])) for row in scalars[:-1]]
    assert [event.value for event in events.Scalars("mIoU")] == [pytest.approx(scalars[-1]["mIoU"])]
    assert "config/text_summary" in events.Tags()["tensors"]
