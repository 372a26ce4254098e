import argparse
from pathlib import Path

import pytest
from helpers.tools import read_config
from mmdet.datasets import CocoDataset
from mmengine.config import Config

from apla_mm.data.folders import check_folders
from apla_mm.data.reading import DataError
from apla_mm.options.agreement.check import find_problems
from apla_mm.options.command_line import add_common_arguments, check_work_dir

DETECTION = Path(__file__).parents[2] / "configs/det/apla_vitb_custom.py"
TRAIN, VAL = "annotations/instances_train.json", "annotations/instances_val.json"


def load(*options: str, config: Path = DETECTION) -> Config:
    return read_config(config, *options)


def truths(cfg: Config) -> tuple[str, str]:
    return cfg.val_evaluator.ann_file, cfg.test_evaluator.ann_file


@pytest.mark.parametrize(
    ("options", "val", "test"),
    [
        ((), f"data/my_dataset/{VAL}", f"data/my_dataset/{VAL}"),
        (("data_root=/a",), f"/a/{VAL}", f"/a/{VAL}"),
        (("data_root=/a", "test_dataloader.dataset.data_root=/b"), f"/a/{VAL}", f"/b/{VAL}"),
        (("data_root=/a", "test_dataloader.dataset.ann_file=x.json"), f"/a/{VAL}", "/a/x.json"),
        (("val_dataloader.dataset.ann_file=/c/x.json", "data_root=/a"), "/c/x.json", f"/a/{VAL}"),
        (("data_root=/a", "val_evaluator.ann_file=/d/y.json"), "/d/y.json", f"/a/{VAL}"),
    ],
)
def test_evaluators_compare_with_the_file_of_the_data_set_they_score(
    options: tuple[str, ...], val: str, test: str
) -> None:
    assert truths(load(*options)) == (val, test)


def test_each_of_several_evaluators_follows_unless_it_takes_the_truth_from_the_data(tmp_path: Path) -> None:
    config = tmp_path / "several.py"
    config.write_text(
        f"_base_ = {str(DETECTION)!r}\n"
        "val_evaluator = [dict(type='CocoMetric', metric='bbox', ann_file='old.json'), dict(type='CocoMetric'),\n"
        "                 dict(type='CocoMetric', metric='segm', ann_file='old.json')]\n"
    )
    first, second, third = load("data_root=/a", config=config).val_evaluator
    assert (first.ann_file, second.get("ann_file"), third.ann_file) == (f"/a/{VAL}", None, f"/a/{VAL}")
    first, _, third = load("data_root=/a", "val_evaluator.2.ann_file=y.json", config=config).val_evaluator
    assert (first.ann_file, third.ann_file) == (f"/a/{VAL}", "y.json")


def test_evaluator_of_several_data_sets_keeps_its_file(tmp_path: Path) -> None:
    config = tmp_path / "several.py"
    config.write_text(
        f"_base_ = {str(DETECTION)!r}\n"
        "one = _base_.val_dataloader.dataset\n"
        "val_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=[one, one]))\n"
    )
    assert truths(load("data_root=/a", config=config)) == (f"data/my_dataset/{VAL}", f"/a/{VAL}")


def test_segmentation_config_has_no_such_file() -> None:
    cfg = load("data_root=/a", config=DETECTION.parents[1] / "seg/apla_vitb_custom.py")
    assert "ann_file" not in cfg.val_evaluator


@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        ("classes=traffic light,stop sign", "classes", ["traffic light", "stop sign"]),
        ("classes=traffic light", "classes", "traffic light"),
        ("classes='traffic light, dog'", "classes", ["traffic light", "dog"]),
        ("a.b=[(1, 2), (3, 4)]", "a.b", [(1, 2), (3, 4)]),
        ("a.b=(traffic light, 1, 2.5)", "a.b", ("traffic light", 1, 2.5)),
        ("a.b= 3", "a.b", 3),
        ("a.b=True", "a.b", True),
    ],
)
def test_spaces_inside_names_are_kept_and_others_are_not(option: str, key: str, value: object) -> None:
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    assert parser.parse_args(["--cfg-options", option]).cfg_options == {key: value}
    assert parser.parse_args(["--cfg-options", "x=1", option]).cfg_options == {"x": 1, key: value}


def test_options_given_in_two_goes_are_all_kept() -> None:
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    both = parser.parse_args(["--cfg-options", "classes=stop sign", "--cfg-options", "x=1"]).cfg_options
    assert both == {"classes": "stop sign", "x": 1}


def test_classes_of_coco_can_be_given_as_an_option() -> None:
    names = CocoDataset.METAINFO["classes"]
    cfg = load(f"classes={','.join(names)}")
    assert tuple(cfg.train_dataloader.dataset.metainfo.classes) == names
    assert cfg.model.roi_head.bbox_head.num_classes == 80


