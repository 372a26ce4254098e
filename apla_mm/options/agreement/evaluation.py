"""Scores: what validation gives, and what else reads them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.config import Config

from ...data.folders import evaluators_of
from .model import predicts_masks
from .problems import Problem, as_list, find, keyed, kind, parts

_IOU = {"mIoU": ("mIoU", "mAcc"), "mDice": ("mDice", "mAcc"), "mFscore": ("mFscore", "mPrecision", "mRecall")}
_PREFIXES = {"CocoMetric": "coco", "CocoPanopticMetric": "coco_panoptic", "Accuracy": "accuracy"}
_PANOPTIC = tuple(f"{quality}{of}" for of in ("", "_th", "_st") for quality in ("PQ", "SQ", "RQ"))
_COCO = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
_PROPOSALS = ("AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000")


def rules_of(used: Sequence[str]) -> list[Callable[[Config], Iterator[Problem]]]:
    """The rules for the evaluators of these data loaders."""
    names = [loader for loader in used if loader != "train_dataloader"]
    rules = (metrics_are_known, masks_are_predicted, best_of_more_classes, labels)
    return [partial(rule, loader) for loader in names for rule in rules]


def scores_of(cfg: Config) -> list[str] | None:
    """The names of the scores that validation gives, the most telling first; None if a metric is not known here."""
    names: list[str] = []
    for evaluator in evaluators_of(cfg, "val_dataloader"):
        given = _SCORES.get(kind(evaluator))
        if given is None:
            return None
        if not evaluator.get("format_only"):
            prefix = evaluator.get("prefix") or _PREFIXES.get(kind(evaluator))
            names += [f"{prefix}/{name}" if prefix else name for name in given(evaluator)]
    return names


def _accuracies(evaluator: Mapping[str, Any]) -> list[str]:
    thresholds = as_list(evaluator.get("thrs", 0.0)) or [0.0]
    suffixes = [""] if len(thresholds) == 1 else ["_no-thr" if t is None else f"_thr-{t:.2f}" for t in thresholds]
    return [f"top{k}{suffix}" for k in as_list(evaluator.get("topk", (1,))) for suffix in suffixes]


def _iou_scores(evaluator: Mapping[str, Any]) -> list[str]:
    metrics = as_list(evaluator.get("iou_metrics", ["mIoU"]))
    return list(dict.fromkeys([*(name for metric in metrics for name in _IOU.get(metric, ())), "aAcc"]))


def _coco_scores(evaluator: Mapping[str, Any]) -> list[str]:
    names: list[str] = []
    for metric in as_list(evaluator.get("metric", "bbox")):
        if metric == "proposal_fast":
            names += [f"AR@{count}" for count in evaluator.get("proposal_nums", (100, 300, 1000))]
        elif metric == "proposal":
            names += evaluator.get("metric_items") or _PROPOSALS
        else:
            names += [f"{metric}_{item}" for item in evaluator.get("metric_items") or _COCO]
    return names


def scores_are_given(cfg: Config) -> Iterator[Problem]:
    """The score that chooses the best checkpoint, stops training or lowers the rate is one that validation gives."""
    readers = [("default_hooks.checkpoint.save_best", find(cfg, "default_hooks.checkpoint.save_best"))]
    readers += [(f"{key}.save_best", hook.get("save_best")) for key, hook in _hooks(cfg, "CheckpointHook")]
    readers += [(f"{key}.monitor", hook.get("monitor")) for key, hook in _hooks(cfg, "EarlyStoppingHook")]
    for key, scheduler in keyed(cfg, "param_scheduler"):
        if "ReduceOnPlateau" in kind(scheduler):
            readers.append((f"{key}.monitor", scheduler.get("monitor", "loss")))
    has_val = bool(find(cfg, "val_dataloader")) and bool(find(cfg, "val_evaluator"))
    scores = scores_of(cfg)
    for key, reader in readers:
        wanted = [name for name in as_list(reader) if name != "auto" and isinstance(name, str)]
        if reader and not has_val:
            what = f"{reader!r} is a score, and there is no validation (val_dataloader, val_evaluator)"
            yield Problem(key, what, {key: None} if "save_best" in key else {})
            continue
        missing = [name for name in wanted if scores is not None and not _is_given(name, scores, cfg)]
        if not missing or scores is None:
            continue
        if not scores:
            what = f"'{missing[0]}', and validation gives no score: its evaluator only formats"
            yield Problem(key, what, {key: None})
            continue
        best = next((name for name in scores if name.endswith(f"/{missing[0]}")), scores[0])
        what = f"'{', '.join(missing)}' is none of the scores of val_evaluator: {', '.join(scores)}"
        cure: dict[str, Any] = {key: best}
        if "save_best" in key and best.startswith("mFscore"):
            cure[key.replace("save_best", "rule")] = "greater"
        metric = missing[0] if missing[0] in _IOU else ""
        evaluators = evaluators_of(cfg, "val_dataloader")
        more = metric and len(evaluators) == 1 and isinstance(cfg.get("val_evaluator"), Mapping)
        both = ",".join([*as_list(evaluators[0].get("iou_metrics", [])), metric]) if more else ""
        yield Problem(key, what, cure, f"or val_evaluator.iou_metrics={both}" if more else "")


def _is_given(name: str, scores: Sequence[str], cfg: Config) -> bool:
    classwise = any(evaluator.get("classwise") for evaluator in evaluators_of(cfg, "val_dataloader"))
    return name in scores or (classwise and name.endswith("_precision"))


_SCORES: Mapping[str, Callable[[Mapping[str, Any]], Sequence[str]]] = {
    "IoUMetric": _iou_scores,
    "CocoMetric": _coco_scores,
    "CocoPanopticMetric": lambda evaluator: _PANOPTIC,
    "Accuracy": _accuracies,
}


def _hooks(cfg: Config, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    named = [(f"default_hooks.{key}", hook) for key, hook in (cfg.get("default_hooks") or {}).items()]
    for key, hook in [*named, *keyed(cfg, "custom_hooks")]:
        if isinstance(hook, Mapping) and kind(hook) == name and key != "default_hooks.checkpoint":
            yield key, hook


def metrics_are_known(loader: str, cfg: Config) -> Iterator[Problem]:
    """Mmseg looks at the names of metrics when the first scores are made."""
    name = loader.replace("dataloader", "evaluator")
    for key, evaluator in keyed(cfg, name):
        if kind(evaluator) != "IoUMetric":
            continue
        unknown = [metric for metric in as_list(evaluator.get("iou_metrics")) if metric not in _IOU]
        if unknown:
            what = f"{', '.join(map(repr, unknown))} is none of {', '.join(_IOU)}"
            known = [metric for metric in as_list(evaluator.get("iou_metrics")) if metric in _IOU]
            yield Problem(f"{key}.iou_metrics", what, {f"{key}.iou_metrics": known or ["mIoU"]})


def masks_are_predicted(loader: str, cfg: Config) -> Iterator[Problem]:
    """A score of masks needs a model that predicts them."""
    if cfg.get("default_scope") != "mmdet" or predicts_masks(find(cfg, "model", {})):
        return
    for key, evaluator in keyed(cfg, loader.replace("dataloader", "evaluator")):
        metrics = as_list(evaluator.get("metric")) if kind(evaluator) == "CocoMetric" else []
        if "segm" in metrics:
            what = "'segm' scores masks, and no part of the model predicts any"
            rest = [metric for metric in metrics if metric != "segm"]
            yield Problem(f"{key}.metric", what, {f"{key}.metric": rest[0] if len(rest) == 1 else rest or "bbox"})


def best_of_more_classes(loader: str, cfg: Config) -> Iterator[Problem]:
    """Mmpretrain finds at its first scores that there are fewer classes than the best so many that it looks at."""
    classes = find(cfg, "model.head.num_classes")
    for key, evaluator in keyed(cfg, loader.replace("dataloader", "evaluator")):
        best = as_list(evaluator.get("topk", (1,))) if kind(evaluator) == "Accuracy" else []
        if isinstance(classes, int) and any(isinstance(k, int) and k > classes for k in best):
            what = f"{tuple(best)}, and there are {classes} classes"
            yield Problem(f"{key}.topk", what, {f"{key}.topk": tuple(k for k in best if k <= classes) or (1,)})


def labels(loader: str, cfg: Config) -> Iterator[Problem]:
    """What heads ignore, what batches are padded with and what metrics ignore is one label."""
    if cfg.get("default_scope") == "mmdet":
        return
    heads = [(k, h) for n in ("decode_head", "auxiliary_head") for k, h in keyed(cfg, f"model.{n}") if kind(h)]
    ignored = {key: head.get("ignore_index", 255) for key, head in heads}
    if not ignored:
        return
    head, label = next(iter(ignored.items()))
    for key, other in ignored.items():
        if other != label:
            what = f"{other}, and {head}.ignore_index is {label}"
            yield Problem(f"{key}.ignore_index", what, {f"{key}.ignore_index": label}, error=False)
    for key, evaluator in keyed(cfg, loader.replace("dataloader", "evaluator")):
        if kind(evaluator) == "IoUMetric" and evaluator.get("ignore_index", 255) != label:
            what = f"{evaluator.get('ignore_index', 255)}, and {head}.ignore_index is {label}"
            yield Problem(f"{key}.ignore_index", what, {f"{key}.ignore_index": label}, error=False)


def padding_is_ignored(cfg: Config) -> Iterator[Problem]:
    """Label maps are padded with a label that is ignored, else the padding is learned."""
    label = find(cfg, "model.decode_head.ignore_index", 255)
    classes = find(cfg, "model.decode_head.num_classes")
    where, padded = "model.data_preprocessor.seg_pad_val", find(cfg, "model.data_preprocessor.seg_pad_val", label)
    if find(cfg, "model.decode_head") and padded != label:
        learned = isinstance(classes, int) and 0 <= padded < classes
        what = f"{padded}, and model.decode_head.ignore_index is {label}: the padding of label maps would be "
        what += f"learned as class {padded}" if learned else "no class"
        yield Problem(where, what, {where: label}, error=not learned)
    for key, step in parts(find(cfg, "train_dataloader.dataset", {}), "train_dataloader.dataset"):
        seg = find(step, "pad_val.seg") if kind(step) == "Pad" else None
        if seg is not None and find(cfg, "model.decode_head") and seg != label:
            what = f"{seg}, and model.decode_head.ignore_index is {label}: the padding would be learned"
            yield Problem(f"{key}.pad_val.seg", what, {f"{key}.pad_val.seg": label}, error=False)


TRAINING_RULES = [scores_are_given, padding_is_ignored]
