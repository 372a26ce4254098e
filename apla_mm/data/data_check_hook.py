"""The hook that looks at the data before an hour is spent."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.dist import all_gather_object, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from ..processes import in_every_process
from ..text import quoted
from .class_images import check_class_images, counts_of_classes, is_classified, labels_of
from .coco.check import check_annotations, check_images, is_coco
from .coco.object_counts import ObjectCounts
from .coco.panoptic_check import PanopticMap, check_maps, check_panoptic_file, is_panoptic
from .coco.panoptic_file import PanopticFile
from .folders import dataset_class, datasets_of, evaluators_of
from .labels.heads import heads_of
from .labels.label_counts import LabelCounts
from .labels.segmentation_check import SegmentationCheck
from .left_out import images_not_listed
from .pipelines import steps_of
from .reading import DataError


class DataCheckHook(Hook):
    """Checks the data of a segmentation, detection or classification config before training or testing starts.

    Files are read as the data set's own pipeline reads them. What is not in order is an error that names the file and
    what was expected: an empty data set; a missing or unreadable image; one that is left out for its suffix alone; a
    label map of another size than its image, or with a label that the heads, or the metrics, neither count nor ignore;
    label maps that all together have nothing to learn, or no pixel of a class; in COCO's format an annotation that
    refers to nothing, a box outside its image, a mask that is none, classes that are not the file's categories in the
    file's order; a panoptic map without the segments of its annotation file; in classification a label of no class, or
    a test whose classes are not those of the checkpoint; a head with another number of classes than the data set. With
    several processes each reads its share of the images, and the first one the annotation files. How many pixels,
    objects or images each class has is logged, and a class without an object or image in training is a warning.
    Training images that cannot be read are only logged where
    ResumableTrainLoop is set to skip them.

    Args:
        time_limit: Seconds for reading each data set's images; what is not reached is not read, and the log says so.
            None reads all.
        box_tolerance: How many pixels a box may reach out of its image.
        missing_classes: Whether a class without a pixel in all label maps of training is only a warning. It never is
            an error where there are fewer images than classes.
    """

    priority = "VERY_HIGH"

    def __init__(
        self, time_limit: float | None = 30.0, box_tolerance: float = 1.0, missing_classes: bool = False
    ) -> None:
        self.time_limit = time_limit
        self.box_tolerance = box_tolerance
        self.missing_classes = missing_classes
        self._checked: set[str] = set()
        self._trained_classes: list[str] | None = None

    def check_annotation_files(self, runner: Runner, loaders: Sequence[str]) -> None:
        """Check annotation files in COCO's format before mmdet reads them and fails without naming the cause.

        ``apla-mm train`` and ``apla-mm test`` call it. Under other tools the files are checked by
        :meth:`before_train` and :meth:`before_test`, if mmdet could read them.

        Args:
            runner: A runner that has built no data set yet.
            loaders: Which of its data loaders will be used.
        """
        for name in loaders:
            read = [
                DATASETS.build({**copy.deepcopy(settings), "lazy_init": True})
                for settings in datasets_of(runner.cfg, name)
                if _has_annotation_file(dataset_class(settings, runner.cfg.get("default_scope")))
            ]
            self._check_annotations(runner, name, read)
            self._checked.add(name)

    def after_load_checkpoint(self, runner: Runner, checkpoint: Any) -> None:
        """Keep what the classes of a checkpoint are called."""
        meta = checkpoint.get("meta") if isinstance(checkpoint, dict) else None
        dataset = meta.get("dataset_meta") if isinstance(meta, dict) else None
        classes = dataset.get("classes") if isinstance(dataset, dict) else None
        self._trained_classes = list(classes) if isinstance(classes, list | tuple) else None

    def before_train(self, runner: Runner) -> None:
        """Check what training and validation read."""
        trained = self._check(runner, "train_dataloader", runner.train_dataloader)
        if runner.val_loop is not None:
            self._check(runner, "val_dataloader", runner.val_dataloader, runner.val_loop, trained)

    def before_test(self, runner: Runner) -> None:
        """Check what the test reads."""
        self._check(runner, "test_dataloader", runner.test_dataloader, runner.test_loop)

    def _check(
        self, runner: Runner, name: str, loader: Any, loop: Any = None, trained: LabelCounts | None = None
    ) -> LabelCounts | None:
        skips = name == "train_dataloader" and getattr(runner.train_loop, "skip_unreadable", False)
        unreadable: list[str] | None = [] if skips else None
        metrics = None if loop is None else getattr(getattr(loop, "evaluator", None), "metrics", [])
        maps = SegmentationCheck(name, runner.model, metrics, self.time_limit, self.missing_classes)
        datasets = list(_unwrapped(loader.dataset))
        kinds = [in_every_process(partial(_kind_of, name, dataset)) for dataset in datasets]
        if name not in self._checked:
            self._check_annotations(runner, name, [one for one in datasets if _has_annotation_file(type(one))])
        for dataset, kind in zip(datasets, kinds, strict=True):
            if kind is None:
                continue
            in_every_process(partial(self._check_heads, runner, name, dataset))
            if kind == "COCO":
                self._check_images(name, dataset, unreadable)
            elif kind == "classes":
                self._check_class_images(name, dataset, unreadable)
            else:
                self._log(name, *maps.look_at(dataset, unreadable))
        counts = maps.judge(loader, trained) if "label maps" in kinds else None
        if unreadable is not None:
            told = [text for texts in all_gather_object(unreadable) for text in texts]
            if told:
                text = (
                    f"{name}: {len(told)} samples will be skipped, as train_cfg.skip_unreadable says: {'; '.join(told)}"
                )
                print_log(text, logger="current", level=logging.WARNING)
        return counts

    def _check_annotations(self, runner: Runner, name: str, datasets: Sequence[Any]) -> None:
        counts = ObjectCounts()
        for dataset in datasets:
            if is_panoptic(type(dataset)):
                self._check_panoptic_file(runner, name, dataset)
            else:
                self._check_annotation_file(runner, name, dataset, counts)
        if counts.read and is_main_process():
            classes = list(dict.fromkeys(one for dataset in datasets for one in dataset.metainfo["classes"]))
            print_log(f"{name}: {counts.summary(classes)}", logger="current")
            for text in counts.suspicions(classes) if name == "train_dataloader" else ():
                print_log(f"{name}: {text}", logger="current", level=logging.WARNING)

    def _check_annotation_file(self, runner: Runner, name: str, dataset: Any, counts: ObjectCounts) -> None:
        evaluators = [] if name == "train_dataloader" else evaluators_of(runner.cfg, name)
        scoring = [evaluator for evaluator in evaluators if not evaluator.get("format_only")]
        one = len(datasets_of(runner.cfg, name)) == 1  # of several sets, each is a part of what is scored
        kept = {} if dataset.test_mode else dataset.filter_cfg or {}
        settings = dict(
            masks=any(getattr(step, "with_mask", False) for step in steps_of(dataset.pipeline))
            or any("segm" in evaluator.get("metric", "") for evaluator in scoring),
            annotated=not evaluators or bool(scoring),
            truths=[evaluator["ann_file"] for evaluator in scoring if one and evaluator.get("ann_file")],
            min_size=kept.get("min_size", 0),
            filter_empty=kept.get("filter_empty_gt", False),
            box_tolerance=self.box_tolerance,
            backend_args=dataset.backend_args,
            indices=dataset._indices,
            counts=counts,
        )

        def check() -> str:
            first = get_dist_info()[0] == 0
            return check_annotations(dataset.ann_file, dataset.metainfo["classes"], **settings) if first else ""

        print_log(f"{name}: '{dataset.ann_file}': {in_every_process(check)}", logger="current")

    def _check_panoptic_file(self, runner: Runner, name: str, dataset: Any) -> None:
        evaluators = [] if name == "train_dataloader" else evaluators_of(runner.cfg, name)
        truths = [e["ann_file"] for e in evaluators if e.get("ann_file") and not e.get("format_only")]

        def check() -> str:
            if get_dist_info()[0]:
                return ""
            path, backend_args = dataset.ann_file, dataset.backend_args
            return check_panoptic_file(path, dataset.metainfo, truths=truths, backend_args=backend_args)

        print_log(f"{name}: '{dataset.ann_file}': {in_every_process(check)}", logger="current")

    def _check_heads(self, runner: Runner, name: str, dataset: Any) -> None:
        if getattr(dataset, "return_classes", False):
            return  # classes that are given as text
        if "thing_classes" in dataset.metainfo:
            self._check_panoptic_heads(runner, name, dataset.metainfo)
            return
        classes = len(dataset.metainfo["classes"])
        for head, outputs in heads_of(runner.model):
            if outputs != classes:
                raise DataError(
                    f"{name}: the data set has {classes} classes and '{head}' was built for {outputs}: set "
                    "num_classes of every head, or the data set's metainfo.classes"
                )

    def _check_panoptic_heads(self, runner: Runner, name: str, metainfo: Mapping[str, Any]) -> None:
        counts = tuple(len(metainfo[key]) for key in ("thing_classes", "stuff_classes"))
        for head, module in runner.model.named_modules():
            built = tuple(getattr(module, key, None) for key in ("num_things_classes", "num_stuff_classes"))
            if head and None not in built and built != counts:
                raise DataError(
                    f"{name}: the data set has {counts[0]} classes of things, {counts[1]} of stuff, and '{head}' was "
                    f"built for {built[0]} and {built[1]}: --cfg-options thing_classes=... stuff_classes=... set both"
                )

    def _check_images(self, name: str, dataset: Any, unreadable: list[str] | None) -> None:
        infos = (dataset.get_data_info(i) for i in _share(dataset))
        images = [(info["img_path"], info["width"], info["height"]) for info in infos]
        how = _how_images_are_read(dataset)
        paths = [path for shares in all_gather_object([path for path, _, _ in images]) for path in shares]
        if is_main_process():
            said = images_not_listed((dataset.data_prefix or {}).get("img"), paths, dataset.backend_args)
            if said:
                print_log(f"{name}: {said}", logger="current")
        read = in_every_process(lambda: check_images(images, self.time_limit, dataset.backend_args, unreadable, **how))
        self._log(name, read, len(images))
        if is_panoptic(type(dataset)):
            in_every_process(lambda: check_maps(_maps_of(dataset), self.time_limit, dataset.backend_args))

    def _check_class_images(self, name: str, dataset: Any, unreadable: list[str] | None) -> None:
        classes = dataset.metainfo["classes"]
        if name == "test_dataloader" and self._trained_classes not in (None, list(classes)):
            raise DataError(
                f"{name}: the classes are {quoted(classes, 5)}, and those of the checkpoint "
                f"{quoted(self._trained_classes or [], 5)}: labels would be taken for others; test on folders of the "
                "same names, or name the checkpoint's by the option classes"
            )
        infos = [dataset.get_data_info(i) for i in _share(dataset)]
        how = _how_images_are_read(dataset)
        read = in_every_process(lambda: check_class_images(infos, classes, self.time_limit, None, unreadable, **how))
        labels = [one for share in all_gather_object([labels_of(info) for info in infos]) for one in share]
        if is_main_process() and any(labels):
            told, empty = counts_of_classes([label for one in labels for label in one], classes)
            print_log(f"{name}: {told}", logger="current")
            if empty:
                level = logging.WARNING if name == "train_dataloader" else logging.INFO
                print_log(f"{name}: {empty}", logger="current", level=level)
        self._log(name, read, len(infos))

    def _log(self, name: str, read: int, count: int) -> None:
        rest = "" if read == count else f" in {self.time_limit:g} s; DataCheckHook(time_limit=None) reads all"
        print_log(f"{name}: {read:,} of {count:,} samples read and found in order{rest}", logger="current")


def _kind_of(name: str, dataset: Any) -> str | None:
    """How a data set's files are checked; None if they are not."""
    if not len(dataset):
        raise DataError(f"{name}: the data set is empty; {_where(dataset)}")
    if not hasattr(dataset, "get_data_info"):
        return None
    if is_coco(type(dataset)):
        return "COCO"
    if is_classified(type(dataset)):
        return "classes" if dataset.metainfo.get("classes") and "img_path" in dataset.get_data_info(0) else None
    # mmseg's data sets have both keys, where they know of label maps
    segmentation = {"seg_map_path", "seg_fields"} & dataset.get_data_info(0).keys()
    return "label maps" if segmentation and dataset.metainfo.get("classes") else None


