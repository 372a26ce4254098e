"""The predictions of a test: kept as label maps, with or without labels to score them by."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from os.path import commonpath, relpath, splitext
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.fileio import list_dir_or_file
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

from ..data.folders import datasets_of, evaluators_of
from ..output_folder import make_output_folder
from .agreement.problems import as_list, kind

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_TURNED = 0x0112  # the EXIF tag of an image's orientation; from 5 on, width and height are exchanged


class PredictionsHook(Hook):
    """Keeps the predictions of a segmentor as label maps, PNG files in the folders that their images are in.

    The prediction for ``FOLDER/video_a/s0.jpg`` of a data set in ``FOLDER`` becomes ``out/video_a/s0.png``. Labels are
    those of the data set's label maps: where it is read with ``reduce_zero_label``, they begin at 1.

    Args:
        out: The folder to write to.
    """

    def __init__(self, out: str) -> None:
        self.out = Path(out)
        self._root = ""

    def before_test(self, runner: Runner) -> None:
        """Find the data sets' common folder, and that no two images share a file, and none is written over.

        Raises:
            ValueError: Two do, or a prediction would lie where an image or a label map is.
        """
        dataset = runner.test_dataloader.dataset
        paths = [os.path.abspath(dataset.get_data_info(i)["img_path"]) for i in range(len(dataset))]
        roots = [folder for one in _innermost(dataset) if (folder := _folder_of(one))]
        inside = bool(roots) and all(commonpath([commonpath(roots), path]) == commonpath(roots) for path in paths)
        self._root = commonpath(roots if inside else [os.path.dirname(path) for path in paths])
        self._keep_data([dataset.get_data_info(i) for i in range(len(dataset))])
        sources: dict[Path, str] = {}
        for path in paths:
            other = sources.setdefault(self._target(path), path)
            if other != path:
                raise ValueError(
                    f"the predictions for '{other}' and '{path}' would be one file, '{self._target(path)}': rename one "
                    "of the images, or set test_dataloader.dataset.img_suffix to one kind"
                )

    def _keep_data(self, infos: Sequence[Mapping[str, Any]]) -> None:
        """Refuse to write over what the test reads."""
        read = {os.path.realpath(info[key]) for info in infos for key in ("img_path", "seg_map_path") if info.get(key)}
        for info in infos:
            target = self._target(os.path.abspath(info["img_path"]))
            if os.path.realpath(target) in read:
                raise ValueError(f"--out '{self.out}': '{target}' is a file of the data: name another folder")

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Write a batch's label maps."""
        for sample in outputs or ():
            labels = sample.pred_sem_seg.data.squeeze(0).cpu().numpy().astype(np.int64)
            if sample.metainfo.get("reduce_zero_label"):
                labels = labels + 1
            target = self._target(os.path.abspath(sample.img_path))
            target.parent.mkdir(parents=True, exist_ok=True)
            classes = len(runner.test_dataloader.dataset.metainfo.get("classes") or ())
            Image.fromarray(labels.astype(np.uint8 if classes < 256 else np.uint16)).save(target)

    def _target(self, path: str) -> Path:
        return self.out / f"{splitext(relpath(path, self._root))[0]}.png"


def _innermost(dataset: Any) -> Iterator[Any]:
    wrapped = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    if wrapped == [None]:
        yield dataset
        return
    for one in wrapped:
        yield from _innermost(one)


def _folder_of(dataset: Any) -> str | None:
    folder = (getattr(dataset, "data_prefix", None) or {}).get("img_path")
    return os.path.abspath(folder) if folder else None


def check_out(out: str, folder: bool) -> None:
    """See that predictions can be written, before hours are spent on them; makes the folder that they lie in.

    Args:
        out: A folder, or a file.
        folder: Which of them.

    Raises:
        ValueError: They cannot.
    """
    wrong = (Path(out).exists() and not Path(out).is_dir()) if folder else Path(out).is_dir()
    if wrong:
        raise ValueError(f"--out '{out}' must be a {'folder, and is a file' if folder else 'file, and is a folder'}")
    into = Path(out) if folder else Path(out).absolute().parent
    if problem := make_output_folder(into):
        raise ValueError(f"--out '{out}' cannot be written: {problem}")


