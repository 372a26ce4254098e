"""Drawn changes of shipped configs: what breaks an agreement is named, what is harmless not; printed cures cure."""

import argparse
import random
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.optional import shipped_configs
from helpers.tools import read_config
from mmengine.config import Config

from apla_mm.option_values import pasted
from apla_mm.options.agreement.check import find_problems
from apla_mm.options.agreement.problems import Problem, find, keyed, parts
from apla_mm.options.command_line import add_common_arguments

SEEDS = range(40)
#: but for the paper's recipes, of which one has statistics that its weights did not see
OURS = [path for path in shipped_configs() if "_paper_" not in path.stem]

Options = dict[str, Any]
Draw = Callable[[Config, random.Random], Options | None]


def load(config: Path, options: Options) -> Config:
    return read_config(config, *(shlex.split(pasted(options))[1:] if options else []))


def heads_of(cfg: Config) -> list[str]:
    return [key for name in ("decode_head", "auxiliary_head") for key, _ in keyed(cfg, f"model.{name}")]


def counting(cfg: Config) -> list[str]:
    """Keys of the heads that state a number of classes."""
    heads = ("decode_head", "auxiliary_head", "bbox_head", "roi_head")
    return [
        key
        for name in heads
        for key, part in parts(find(cfg, f"model.{name}"), f"model.{name}")
        if "num_classes" in part and "loss" not in key
    ]


def changed(key: str, change: Callable[[Any, random.Random], Any]) -> Draw:
    """Changes what a config has at a key."""

    def apply(cfg: Config, draw: random.Random) -> Options | None:
        value = find(cfg, key)
        return None if value is None else {key: change(value, draw)}

    return apply


def in_a_head(key: str, change: Callable[[Any, random.Random], Any], default: Any = None) -> Draw:
    """Changes a setting of one of several heads."""

    def apply(cfg: Config, draw: random.Random) -> Options | None:
        keys = [head for head in heads_of(cfg) if isinstance(find(cfg, f"{head}.{key}", default), int | list | tuple)]
        if not keys:
            return None
        where = f"{draw.choice(keys)}.{key}"
        return {where: change(find(cfg, where, default), draw)}

    return apply


def in_a_step(kind: str, loader: str, key: str, change: Callable[[Any, random.Random], Any]) -> Draw:
    """Changes a setting of a step of a pipeline."""

    def apply(cfg: Config, draw: random.Random) -> Options | None:
        steps = [
            where
            for where, step in parts(find(cfg, f"{loader}.dataset"), f"{loader}.dataset")
            if step.get("type") == kind and step.get(key) is not None and ".transforms." not in where
        ]
        return {f"{steps[0]}.{key}": change(find(cfg, f"{steps[0]}.{key}"), draw)} if steps else None

    return apply


def only(scope: str, draw: Draw) -> Draw:
    return lambda cfg, seed: draw(cfg, seed) if cfg.default_scope == scope else None


def with_a(part: str, draw: Draw) -> Draw:
    return lambda cfg, seed: draw(cfg, seed) if find(cfg, part) else None


def classes_of_one_head(cfg: Config, draw: random.Random) -> Options | None:
    if not (heads := counting(cfg)):
        return None
    where = f"{draw.choice(heads)}.num_classes"
    return {where: find(cfg, where) + draw.choice([1, 2, 7])}


def output_of_one_head(cfg: Config, draw: random.Random) -> Options | None:
    head = find(cfg, "model.decode_head", {})
    classes = head.get("num_classes")
    if not isinstance(classes, int) or "Mask" in head["type"]:
        return None
    return {"model.decode_head.out_channels": draw.choice([1, classes + 1])}


def weights_of_one_head(cfg: Config, draw: random.Random) -> Options | None:
    keys = [
        f"{key}.class_weight"
        for name in ("decode_head", "auxiliary_head", "bbox_head", "roi_head")
        for key, part in parts(find(cfg, f"model.{name}"), f"model.{name}")
        if key.rpartition(".")[2] in ("loss_decode", "loss_cls") and "use_sigmoid" not in part
    ]
    count = max((find(cfg, f"{key}.num_classes") for key in counting(cfg)), default=0)
    return {draw.choice(keys): [1.0] * (count + draw.choice([2, 5]))} if keys else None


def names_of_one_loader(cfg: Config, draw: random.Random) -> Options | None:
    names = list(find(cfg, "train_dataloader.dataset.metainfo.classes", []))
    where = f"{draw.choice(['val', 'test'])}_dataloader.dataset.metainfo.classes"
    return {where: draw.choice([[*names, "another"], ["another", *names]])} if names else None