def _has_annotation_file(cls: type | None) -> bool:
    return is_coco(cls, plain=True) or is_panoptic(cls)


def _maps_of(dataset: Any) -> list[PanopticMap]:
    """The panoptic maps of this process's share; mmdet's own list lacks the smallest segments."""
    segments = PanopticFile(dataset.ann_file, dataset.backend_args).segments
    infos = [info for i in _share(dataset) if (info := dataset.get_data_info(i))["seg_map_path"]]
    return [
        PanopticMap(
            info["seg_map_path"], frozenset(s["id"] for s in segments[info["img_id"]]), (info["width"], info["height"])
        )
        for info in infos
    ]


def _how_images_are_read(dataset: Any) -> dict[str, str]:
    """Arguments of mmcv.imfrombytes, as the data set's pipeline has them."""
    how = dict(flag="color", backend="cv2")
    for step in steps_of(dataset.pipeline):
        if hasattr(step, "color_type"):
            how = dict(flag=step.color_type, backend=step.imdecode_backend)
    return how


def _share(dataset: Any) -> range:
    rank, world_size = get_dist_info()
    return range(rank, len(dataset), world_size)


def _unwrapped(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers such as RepeatDataset and ConcatDataset."""
    wrapped = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    if wrapped == [None]:
        yield dataset
        return
    for one in wrapped:
        yield from _unwrapped(one)


def _where(dataset: Any) -> str:
    folder = (getattr(dataset, "data_prefix", None) or {}).get("img_path")
    return f"expected files '*{dataset.img_suffix}' in {folder}" if folder else f"it is a {type(dataset).__name__}"
