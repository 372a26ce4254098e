"""The check of the segmentation data sets of one data loader, of one process among several."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import all_gather_object, get_dist_info, is_main_process
from mmengine.logging import print_log
from torch import nn

from ...processes import in_every_process
from ..left_out import check_nothing_left_out
from ..pipelines import SampleReader
from ..reading import DataError
from .label_counts import LabelCounts, MissingClassesError, judge_scoring, judge_training
from .label_maps import check_segmentation
from .label_rules import LabelRules, check_losses, scoring_rules, training_rules

_PROBED = 4  # samples


class SegmentationCheck:
    """Looks at the data sets of a data loader, one after the other, then at all of them together.

    Args:
        name: The data loader.
        model: The model, wrapped or not.
        metrics: The metrics that score what the loader gives; None in training.
        time_limit: Seconds for reading each data set's images, None for all.
        missing_classes: Whether training may lack classes.
    """

    def __init__(
        self, name: str, model: nn.Module, metrics: Any, time_limit: float | None, missing_classes: bool = False
    ) -> None:
        self.name, self.model, self.metrics = name, model, metrics
        self.time_limit, self.missing_classes = time_limit, missing_classes
        self.counts = LabelCounts()
        self._classes: list[str] = []
        self._rules = LabelRules(0)

    def look_at(self, dataset: Any, unreadable: list[str] | None) -> tuple[int, int]:
        """Check a data set's files.

        Args:
            dataset: One of mmseg's.
            unreadable: See :func:`~apla_mm.data.reading.check_evenly`.

        Returns:
            How many samples were read, of how many that are this process's share.

        Raises:
            DataError: Something is wrong with one of them.
        """
        self._classes = list(dataset.metainfo["classes"])
        in_every_process(lambda: self._prepare(dataset))
        rank, world_size = get_dist_info()
        infos = [dataset.get_data_info(i) for i in range(rank, len(dataset), world_size)]
        reader = SampleReader(dataset.pipeline)
        counts = LabelCounts()
        counts.reduced = any(info.get("reduce_zero_label") for info in infos)
        mean = getattr(getattr(_plain(self.model), "data_preprocessor", None), "mean", None)
        skipped: list[str] | None = [] if self.metrics is None and reader.skips_unreadable else unreadable
        read = in_every_process(
            lambda: check_segmentation(
                infos,
                len(self._classes),
                self.time_limit,
                skipped,
                reader=reader,
                rules=self._rules,
                counts=counts,
                channels=None if mean is None else mean.numel(),
            )
        )
        in_every_process(lambda: self._check_bits(reader))
        if skipped and skipped is not unreadable:
            warn(self.name, f"{len(skipped):,} samples will be skipped, as the pipeline says: {'; '.join(skipped[:4])}")
        counts.missed = len(infos) - read if reader.reads_label_maps else 0
        self.counts = self.counts.merge([counts])
        return read, len(infos)

    def judge(self, loader: Any, trained: LabelCounts | None = None) -> LabelCounts:
        """Look at all that was counted, in all processes, and say it.

        Args:
            loader: The data loader.
            trained: What was counted in training, if this is validation.

        Returns:
            The counts of all processes.

        Raises:
            DataError: There is nothing to learn or to score, or a class is missing.
        """
        first, *others = all_gather_object(self.counts)
        counts = first.merge(others)
        if counts.read:
            print_log(f"{self.name}: {counts.summary(self._classes)}", logger="current")
        for text in in_every_process(lambda: self._found_in_all(loader, counts, trained or LabelCounts())):
            warn(self.name, text)
        return counts

    def _prepare(self, dataset: Any) -> None:
        learned = training_rules(self.model, len(self._classes))
        self._rules = learned if self.metrics is None else scoring_rules(self.metrics, len(self._classes), learned)
        if self.metrics is None:
            check_losses(self.model)
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        if infos[0].get("seg_map_path") is None and SampleReader(dataset.pipeline).reads_label_maps:
            raise DataError(
                f"{self.name}: LoadAnnotations of the pipeline asks for label maps, and the data set has none: set "
                "data_prefix.seg_map_path"
            )
        if is_main_process():
            said, warnings = check_nothing_left_out(dataset, infos)
            if said:
                print_log(f"{self.name}: {said}", logger="current")
            for text in warnings:
                warn(self.name, text)

    def _check_bits(self, reader: SampleReader) -> None:
        if reader.reads_eight_bits and len(self._classes) > 256:
            raise DataError(
                f"{self.name}: LoadAnnotations makes 8 bits of each label, and the data set has {len(self._classes)} "
                f"classes: those from 256 on, '{self._classes[256]}' the first, would never be seen. Expected 255 at "
                "most, or a transform of your own that loads label maps"
            )

    def _found_in_all(self, loader: Any, counts: LabelCounts, trained: LabelCounts) -> list[str]:
        try:
            return self._suspicions(loader, counts, trained)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from error

    def _suspicions(self, loader: Any, counts: LabelCounts, trained: LabelCounts) -> list[str]:
        said = list(self._rules.warnings(self._classes))
        if self.metrics is not None:
            if len(self._classes) == 1 and self._rules.num_classes == 2 and counts.pixels[1]:
                said.append(
                    "with one class mmseg's IoUMetric counts the labels 0 and 1 as one, so that its IoU is none of the "
                    "class: score with classes=background,object, num_classes=2 and out_channels=1"
                )
            return [*said, *judge_scoring(counts, self._rules, self._classes, trained)]
        try:
            said += judge_training(counts, self._rules, self._classes)
        except MissingClassesError as error:
            if not self.missing_classes:
                raise
            said.append(str(error))
        return said + self._padding(loader)

    def _padding(self, loader: Any) -> list[str]:
        """Look at the labels that a batch of training has, which padding and turning have added to.

        Raises:
            DataError: There is one that the heads do not take.
        """
        preprocessor = getattr(_plain(self.model), "data_preprocessor", None)
        label = getattr(preprocessor, "seg_pad_val", None)
        found = _labels_of_a_batch(loader.dataset, preprocessor)
        wrong = [one for one in found if not self._rules.allow(one)]
        cure = (
            "set seg_pad_val of the data preprocessor, of Pad and RandomRotate, and seg_fill_in of RandomCutOut to "
            f"what the heads ignore{self._rules.cure.removeprefix(', or what is ignored')}"
        )
        if wrong:
            raise DataError(
                f"the pipeline and the data preprocessor make the labels {wrong[:4]} where they fill or pad: {cure}"
            )
        if isinstance(label, int) and not self._rules.allow(label):
            return [f"images that are smaller than others of their batch will be padded with the label {label}: {cure}"]
        return []


def warn(name: str, text: str) -> None:
    """Log a warning."""
    print_log(f"{name}: {text}", logger="current", level=logging.WARNING)


def _plain(model: nn.Module) -> nn.Module:
    return getattr(model, "module", model)


def _labels_of_a_batch(dataset: Any, preprocessor: Any) -> list[int]:
    """The labels of a few samples, as the model gets them; none if they do not get that far."""
    with _random_state_kept():
        try:
            share = np.linspace(0, len(dataset) - 1, min(_PROBED, len(dataset))).astype(int).tolist()
            batch = preprocessor(pseudo_collate([dataset[i] for i in share]), True)
            maps = [sample.gt_sem_seg.data for sample in batch["data_samples"]]
        except Exception:
            return []  # training's reader names the sample, and the step that fails
    return sorted({int(label) for one in maps for label in one.unique()})


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Draw from fixed seeds, and leave the generators as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.random.default_generator.manual_seed(0)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
