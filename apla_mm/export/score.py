"""The score of anything that gives an exported model's results, by the config's own metrics on its test's images."""

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from mmengine.structures import InstanceData, PixelData

from .onnx_file import quiet
from .reference import one_of_batch, read_image


class Score(NamedTuple):
    """What a config's metric gives.

    Attributes:
        name: Of the metric's value: that by which the config keeps its best checkpoint, or the first.
        value: As the metric gives it; NaN where it gives none, as COCO's of no object at all.
        images: How many there were.
    """

    name: str
    value: float
    images: int


def score(
    cfg: Config,
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    size: tuple[int, int] | None = None,
    count: int | None = None,
) -> Score:
    """Score results on the first images of the test's data set.

    Args:
        cfg: The config.
        run: Takes uint8 (1, 3, H, W) and gives what an exported model gives.
        size: The only (height, width) that it takes: images are resized to it and results back. None for any.
        count: How many images; None for all.

    Raises:
        ValueError: The config has no data set or metric to test by, or its images are not there.
    """
    init_default_scope(cfg.get("default_scope") or "mmengine")
    if not cfg.get("test_dataloader") or not cfg.get("test_evaluator"):
        raise ValueError("the config has no test_dataloader and test_evaluator, by which a score is made")
    try:
        dataset: Any = DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=False))
    except OSError as error:
        raise ValueError(f"the test's data set, by which a score is made, cannot be read: {error}") from error
    number = len(dataset) if count is None else min(count, len(dataset))
    if not number:
        raise ValueError("the test's data set has no images to score by: see data_root of the config")
    with contextlib.redirect_stdout(io.StringIO()), quiet():
        evaluator = Evaluator(cfg.test_evaluator)
        evaluator.dataset_meta = dataset.metainfo
        ids = []
        for i in range(number):
            sample = dataset[i]["data_samples"]
            ids.append(sample.metainfo.get("img_id"))
            image = read_image(Path(sample.img_path))
            _add_results(sample, _run_at(run, image, size))
            evaluator.process([sample])
        for metric in evaluator.metrics:
            if hasattr(metric, "img_ids"):  # of COCO's: else images that were left out count as missed
                metric.img_ids = ids
        values = evaluator.evaluate(number)
    name = _main(cfg, values)
    return Score(name, float(values.get(name, "nan")), number)


def _run_at(
    run: Callable[[np.ndarray], Mapping[str, np.ndarray]], image: np.ndarray, size: tuple[int, int] | None
) -> dict[str, np.ndarray]:
    """Results of an image (3, H, W), at its own size."""
    own = image.shape[1:]
    if size is None or own == size:
        return one_of_batch(run(image[None]), 0)
    resized = mmcv.imresize(image.transpose(1, 2, 0), size[::-1])
    results = one_of_batch(run(np.ascontiguousarray(resized.transpose(2, 0, 1))[None]), 0)
    if "boxes" not in results:
        return {name: _nearest(value, own) for name, value in results.items()}
    results["boxes"] = results["boxes"] * np.tile([own[1] / size[1], own[0] / size[0]], 2).astype(np.float32)
    if "masks" in results:
        found = results["labels"] >= 0
        results = {name: value[found] for name, value in results.items()}
        masks = [_nearest(mask, own) for mask in results["masks"]]
        results["masks"] = np.stack(masks) if masks else np.zeros((0, *own), bool)
    return results


def _nearest(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A map (H, W) at another size."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, values.shape, strict=True)
    )
    return values[rows[:, None], columns]


def _add_results(sample: Any, results: Mapping[str, np.ndarray]) -> None:
    """Put results into a data sample, as the plain model does."""
    given = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in results.items()}
    if "segments" in given:
        sample.pred_panoptic_seg = PixelData(sem_seg=given["segments"][None])
    elif "boxes" in given:
        found = given["labels"] >= 0
        names = dict(boxes="bboxes", scores="scores", labels="labels", masks="masks")
        kept = {theirs: given[ours][found] for ours, theirs in names.items() if ours in given}
        sample.pred_instances = InstanceData(**kept)
    else:
        sample.pred_sem_seg = PixelData(data=given["labels"][None])


def _main(cfg: Config, values: Mapping[str, Any]) -> str:
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    best = hook.get("save_best")
    if isinstance(best, str) and best != "auto" and (best in values or not values):
        return best
    return next(iter(values), "score")