def test_missing_parts_of_a_coco_data_set_are_named(coco_root: Path) -> None:
    cfg = load(f"data_root={coco_root}")
    check_folders(cfg)
    for missing, expected in (
        (TRAIN, rf"train_dataloader\.dataset: ann_file '{coco_root}/{TRAIN}' does not exist"),
        ("images", rf"train_dataloader\.dataset: data_prefix\.img '{coco_root}/images/' does not exist"),
    ):
        (coco_root / missing).rename(coco_root / "moved")
        with pytest.raises(DataError, match=expected):
            check_folders(cfg)
        (coco_root / "moved").rename(coco_root / missing)


def test_missing_file_of_an_evaluator_is_named(coco_root: Path) -> None:
    cfg = load(f"data_root={coco_root}", "test_evaluator.ann_file=no.json")
    check_folders(cfg, ("train_dataloader", "val_dataloader"))
    with pytest.raises(DataError) as error:
        check_folders(cfg)
    assert str(error.value) == (
        f"test_evaluator: ann_file 'no.json' does not exist (looked in {Path.cwd()}); set test_evaluator.ann_file to "
        "the annotation file of the data set that is evaluated"
    )


def test_what_is_kept_elsewhere_is_not_looked_for() -> None:
    check_folders(load("data_root=s3://bucket/coco"))


SEGMENTATION = DETECTION.parents[1] / "seg/apla_vitb_custom.py"


def pipelines_of(cfg: Config, kind: str) -> tuple[list, list]:
    return cfg[f"{kind}_pipeline"], cfg[f"{kind}_dataloader"].dataset.pipeline


@pytest.mark.parametrize(
    "options",
    [
        ["crop_size=64"],
        ["crop_size=96,64"],
        ["test_dataloader.dataset.pipeline.1.scale=(256,64)"],
        ["test_pipeline.1.scale=(256,64)"],
        ["crop_size=64", "test_pipeline.1.keep_ratio=False", "train_pipeline.3.cat_max_ratio=0.5"],
        ["train_dataloader.dataset.pipeline.4.prob=0.0"],
    ],
)
@pytest.mark.parametrize("config", [SEGMENTATION, DETECTION])
def test_pipelines_by_name_are_those_of_the_loaders(config: Path, options: list[str]) -> None:
    if config == DETECTION:
        options = [option for option in options if not option.startswith("crop_size=96") and "train" not in option]
    cfg = load(*options, config=config)
    for kind in ("train", "test"):
        named, of_loader = pipelines_of(cfg, kind)
        assert named == of_loader
    plain = load(config=config)
    named = [option for option in options if "test" in option or "crop" in option]
    assert (pipelines_of(cfg, "test")[0] != pipelines_of(plain, "test")[0]) == bool(named)


def test_pipeline_that_no_loader_uses_is_left_alone(tmp_path: Path) -> None:
    config = tmp_path / "own.py"
    config.write_text(f"_base_ = {str(SEGMENTATION)!r}\ntest_pipeline = [dict(type='Own')]\n")
    assert load("crop_size=64", config=config).test_pipeline == [dict(type="Own")]


def test_boxes_alone_follow_one_option() -> None:
    cfg = load("with_mask=False", "val_evaluator.classwise=True")
    assert cfg.model.roi_head.mask_head is None
    assert [cfg[f"{split}_evaluator"].metric for split in ("val", "test")] == ["bbox", "bbox"]
    assert "with_mask=True" not in cfg.pretty_text.replace(" ", "")
    assert find_problems(cfg) == []


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_no_workers_means_no_settings_of_workers(split: str) -> None:
    loader = load(f"{split}_dataloader.num_workers=0")[f"{split}_dataloader"]
    assert "persistent_workers" not in loader
    assert load(f"{split}_dataloader.num_workers=2")[f"{split}_dataloader"].persistent_workers is True


def test_none_takes_any_hook_out() -> None:
    assert "lean_heads" in load().default_hooks
    hooks = load("default_hooks.lean_heads=None", "default_hooks.checkpoint=None").default_hooks
    assert "lean_heads" not in hooks
    assert hooks.checkpoint is None  # mmengine's own, which it takes out itself


def test_a_work_dir_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_work_dir(str(tmp_path / "new/folder"))
    file = tmp_path / "file"
    file.touch()
    for path in (file, file / "x"):
        with pytest.raises(ValueError, match=f"^work_dir '{path}': '{file}' is a file: name another folder"):
            check_work_dir(str(path))
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match=f"'{tmp_path}' is not writable: name another folder by --work-dir"):
        check_work_dir(str(tmp_path / "new/folder"))