def leave_out_labels(cfg: Config, images: str | None = None, out: str | None = None) -> None:
    """Let a test read images alone and score nothing, in place.

    Args:
        cfg: The config of a segmentor, a detector or a classifier.
        images: A folder of images, at any depth, in place of the data set's. None keeps those of the test's data set:
            in segmentation and classification the images of its folder or list, in detection those of its annotation
            file, of which annotations are not read.
        out: File of a detector's predictions; beside it they are written in COCO's format too.

    Raises:
        ValueError: The folder holds no images, or the config has no data set for tests.
    """
    datasets = datasets_of(cfg, "test_dataloader")
    if not datasets:
        raise ValueError("the config has no data set for tests: set test_dataloader")
    if images is not None:
        _check_images(images)
    dataset = dict(datasets[0])
    # of a folder, the classes are what the data set's class knows, where the config does not name them
    dataset["metainfo"] = {**_known_metainfo(dataset, cfg.get("default_scope")), **(dataset.get("metainfo") or {})}
    dataset["pipeline"] = without_labels(dataset.get("pipeline") or [])
    dataset["test_mode"] = True
    shared = {key: dataset[key] for key in ("metainfo", "pipeline", "test_mode")}
    cfg.test_evaluator = []
    if cfg.get("default_scope") == "mmdet":
        content = _read_images(dataset) if images is None else _list_images(images, dataset["metainfo"])
        file = Path(cfg.work_dir).resolve() / f"images_{os.getpid()}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(dict(content, annotations=[])))
        if images is not None:
            dataset = dict(shared, type="CocoDataset", data_prefix=dict(img=images))
        dataset["ann_file"] = str(file)
        prefix = splitext(out)[0] if out else str(file.with_name("predictions"))
        cfg.test_evaluator = dict(
            type="CocoMetric",
            metric=_scored(cfg),
            ann_file=str(file),
            format_only=True,
            outfile_prefix=prefix,
        )
    elif cfg.get("default_scope") == "mmpretrain":
        if images is not None:
            place = dict(data_prefix=dict(img_path=images), extensions=_SUFFIXES)
            dataset = dict(shared, type="CustomDataset", **place)
        dataset["with_label"] = False
    elif images is not None:
        zero = dataset.get("reduce_zero_label", kind(dataset) == "ADE20KDataset")
        place = dict(data_prefix=dict(img_path=images), img_suffix=_all_cases(), reduce_zero_label=zero)
        dataset = dict(shared, type="BaseSegDataset", **place)
    else:
        folders = dataset.get("data_prefix") or {}
        dataset["data_prefix"] = {key: folder for key, folder in folders.items() if key != "seg_map_path"}
    cfg.test_dataloader.dataset = dataset
    if cfg.get("tta_pipeline"):
        cfg.tta_pipeline = without_labels(cfg.tta_pipeline)


def _scored(cfg: Config) -> Any:
    """What the config's metric compares of a detector's predictions: boxes, or masks too."""
    metrics = [m for evaluator in evaluators_of(cfg, "val_dataloader") for m in as_list(evaluator.get("metric"))]
    return list(dict.fromkeys(m for m in metrics if m in ("bbox", "segm"))) or "bbox"


def _known_metainfo(dataset: Mapping[str, Any], scope: str | None) -> dict[str, Any]:
    with DefaultScope.overwrite_default_scope(scope):
        cls = DATASETS.get(str(dataset.get("type")))
    return {key: value for key, value in getattr(cls, "METAINFO", {}).items() if key in ("classes", "palette")}


def _read_images(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """The images and categories of a data set's annotation file."""
    path = Path(os.path.join(dataset.get("data_root") or "", dataset.get("ann_file") or ""))
    try:
        content = json.loads(path.read_bytes())
        return {key: content[key] for key in ("images", "categories")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"test_dataloader.dataset.ann_file '{path}' is no JSON file with the lists 'images' and 'categories' "
            f"({type(error).__name__}: {error}); for a folder of images give --images FOLDER"
        ) from error


def _list_images(images: str, metainfo: Mapping[str, Any]) -> dict[str, Any]:
    """A folder's images, and categories for the classes, as an annotation file lists them."""
    listed = []
    for i, name in enumerate(sorted(list_dir_or_file(images, list_dir=False, suffix=_all_cases(), recursive=True))):
        with Image.open(Path(images) / name) as image:
            turned = image.getexif().get(_TURNED, 1) >= 5
            width, height = image.size[::-1] if turned else image.size
        listed.append(dict(id=i, file_name=name, width=width, height=height))
    categories = [dict(id=i, name=name) for i, name in enumerate(metainfo.get("classes") or ())]
    return dict(images=listed, categories=categories)


def _check_images(images: str) -> None:
    if not Path(images).is_dir():
        raise ValueError(f"--images '{images}' is no folder (looked in {Path.cwd()})")
    if not any(True for _ in list_dir_or_file(images, list_dir=False, suffix=_all_cases(), recursive=True)):
        raise ValueError(f"--images '{images}' holds no images ({', '.join(_SUFFIXES)})")


def _all_cases() -> tuple[str, ...]:
    return (*_SUFFIXES, *(suffix.upper() for suffix in _SUFFIXES))


def without_labels(node: Any) -> Any:
    """A pipeline without its steps that read labels; a group of nothing else goes too."""
    if isinstance(node, Mapping):
        return {key: without_labels(value) for key, value in node.items()}
    if not isinstance(node, list | tuple):
        return node
    kept = [(one, without_labels(one)) for one in node if "LoadAnnotations" not in kind(one)]
    return type(node)(after for before, after in kept if after != [] or before == [])
