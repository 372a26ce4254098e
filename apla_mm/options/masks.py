"""Whether a detector learns masks, in all the places of a config that state it."""

from typing import Any

from mmengine.config import Config

from ..data.folders import LOADERS, evaluators_of
from .agreement.problems import parts

_PARTS = ("mask_head", "mask_roi_extractor", "mask_iou_head")


def set_masks(cfg: Config, with_mask: Any) -> None:
    """Let a detector learn, predict and be scored by boxes alone, in place.

    Its head of masks goes, and with it what pipelines read of masks, and their scores.

    Args:
        cfg: The config of a detector whose RoI head has a mask head, or of one without masks.
        with_mask: False; True leaves a detector with masks as it is.

    Raises:
        ValueError: The config is of no such detector, or has no masks and should have.
    """
    if not isinstance(with_mask, bool):
        raise ValueError(f"with_mask={with_mask!r} must be True or False")
    if cfg.get("default_scope") != "mmdet":
        raise ValueError(f"with_mask={with_mask} is for detectors, and this config's default_scope is no mmdet")
    roi_head = cfg.model.get("roi_head") or {}
    if with_mask:
        if not roi_head.get("mask_head"):
            raise ValueError("with_mask=True: the config has no model.roi_head.mask_head; take one that has")
        return
    if any(cfg.model.get(key) for key in ("mask_head", "panoptic_head")) or roi_head.get("semantic_head"):
        raise ValueError(
            f"with_mask=False: {cfg.model.type} finds objects by their masks; take a config that finds boxes, such as "
            "configs/det/apla_vitb_custom.py"
        )
    for key in _PARTS:
        if roi_head.get(key):
            roi_head[key] = None
    if "pad_mask" in cfg.model.get("data_preprocessor", {}):
        cfg.model.data_preprocessor.pad_mask = False
    read = [*((cfg.get(loader) or {}).get("dataset") for loader in LOADERS), cfg.get("tta_pipeline")]
    for _, part in parts(read, ""):
        for key in ("with_mask", "by_mask"):
            if part.get(key):
                part[key] = False
    for loader in LOADERS[1:]:
        for evaluator in evaluators_of(cfg, loader):
            metric = evaluator.get("metric")
            if isinstance(metric, list | tuple):
                boxes = [one for one in metric if one != "segm"] or ["bbox"]
                evaluator["metric"] = boxes[0] if len(boxes) == 1 else boxes
            elif metric == "segm":
                evaluator["metric"] = "bbox"
    checkpoint = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    if isinstance(checkpoint.get("save_best"), str):
        checkpoint["save_best"] = checkpoint["save_best"].replace("segm_", "bbox_")
