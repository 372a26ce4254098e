"""Configs of trials: who trains on what, at which rates, and is scored by what."""

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner

from apla_mm.compare.scores.bootstrap import accuracy
from apla_mm.compare.trials.splits import Split, draw_fraction, hold_out
from apla_mm.compare.trials.trial import HITS, Item, for_final, for_search, items_of, set_rates
from apla_mm.tuning.optimizers.parameter_groups import groups_by_lr


def split_of(items: list[Item]) -> Split:
    names = [item.name for item in items]
    return hold_out(names, draw_fraction(names, 1.0, 0), 0.34, 0)


def names_in(cfg: Config, loader: str) -> set[str]:
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build({**cfg[loader].dataset, "pipeline": []})
    return {dataset.get_data_info(i)["img_path"] for i in range(len(dataset))}


@pytest.mark.parametrize("kind", ["segmentation_config", "detection_config", "classification_config"])
def test_search_looks_at_training_items_alone(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    cfg = request.getfixturevalue(kind)
    test = names_in(cfg, "test_dataloader")
    items = items_of(cfg, "train_dataloader")
    split = split_of(items)
    for_search(cfg, items, split, tmp_path)
    trained, held_out = names_in(cfg, "train_dataloader"), names_in(cfg, "val_dataloader")
    assert trained == {items[i].name for i in split.train} and held_out == {items[i].name for i in split.held_out}
    assert trained and held_out and not trained & held_out and not (trained | held_out) & test
    assert cfg.train_cfg.val_interval == cfg.train_cfg.max_iters
    if kind == "detection_config":
        evaluator = cfg.val_evaluator if isinstance(cfg.val_evaluator, dict) else cfg.val_evaluator[0]
        written = json.loads(Path(evaluator["ann_file"]).read_text())
        kept = {image["id"] for image in written["images"]}
        assert kept == {items[i].id for i in split.held_out}
        assert {one["image_id"] for one in written["annotations"]} <= kept and written["categories"]


@pytest.mark.parametrize("kind", ["segmentation_config", "detection_config", "classification_config"])
def test_final_run_validates_on_nothing(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    cfg = request.getfixturevalue(kind)
    items = items_of(cfg, "train_dataloader")
    for_final(cfg, items, [0], tmp_path)
    assert names_in(cfg, "train_dataloader") == {items[0].name}
    assert cfg.val_dataloader is None and cfg.val_cfg is None and cfg.val_evaluator is None
    cfg.train_cfg.max_iters = 1
    Runner.from_cfg(cfg).train()


@pytest.mark.parametrize("kind", ["segmentation_config", "detection_config"])
@pytest.mark.parametrize("indices", [2, -2, [2, 0]])
def test_parts_are_drawn_of_what_the_config_trains_on(
    kind: str, indices: int | list[int], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    cfg = request.getfixturevalue(kind)
    whole = [item.name for item in items_of(cfg, "train_dataloader")]
    assert len(whole) > 2
    cfg.train_dataloader.dataset.indices = indices
    own = [whole[i] for i in indices] if isinstance(indices, list) else whole[:2] if indices > 0 else whole[-2:]
    items = items_of(cfg, "train_dataloader")
    assert [item.name for item in items] == own
    final, search = Config(cfg.to_dict()), Config(cfg.to_dict())
    for_final(final, items, [1], tmp_path)
    assert names_in(final, "train_dataloader") == {own[1]}
    for_search(search, items, Split(train=(1,), held_out=(0,)), tmp_path)
    assert names_in(search, "train_dataloader") == {own[1]} and names_in(search, "val_dataloader") == {own[0]}


def test_a_part_may_lack_a_class_and_the_whole_may_not(segmentation_config: Config, tmp_path: Path) -> None:
    cfg = segmentation_config
    cfg.custom_hooks = [dict(type="DataCheckHook")]
    items = items_of(cfg, "train_dataloader")
    whole, part, search = (Config(cfg.to_dict()) for _ in range(3))
    for_final(whole, items, range(len(items)), tmp_path)
    for_final(part, items, [0], tmp_path)
    for_search(search, items, split_of(items), tmp_path)
    allowed = [one.custom_hooks[0].get("missing_classes", False) for one in (whole, part, search)]
    assert allowed == [False, True, True]


def test_a_classifiers_test_keeps_which_images_are_right(classification_config: Config, tmp_path: Path) -> None:
    cfg = classification_config
    for_final(cfg, items_of(cfg, "train_dataloader"), [0, 4, 8], tmp_path)
    score = Runner.from_cfg(cfg).test()["accuracy/top1"]
    images, accuracy_of = accuracy(tmp_path / HITS)
    assert set(images) == names_in(cfg, "test_dataloader") and len(images) == 6
    assert accuracy_of(np.ones((1, 6)))[0] == pytest.approx(score)


def test_rates_are_those_of_the_backbone_and_of_all_else(segmentation_config: Config) -> None:
    cfg = segmentation_config
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys=dict(head=dict(lr_mult=10.0), norm=dict(decay_mult=0.0)))
    set_rates(cfg, 1e-5, 1e-3)
    cfg.custom_hooks = []
    cfg.model.backbone.apla = None
    runner = Runner.from_cfg(cfg)
    wrapper = runner.build_optim_wrapper(cfg.optim_wrapper)
    lr = {name: group.lr for group in groups_by_lr(wrapper, runner.model) for name in group.parameters}
    assert {rate for name, rate in lr.items() if name.startswith("backbone")} == {1e-5}
    assert {rate for name, rate in lr.items() if not name.startswith("backbone")} == {1e-3}
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.norm == dict(decay_mult=0.0)


def test_a_constructor_with_rules_of_its_own_is_refused(segmentation_config: Config) -> None:
    segmentation_config.optim_wrapper.constructor = "LearningRateDecayOptimizerConstructor"
    with pytest.raises(ValueError, match="sets learning rates by rules of its own"):
        set_rates(segmentation_config, 1e-5, 1e-3)


def test_a_training_set_of_several_is_refused(segmentation_config: Config) -> None:
    one = segmentation_config.train_dataloader.dataset
    segmentation_config.train_dataloader.dataset = dict(type="ConcatDataset", datasets=[one, one])
    with pytest.raises(ValueError, match="train_dataloader has 2 data sets"):
        items_of(segmentation_config, "train_dataloader")