def without_workers(cfg: Config, draw: random.Random) -> Options:
    loader = f"{draw.choice(['train', 'val', 'test'])}_dataloader"
    key, value = draw.choice([("persistent_workers", True), ("prefetch_factor", 4), ("timeout", 30)])
    return {f"{loader}.{key}": value, f"{loader}.num_workers": 0}


def score_of_another_metric(cfg: Config, draw: random.Random) -> Options:
    seg = cfg.default_scope == "mmseg"
    wrong = ["mDice", "mFscore", "IoU", "miou", "val/mIoU"] if seg else ["bbox_mAP", "mIoU", "coco/AP", "mAP"]
    return {"default_hooks.checkpoint.save_best": draw.choice(wrong)}


def metric_of_another_score(cfg: Config, draw: random.Random) -> Options:
    if cfg.default_scope == "mmseg":
        return {"val_evaluator.iou_metrics": draw.choice([["mDice"], ["mFscore"], ["mDice", "mFscore"]])}
    return {"val_evaluator.metric": draw.choice(["proposal_fast", "proposal"])}


def other_statistics(cfg: Config, draw: random.Random) -> Options:
    key = f"model.data_preprocessor.{draw.choice(['mean', 'std'])}"
    other = [[127.5] * 3, [0.0] * 3, [0.485, 0.456, 0.406], [123.675, 116.28, 103.53], [60.0, 50.0, 40.0]]
    return {key: draw.choice([one for one in other if abs(one[0] - find(cfg, key)[0]) > 1])}


def end_of_the_schedule(cfg: Config, draw: random.Random) -> Options:
    keys = [f"{key}.end" for key, _ in keyed(cfg, "param_scheduler")]
    last = max(keys, key=lambda key: find(cfg, key, 0))
    return {last: cfg.train_cfg.max_iters + draw.choice([100, 20000])}


