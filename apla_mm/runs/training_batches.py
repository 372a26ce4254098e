"""Batches of training data, each of which follows from the seed and its place in training alone."""

import logging
import multiprocessing
import re
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.dist import get_dist_info
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, DataLoader, Dataset

from ..data.reading import DataError, UnreadableError, read_image
from ..internals import raise_if_worker_died
from .seeding import seed_all

_FILES = (("image", "img_path"), ("label map", "seg_map_path"))


@contextmanager
def deaths_of_workers_told(*signs: type[Exception]) -> Iterator[None]:
    """Say what helps where a data loader's worker has died, which torch raises wherever the process is at that moment.

    Args:
        *signs: Errors that may come before it here, while torch takes from the worker.

    Raises:
        RuntimeError: A worker died.
    """
    try:
        yield
    except Exception as error:
        told = str(error) if re.match("DataLoader worker .* (killed|exited)", str(error)) else ""
        told = told or (_death_within(seconds=2) if isinstance(error, signs) else "")
        if not told:
            raise
        raise RuntimeError(
            f"a worker of a data loader died: {told.strip()}; if the system ended it for want of memory, which its log "
            "would say, a smaller num_workers or prefetch_factor helps"
        ) from error


def _death_within(seconds: float) -> str:
    """What torch says of a worker's death, which it says once: not in the midst of another error any more."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            raise_if_worker_died()
            time.sleep(0.01)
    except RuntimeError as death:
        return str(death)
    return ""


def batch_sampler_anew(loader: DataLoader, cfg: Mapping[str, Any] | None, seed: int) -> Iterable[list[int]] | None:
    """A data loader's batch sampler, built anew as of its config: the loader's own may have been drawn from.

    Without a seed in the config, that of a resumed run is known only after the loader was built.

    Args:
        loader: The loader.
        cfg: Its config; None if there is none.
        seed: For the sampler.

    Returns:
        Lists of indices of this process; None if the config does not say how its sampler is built.
    """
    cfg = cfg or {}
    if not isinstance(cfg.get("sampler"), dict) or not isinstance(cfg.get("batch_sampler", {}), dict | None):
        return None
    sampler = DATA_SAMPLERS.build(cfg["sampler"], default_args=dict(dataset=loader.dataset, seed=seed))
    size = cfg["batch_size"]
    if cfg.get("batch_sampler"):
        return DATA_SAMPLERS.build(cfg["batch_sampler"], default_args=dict(sampler=sampler, batch_size=size))
    return BatchSampler(sampler, size, drop_last=cfg.get("drop_last", False))


class TrainingBatches:
    """Gives training's batches one after the other, without end, from any place on.

    Indices come from the sampler as ever, which starts anew where it ends. What a pipeline draws at random follows
    from the seed and the sample's place among all that training has read, of all processes: not from the number of
    workers, nor from what they have read before. So it makes no difference where a run was cut; and with a sampler
    that deals its indices out to the processes in turn, as mmengine's do, none how many processes share a batch.

    Args:
        loader: Data set, workers and collation.
        batch_sampler: Lists of indices of this process.
        seed: The run's seed, the same in all processes.
        start: How many batches training has seen; their indices are passed over and nothing of them is read.
        skip_unreadable: Whether a sample whose image or label map cannot be read is replaced by the next one.
        apart: Whether what the data set remembers of samples that it has read, as transforms that mix images do, is
            forgotten: workers have a copy of the data set anyway, and without workers a copy is read.
    """

    def __init__(
        self,
        loader: DataLoader,
        batch_sampler: Iterable[list[int]],
        seed: int,
        start: int,
        skip_unreadable: bool,
        apart: bool = False,
    ) -> None:
        processes: Any = loader.multiprocessing_context or multiprocessing
        dataset = deepcopy(loader.dataset) if apart and not loader.num_workers else loader.dataset
        self._reader = _Reader(dataset, seed, skip_unreadable, processes.Value("q", 0))
        self._batches: Iterator[Any] = iter(
            DataLoader(
                self._reader,
                batch_sampler=_Positions(batch_sampler, start),
                num_workers=loader.num_workers,
                collate_fn=loader.collate_fn,
                pin_memory=loader.pin_memory,
                timeout=loader.timeout,
                worker_init_fn=loader.worker_init_fn,
                multiprocessing_context=loader.multiprocessing_context,
                prefetch_factor=loader.prefetch_factor,
                persistent_workers=loader.persistent_workers,
            )
        )

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with deaths_of_workers_told(ConnectionError, EOFError):
            return next(self._batches)

    @property
    def skipped(self) -> int:
        """How many samples could not be read and were replaced, in this process and its workers, which read ahead."""
        return self._reader.skipped.value


class _Batch(list):
    """Indices of a batch, and how many this process has had before them."""

    before: int


class _Positions:
    """A batch sampler's batches, again and again, with their places."""

    def __init__(self, batch_sampler: Iterable[list[int]], start: int) -> None:
        self.batch_sampler, self.start = batch_sampler, start

    def __iter__(self) -> Iterator[_Batch]:
        number = samples = epoch = 0
        while True:
            first = number
            for indices in self.batch_sampler:
                batch = _Batch(indices)
                batch.before = samples
                samples, number = samples + len(batch), number + 1
                if number > self.start:
                    yield batch
            if number == first:
                raise DataError("train_dataloader: the data set gives no batch; it is empty, or smaller than a batch")
            epoch += 1
            if set_epoch := getattr(getattr(self.batch_sampler, "sampler", None), "set_epoch", None):
                set_epoch(epoch)


