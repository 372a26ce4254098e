import multiprocessing
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmseg.registry import DATASETS
from mmseg.utils import register_all_modules
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from apla_mm.data.reading import DataError
from apla_mm.runs import training_batches
from apla_mm.runs.training_batches import TrainingBatches, deaths_of_workers_told

pytestmark = pytest.mark.slow

Sample = tuple[int, float, float, float]


class Random(Dataset):
    """Samples that draw from every generator; the last one twice as often."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        if index == 9:
            random.random(), np.random.rand(), torch.rand(1)
        return index, random.random(), float(np.random.rand()), float(torch.rand(1))


def batches(sampler: Any = None, start: int = 0, seed: int = 0, workers: int = 0, size: int = 2) -> TrainingBatches:
    loader = DataLoader(Random(), num_workers=workers, collate_fn=list, persistent_workers=workers > 0)
    batch_sampler = BatchSampler(sampler or InfiniteSampler(Random(), seed=7), size, drop_last=False)
    return TrainingBatches(loader, batch_sampler, seed, start, skip_unreadable=False)


def read(count: int, **settings: Any) -> list[list[Sample]]:
    given = batches(**settings)
    return [next(given) for _ in range(count)]


def test_batches_follow_from_their_place_alone() -> None:
    whole = read(12)
    assert len({sample[1:] for batch in whole for sample in batch}) == 24
    assert read(5, start=7) == whole[7:]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    assert read(12, workers=2) == whole
    assert read(5, start=7, workers=3) == whole[7:]
    assert [[s[0] for s in batch] for batch in read(12, seed=1)] == [[s[0] for s in batch] for batch in whole]
    assert not {s[1:] for batch in read(12, seed=1) for s in batch} & {s[1:] for batch in whole for s in batch}


def test_indices_are_those_of_the_sampler() -> None:
    indices = iter(InfiniteSampler(Random(), seed=7))
    assert [sample[0] for batch in read(12) for sample in batch] == [next(indices) for _ in range(24)]


@pytest.mark.parametrize("drop_last", [False, True])
def test_sampler_that_ends_starts_anew_in_another_order(drop_last: bool) -> None:
    def make() -> BatchSampler:
        return BatchSampler(DefaultSampler(Random(), seed=3), 4, drop_last=drop_last)

    def take(start: int, count: int) -> list[list[Sample]]:
        given = TrainingBatches(DataLoader(Random(), collate_fn=list), make(), 0, start, skip_unreadable=False)
        return [next(given) for _ in range(count)]

    reference, expected = make(), []
    for epoch in range(3):
        reference.sampler.set_epoch(epoch)
        expected += list(reference)
    whole = take(0, len(expected))
    assert [[s[0] for s in batch] for batch in whole] == expected
    assert expected[: len(reference)] != expected[len(reference) : 2 * len(reference)]
    assert take(4, 2) == whole[4:6]


def test_processes_share_what_one_process_would_read(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(6, size=4)
    parts = []
    for rank in range(2):
        for module in (training_batches, __import__("mmengine.dataset.sampler", fromlist=["sampler"])):
            monkeypatch.setattr(module, "get_dist_info", lambda rank=rank: (rank, 2))
        parts.append(read(6, sampler=InfiniteSampler(Random(), seed=7)))
    for one, first, second in zip(whole, *parts, strict=True):
        assert sorted(one) == sorted(first + second)


def test_spawned_workers_read_the_same(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    loader = DataLoader(Random(), num_workers=1, collate_fn=list, multiprocessing_context=spawn)
    sampler = BatchSampler(SequentialSampler(Random()), 2, drop_last=False)
    given = TrainingBatches(loader, sampler, 0, 3, skip_unreadable=False)
    assert next(given) == read(4, sampler=SequentialSampler(Random()))[3]


def test_nothing_of_what_was_seen_is_read_again() -> None:
    class Counting(Random):
        read: list[int] = []

        def __getitem__(self, index: int) -> Sample:
            self.read.append(index)
            return super().__getitem__(index)

    loader = DataLoader(Counting(), collate_fn=list)
    sampler = BatchSampler(SequentialSampler(Random()), 2, drop_last=False)
    next(TrainingBatches(loader, sampler, 0, 1003, skip_unreadable=False))
    assert Counting.read == [6, 7]


def test_data_set_without_a_batch_is_an_error() -> None:
    sampler = BatchSampler(SequentialSampler(Random()), 16, drop_last=True)
    with pytest.raises(DataError, match="gives no batch; it is empty, or smaller than a batch"):
        next(TrainingBatches(DataLoader(Random()), sampler, 0, 0, skip_unreadable=False))


@pytest.fixture
def scenes(segmentation_config: Config) -> Any:
    register_all_modules(init_default_scope=True)
    return DATASETS.build(segmentation_config.train_dataloader.dataset)


def read_scenes(scenes: Any, count: int = 3, skip: bool = False, workers: int = 0) -> tuple[list[str], int]:
    loader = DataLoader(scenes, num_workers=workers, collate_fn=list)
    sampler = BatchSampler(SequentialSampler(scenes), 1, drop_last=False)
    given = TrainingBatches(loader, sampler, 0, 0, skip_unreadable=skip)
    return [Path(next(given)[0]["data_samples"].img_path).name for _ in range(count)], given.skipped


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("kind", "what"), [("images", "image"), ("annotations", "label map")])
def test_file_that_cannot_be_read_is_named_or_skipped_and_counted(
    scenes: Any, data_root: Path, kind: str, what: str, workers: int
) -> None:
    (path,) = (data_root / kind / "training").glob("scene_1.*")
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(DataError, match=f"the {what} '{path}' cannot be read.*train_cfg.skip_unreadable=True"):
        read_scenes(scenes, workers=workers)
    names, skipped = read_scenes(scenes, skip=True, workers=workers)
    assert names == ["scene_0.jpg", "scene_2.jpg", "scene_2.jpg"]
    assert skipped == 1 if workers == 0 else skipped >= 1  # workers read ahead


def test_error_of_the_pipeline_is_not_skipped_and_names_the_sample(
    scenes: Any, monkeypatch: pytest.MonkeyPatch, data_root: Path
) -> None:
    def broken(results: dict) -> Callable:
        raise KeyError("gt_bboxes")

    monkeypatch.setattr(scenes.pipeline, "transforms", [*scenes.pipeline.transforms[:1], broken])
    with pytest.raises(DataError, match=rf"sample 0 \(image '{data_root}/.*scene_0.jpg'.*KeyError: 'gt_bboxes'"):
        read_scenes(scenes, skip=True)


def test_partner_of_a_mixed_sample_is_the_one_that_is_named(scenes: Any, data_root: Path) -> None:
    class Mixed(Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            scenes[index + 1 if index == 1 else 0]
            return scenes[index]

    (path,) = (data_root / "images/training").glob("scene_2.*")
    path.write_bytes(b"no image")
    sampler = BatchSampler([1], 1, drop_last=False)
    with pytest.raises(DataError, match=f"train_dataloader: the image '{path}' cannot be read"):
        next(TrainingBatches(DataLoader(Mixed(), collate_fn=list), sampler, 0, 0, skip_unreadable=False))


def test_skipping_ends_where_nothing_can_be_read(scenes: Any, data_root: Path) -> None:
    for path in (data_root / "images/training").glob("*"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of 3 samples can be read"):
        read_scenes(scenes, skip=True)


def test_error_of_collation_is_not_told_as_a_death(scenes: Any) -> None:
    def collate(samples: list[Any]) -> None:
        raise RuntimeError("stack expects equal sizes")

    sampler = BatchSampler(SequentialSampler(scenes), 1, drop_last=False)
    loader = DataLoader(scenes, num_workers=1, collate_fn=collate)
    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker(.|\n)*stack expects equal sizes"):
        next(TrainingBatches(loader, sampler, 0, 0, skip_unreadable=False))


@pytest.mark.parametrize("dies", [True, False])
def test_death_that_is_noticed_after_another_error_is_told_and_raised_once(scenes: Any, dies: bool) -> None:
    iterator = iter(DataLoader(scenes, num_workers=1, collate_fn=list))
    (worker,) = iterator._workers
    with pytest.raises(Exception) as raised, deaths_of_workers_told(ConnectionError):
        if dies:
            threading.Timer(0.2, worker.kill).start()
        raise ConnectionResetError
    told = "a worker of a data loader died: DataLoader worker .* is killed by signal: Killed"
    assert re.match(told, str(raised.value)) if dies else type(raised.value) is ConnectionResetError
    worker.join(0.5)  # in which nothing is raised