def number_of_iterations(cfg: Config, draw: random.Random) -> Options:
    return {"train_cfg.max_iters": draw.choice([500, cfg.train_cfg.max_iters // 2])}


def milestones(cfg: Config, draw: random.Random) -> Options | None:
    keys = [key for key, one in keyed(cfg, "param_scheduler") if one.get("milestones")]
    if not keys:
        return None
    if draw.random() < 0.5:
        return {f"{keys[-1]}.milestones": [cfg.train_cfg.max_iters // 2, cfg.train_cfg.max_iters * 2]}
    return {f"{keys[-1]}.end": find(cfg, f"{keys[-1]}.milestones")[0]}  # before its own steps


def maps(cfg: Config, draw: random.Random) -> Options | None:
    heads = [*heads_of(cfg), "model.neck", "model.rpn_head", "model.roi_head.bbox_head", "model.roi_head.mask_head"]
    keys = [f"{key}.in_channels" for key in heads if find(cfg, f"{key}.in_channels") is not None]
    if not keys:
        return None
    where = draw.choice(keys)
    value = find(cfg, where)
    return {where: value + 8 if isinstance(value, int) else [*value[:-1], value[-1] + 8]}


def strides(cfg: Config, draw: random.Random) -> Options | None:
    keys = [
        f"{key}.{name}"
        for part in ("rpn_head", "roi_head")
        for key, one in parts(find(cfg, f"model.{part}"), f"model.{part}")
        for name in ("strides", "featmap_strides")
        if one.get(name)
    ]
    if not keys:
        return None
    where = draw.choice(keys)
    return {where: [2 * stride for stride in find(cfg, where)]}


def size_of_regions(cfg: Config, draw: random.Random) -> Options | None:
    keys = [f"model.roi_head.{key}" for key in ("bbox_head.roi_feat_size", "bbox_roi_extractor.roi_layer.output_size")]
    return {draw.choice(keys): 9} if all(find(cfg, key) for key in keys) else None


def divisors(cfg: Config, draw: random.Random) -> Options | None:
    keys = [f"model.data_preprocessor.{key}" for key in ("test_cfg.size_divisor", "pad_size_divisor")]
    keys = [key for key in keys if find(cfg, key) is not None]
    vit = cfg.model.backbone.type in ("APLAViT", "VisionTransformer")
    return {draw.choice(keys): draw.choice([10, 24, 1000])} if keys and vit else None


def labels_from_another_on(cfg: Config, draw: random.Random) -> Options:
    dataset = cfg.val_dataloader.dataset
    before = dataset.get("reduce_zero_label", dataset.type == "ADE20KDataset")
    return {"val_dataloader.dataset.reduce_zero_label": not before}


def ignored_by_one_metric(cfg: Config, draw: random.Random) -> Options:
    return {f"{draw.choice(['val', 'test'])}_evaluator.ignore_index": 0}


def batches_of_evaluation(cfg: Config, draw: random.Random) -> Options:
    return {f"{draw.choice(['val', 'test'])}_dataloader.batch_size": draw.choice([2, 4])}


def smaller(value: Any, draw: random.Random) -> list[int]:
    return [side // 2 // 224 * 224 for side in value]  # patches of 14 and of 16, and strides of 32


def larger(value: Any, draw: random.Random) -> list[int]:
    return [side + side // 4 // 32 * 32 for side in value]


NO_MASKS = in_a_step("LoadAnnotations", "train_dataloader", "with_mask", lambda value, draw: False)

#: what breaks an agreement: options, whose first key a problem must name
BREAKING: dict[str, Draw] = {
    "score": score_of_another_metric,
    "metric": metric_of_another_score,
    "statistics": other_statistics,
    "divisor": divisors,
    "classes of one head": classes_of_one_head,
    "out_channels": only("mmseg", output_of_one_head),
    "class_weight": weights_of_one_head,
    "classes of one loader": names_of_one_loader,
    "in_channels": maps,
    "in_index": in_a_head("in_index", lambda value, draw: 9 if isinstance(value, int) else [*value[:-1], 9]),
    "ignore_index of a head": in_a_head("ignore_index", lambda value, draw: draw.choice([0, 254]), 255),
    "ignore_index of a metric": only("mmseg", ignored_by_one_metric),
    "seg_pad_val": changed("model.data_preprocessor.seg_pad_val", lambda value, draw: draw.choice([0, 254])),
    "workers": without_workers,
    "end": end_of_the_schedule,
    "max_iters": number_of_iterations,
    "milestones": milestones,
    "by_epoch": lambda cfg, draw: {"param_scheduler.1.by_epoch": True} if len(cfg.param_scheduler) > 1 else None,
    "crop of training": in_a_step("RandomCrop", "train_dataloader", "crop_size", smaller),
    "larger crop of training": in_a_step("RandomCrop", "train_dataloader", "crop_size", larger),
    "size of batches": changed("model.data_preprocessor.size", smaller),
    "windows": changed("model.test_cfg.crop_size", smaller),
    "strides": strides,
    "size of regions": size_of_regions,
    "masks": with_a("model.roi_head.mask_head", NO_MASKS),
    "reduce_zero_label": only("mmseg", labels_from_another_on),
    "batches of validation": only("mmseg", batches_of_evaluation),
    "size of the test alone": only("mmseg", in_a_step("Resize", "test_dataloader", "scale", larger)),
    "size of the validation alone": in_a_step("Resize", "val_dataloader", "scale", smaller),
    "sampler": lambda cfg, draw: {"val_dataloader.sampler.type": "InfiniteSampler"},
    "interval": lambda cfg, draw: {"train_cfg.val_interval": 10 * cfg.train_cfg.max_iters},
}


def shorter(cfg: Config, draw: random.Random) -> Options:
    """By hand: all ends moved."""
    part = draw.choice([2, 5])
    options: Options = {"train_cfg.max_iters": cfg.train_cfg.max_iters // part}
    options["train_cfg.val_interval"] = cfg.train_cfg.val_interval // part
    options["default_hooks.checkpoint.interval"] = cfg.default_hooks.checkpoint.interval // part
    for key, one in keyed(cfg, "param_scheduler"):
        options[f"{key}.begin"], options[f"{key}.end"] = one.begin // part, one.end // part
        if one.get("milestones"):
            options[f"{key}.milestones"] = [step // part for step in one.milestones]
    return options


def tuples_for_lists(cfg: Config, draw: random.Random) -> Options:
    keys = ["model.data_preprocessor.mean", "model.data_preprocessor.std", "model.backbone.out_indices"]
    keys = [key for key in keys if find(cfg, key) is not None]
    return {key: (tuple if isinstance(find(cfg, key), list) else list)(find(cfg, key)) for key in keys}


def backbone_by_its_scope(cfg: Config, draw: random.Random) -> Options | None:
    name = cfg.model.backbone.type
    return {"model.backbone.type": f"{cfg.default_scope}.{name}"} if name != "APLAViT" else None


#: what breaks nothing
HARMLESS: dict[str, Draw] = {
    "tuples": tuples_for_lists,
    "rounded": changed("model.data_preprocessor.mean", lambda value, draw: [round(x, 1) for x in value]),
    "r": changed("custom_hooks.1.r", lambda value, draw: draw.choice([8, 0.5, "full"])),
    "rate": lambda cfg, draw: {"optim_wrapper.optimizer.lr": draw.choice([1e-5, 1e-2])},
    "decay": lambda cfg, draw: {"optim_wrapper.optimizer.weight_decay": 0.1},
    "batch": lambda cfg, draw: {"train_dataloader.batch_size": draw.choice([2, 3, 32])},
    "no workers": lambda cfg, draw: {f"{draw.choice(['train', 'val', 'test'])}_dataloader.num_workers": 0},
    "workers": lambda cfg, draw: {"train_dataloader.num_workers": 1, "train_dataloader.prefetch_factor": 4},
    "shorter": shorter,
    "max_iters": lambda cfg, draw: {"max_iters": draw.choice([1000, 20000, 320000])},
    "classes": lambda cfg, draw: {"classes": ["a", "b, c", "d (e)"]},
    "data_root": lambda cfg, draw: {"data_root": "/d/my data (1)"},
    "work_dir": lambda cfg, draw: {"work_dir": "another"},
    "auto": lambda cfg, draw: {"default_hooks.checkpoint.save_best": "auto"},
    "another score": lambda cfg, draw: {
        "default_hooks.checkpoint.save_best": "mAcc" if cfg.default_scope == "mmseg" else "coco/bbox_mAP_50"
    },
    "more metrics": changed("val_evaluator.iou_metrics", lambda value, draw: ["mIoU", "mDice"]),
    "fewer validations": lambda cfg, draw: {"train_cfg.val_interval": cfg.train_cfg.max_iters},
    "scope": backbone_by_its_scope,
    "default as written": lambda cfg, draw: {f"{head}.ignore_index": 255 for head in heads_of(cfg)},
    "no weights": lambda cfg, draw: {
        f"{head}.loss_decode.class_weight": None for head in heads_of(cfg) if find(cfg, f"{head}.loss_decode")
    },
}

#: what may agree again once several of them are changed
TOGETHER = [
    {"score", "metric"},
    {"crop of training", "larger crop of training", "size of batches", "windows"},
    {"ignore_index of a head", "ignore_index of a metric", "seg_pad_val"},
    {"end", "max_iters", "milestones", "interval"},
    {"classes of one head", "out_channels", "class_weight", "classes of one loader"},
    {"size of the test alone", "size of the validation alone"},
    {"shorter", "max_iters", "fewer validations"},
    {"strides", "in_channels", "size of regions"},
]


def drawn(table: Mapping[str, Draw], cfg: Config, draw: random.Random, count: int) -> dict[str, Options]:
    """Some changes of a table that touch different settings."""
    found: dict[str, Options] = {}
    for name in draw.sample(sorted(table), len(table)):
        together = any(name in group and found.keys() & group for group in TOGETHER)
        options = None if together or len(found) == count else table[name](cfg, draw)
        touched = {key.rpartition(".")[0] for options in found.values() for key in options}
        if options and not {key.rpartition(".")[0] for key in options} & touched:
            found[name] = options
    return found


def cured(problems: list[Problem]) -> Options:
    """The options that problems print, as a shell and the tools would read them."""
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    found: Options = {}
    for problem in problems:
        for printed in re.findall(r"--cfg-options .*?(?=; |$)", str(problem)):
            found.update(parser.parse_args(shlex.split(printed)).cfg_options)
    return found


def check(config: Path, changes: dict[str, Options]) -> None:
    """Each change is named, and what is printed to cure it does, also where a cure has another problem behind it."""
    options = {key: value for one in changes.values() for key, value in one.items()}
    problems = find_problems(load(config, options))
    for change in changes.values():
        key = next(iter(change))
        names = key, f"{key.rpartition('.')[0]}: "
        assert any(name in str(problem) for name in names for problem in problems), (config.stem, change, problems)
    for _ in range(4):
        cure = cured(problems)
        if not cure:
            break
        options.update(cure)
        before, problems = problems, find_problems(load(config, options))
        still = {one.where for one in before if one.cure} & {one.where for one in problems}
        assert not still, (config.stem, changes, cure, problems)
    assert not any(problem.cure for problem in problems), (config.stem, changes, problems)


@pytest.mark.parametrize("seed", SEEDS)
def test_harmless_changes_are_not_refused(seed: int) -> None:
    draw = random.Random(seed)
    config = draw.choice(OURS)
    changes = drawn(HARMLESS, load(config, {}), draw, draw.randint(1, 3))
    options = {key: value for one in changes.values() for key, value in one.items()}
    assert [str(problem) for problem in find_problems(load(config, options))] == [], (config.stem, changes)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_breaks_an_agreement_is_named_and_cured(seed: int) -> None:
    draw = random.Random(1000 + seed)
    config = draw.choice(OURS)
    check(config, drawn(BREAKING, load(config, {}), draw, draw.randint(1, 3)))


@pytest.mark.parametrize("name", BREAKING)
def test_each_of_them_is_named_in_several_configs(name: str) -> None:
    draw = random.Random(name)
    tried = 0
    for config in draw.sample(OURS, len(OURS)):
        changes = drawn({name: BREAKING[name]}, load(config, {}), draw, 1)
        if changes and tried < 3:
            check(config, changes)
            tried += 1
    assert tried