class _Reader(Dataset):
    """A data set that is read by batches of indices with places."""

    def __init__(self, dataset: Any, seed: int, skip_unreadable: bool, skipped: Any) -> None:
        self.dataset, self.seed, self.skip_unreadable, self.skipped = dataset, seed, skip_unreadable, skipped
        self.rank, self.world_size = get_dist_info()

    def __getitems__(self, batch: _Batch) -> list[Any]:
        return [self._read(i, (batch.before + k) * self.world_size + self.rank) for k, i in enumerate(batch)]

    def _read(self, index: Any, place: int) -> Any:
        for step in range(len(self.dataset) if self.skip_unreadable else 1):
            seed_all(self.seed, 0, place)
            sample = (index + step) % len(self.dataset) if step else index
            try:
                return self.dataset[sample]
            except Exception as error:
                told, unreadable = _cause(error, sample)
                if not unreadable or not self.skip_unreadable:
                    cure = (
                        "; mend or leave out the file, or let training skip and count such ones by "
                        "train_cfg.skip_unreadable=True"
                    )
                    raise DataError(f"train_dataloader: {told}{cure if unreadable else ''}") from error
                with self.skipped.get_lock():
                    self.skipped.value += 1
                # as an error, which all ranks write
                print_log(f"skipped: {told}", logger="current", level=logging.ERROR)
        raise DataError(f"train_dataloader: none of {len(self.dataset)} samples can be read")


def _cause(error: Exception, sample: Any) -> tuple[str, bool]:
    """What to say of an error while a sample was read, and whether a transform that loads files has raised it.

    The files are those of the transform that failed: a data set that mixes images, as for mosaics, reads others than
    its sample's.
    """
    files: dict[str, str] = {}
    loading = False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        transform = frame.f_locals.get("self")
        results = frame.f_locals.get("results", frame.f_locals.get("data"))  # of a transform, or a pipeline
        if isinstance(results, dict) and results.get("img_path"):
            files = {what: results[key] for what, key in _FILES if results.get(key)}
        if isinstance(transform, BaseTransform):
            loading = type(transform).__name__.startswith("Load")
    for what, path in files.items() if loading else ():
        try:
            read_image(path, what, flag="unchanged")
        except UnreadableError as unreadable:
            return str(unreadable), True
    named = ", ".join(f"{what} '{path}'" for what, path in files.items())
    return f"sample {sample}{f' ({named})' if named else ''}: {type(error).__name__}: {error}", loading
