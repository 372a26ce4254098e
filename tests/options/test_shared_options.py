import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.tools import read_config
from mmengine.config import Config
from mmengine.registry import DATASETS, PARAM_SCHEDULERS, DefaultScope
from torch import nn
from torch.optim import SGD

from apla_mm.options.shared_options import apply_shared_options

FOLDER = Path(__file__).parents[2] / "configs"
SEGMENTATION, DETECTION, CLASSIFICATION = (sorted((FOLDER / kind).glob("*.py")) for kind in ("seg", "det", "cls"))
CUSTOM, CUSTOM_DETECTION = (FOLDER / kind / "apla_vitb_custom.py" for kind in ("seg", "det"))
PANOPTIC = FOLDER / "det/eomt_dinov2-l14_apla_8xb2-90k_coco-panoptic-644x644.py"
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


@pytest.fixture(params=SEGMENTATION + DETECTION + CLASSIFICATION, ids=lambda path: path.stem)
def cfg(request: pytest.FixtureRequest) -> Config:
    return Config.fromfile(request.param)


@pytest.fixture(params=SEGMENTATION, ids=lambda path: path.stem)
def segmentation(request: pytest.FixtureRequest) -> Config:
    return Config.fromfile(request.param)


@pytest.fixture
def custom() -> Config:
    return Config.fromfile(CUSTOM)


@pytest.fixture
def detection() -> Config:
    return Config.fromfile(CUSTOM_DETECTION)


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Paths such as model.decode_head.channels, with the values there."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if children is None:
        return {path: node}
    return {k: v for key, child in children for k, v in leaves(child, f"{path}.{key}".lstrip(".")).items()}


def changes(cfg: Config, options: dict[str, Any]) -> set[str]:
    """What the options change, apart from the order; numbers in paths become N."""
    before = leaves(copy.deepcopy(cfg.to_dict()))
    apply_shared_options(cfg, options)
    after = leaves(cfg.to_dict())
    changed = {key for key in before.keys() | after.keys() if before.get(key, None) != after.get(key, None)}
    return {".".join("N" if step.isdecimal() else step for step in key.split(".")) for key in changed}


def pipelines(cfg: Config) -> Iterator[list[dict]]:
    return (cfg[loader].dataset.pipeline for loader in LOADERS)


def test_no_shared_option_changes_nothing(cfg: Config) -> None:
    assert changes(cfg, {}) == set()


def test_data_root_reaches_every_data_set_and_nothing_else(cfg: Config) -> None:
    assert changes(cfg, dict(data_root="/elsewhere")) == {f"{loader}.dataset.data_root" for loader in LOADERS}
    assert [cfg[loader].dataset.data_root for loader in LOADERS] == ["/elsewhere"] * 3


def test_data_root_reaches_data_sets_inside_others(custom: Config) -> None:
    inner = custom.train_dataloader.dataset
    custom.train_dataloader.dataset = dict(type="MultiImageMixDataset", pipeline=[], dataset=inner)
    custom.val_dataloader.dataset = dict(type="ConcatDataset", datasets=[copy.deepcopy(inner), copy.deepcopy(inner)])
    apply_shared_options(custom, dict(data_root="/elsewhere"))
    assert custom.train_dataloader.dataset.dataset.data_root == "/elsewhere"
    assert "data_root" not in custom.train_dataloader.dataset
    assert [d.data_root for d in custom.val_dataloader.dataset.datasets] == ["/elsewhere"] * 2


@pytest.mark.parametrize("classes", [["wall", "sky", "tree"], ("wall", "sky"), "wall"])
@pytest.mark.parametrize(
    "path", [path for path in SEGMENTATION + DETECTION if path != PANOPTIC], ids=lambda path: path.stem
)
def test_classes_reach_every_data_set_and_head_and_nothing_else(path: Path, classes: Any) -> None:
    cfg = Config.fromfile(path)
    names = (classes,) if isinstance(classes, str) else tuple(classes)
    changed = changes(cfg, dict(classes=classes))
    counting = (".num_classes", ".num_things_classes")
    heads = {key for key in leaves(cfg.model.to_dict(), "model") if key.endswith(tuple(f"head{c}" for c in counting))}
    assert {key for key in changed if not key.endswith(counting) and ".class_weight." not in key} == {
        f"{loader}.dataset.metainfo.classes" for loader in LOADERS
    }
    assert [tuple(cfg[loader].dataset.metainfo.classes) for loader in LOADERS] == [names] * 3
    counts = {key: n for key, n in leaves(cfg.model.to_dict(), "model").items() if key.endswith(counting)}
    assert set(counts.values()) == {len(names)} and counts.keys() >= heads != set()


def test_number_that_counts_no_classes_of_the_data_set_stays(detection: Config) -> None:
    others = {
        "rpn_head.num_classes": 1,
        "roi_head.semantic_head.num_classes": 183,
        "backbone.num_classes": 0,
        "backbone.model_kwargs.num_classes": 0,
        "roi_head.boundary_head": dict(type="mmseg.STDCHead", num_classes=2),
    }
    detection.merge_from_dict(dict(model=dict(roi_head=dict(semantic_head=dict(type="FusedSemanticHead")))))
    detection.merge_from_dict({f"model.{key}": value for key, value in others.items()})
    changed = changes(detection, dict(classes=["cat", "dog"]))
    assert {key for key in changed if key.startswith("model.")} == {
        "model.roi_head.bbox_head.num_classes",
        "model.roi_head.mask_head.num_classes",
    }


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_of_heads_and_losses_inside_heads_are_reached(detection: Config, kind: type) -> None:
    head = dict(type="Shared2FCBBoxHead", num_classes=1, loss_cls=dict(type="SeesawLoss", num_classes=1))
    detection.model.roi_head.bbox_head = kind([copy.deepcopy(head) for _ in range(3)])
    apply_shared_options(detection, dict(classes=["cat", "dog"]))
    heads = detection.model.roi_head.bbox_head
    assert [(head.num_classes, head.loss_cls.num_classes) for head in heads] == [(2, 2)] * 3


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1.0, 1.0, 1.0, 0.1], [1.0, 1.0, 0.1]),
        ([2.0, 2.0, 2.0], [2.0, 2.0]),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),  # which of them stays is not known
        ([1.0, 2.0, 3.0, 0.1], [1.0, 2.0, 3.0, 0.1]),
    ],
)
def test_one_weight_for_all_classes_is_repeated(custom: Config, before: list[float], after: list[float]) -> None:
    custom.model.decode_head.update(num_classes=3, loss_decode=dict(type="CrossEntropyLoss", class_weight=before))
    apply_shared_options(custom, dict(classes=["cat", "dog"]))
    assert custom.model.decode_head.loss_decode.class_weight == after


def test_head_of_things_alone_is_reached(detection: Config) -> None:
    detection.model.panoptic_head = dict(type="Mask2FormerHead", num_things_classes=80, num_stuff_classes=0)
    apply_shared_options(detection, dict(classes=["cat", "dog"]))
    head = detection.model.panoptic_head
    assert (head.num_things_classes, head.num_stuff_classes) == (2, 0)


def test_things_and_stuff_reach_data_sets_and_heads() -> None:
    cfg = Config.fromfile(PANOPTIC)
    cfg.model.panoptic_head.loss_cls.class_weight = [1.0] * 133 + [0.1]
    apply_shared_options(cfg, dict(thing_classes=["cat", "dog"], stuff_classes=["grass"]))
    expected = dict(classes=("cat", "dog", "grass"), thing_classes=("cat", "dog"), stuff_classes=("grass",))
    assert all(cfg[loader].dataset.metainfo == expected for loader in LOADERS)
    for head in (cfg.model.panoptic_head, cfg.model.panoptic_fusion_head):
        assert (head.num_things_classes, head.num_stuff_classes) == (2, 1)
    assert cfg.model.panoptic_head.loss_cls.class_weight == [1.0] * 3 + [0.1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(classes=["cat"]), "does not say which are things and which are stuff"),
        (dict(thing_classes=["cat"]), "they go together"),
        (dict(thing_classes=["cat"], stuff_classes=["cat", "sky"]), "'cat' is in thing_classes and in stuff_classes"),
        (dict(thing_classes=["cat", "cat"], stuff_classes=["sky"]), "holds a name twice"),
        (dict(thing_classes=[], stuff_classes=["sky"]), "thing_classes=.* must be names"),
    ],
)
def test_things_and_stuff_that_do_not_fit_are_refused(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        apply_shared_options(Config.fromfile(PANOPTIC), options)


def test_things_and_stuff_are_refused_where_nothing_is_panoptic(detection: Config) -> None:
    with pytest.raises(ValueError, match="the config is not panoptic; give classes="):
        apply_shared_options(detection, dict(thing_classes=["cat"], stuff_classes=["sky"]))


@pytest.mark.parametrize(
    ("crop_size", "size", "stride"),
    [(64, (64, 64), (42, 42)), ([96, 64], (96, 64), (64, 42)), ((256, 512), (256, 512), (170, 341))],
)
def test_crop_size_reaches_model_and_pipelines_of_segmentation(
    segmentation: Config, crop_size: Any, size: tuple, stride: tuple
) -> None:
    apply_shared_options(segmentation, dict(crop_size=crop_size))
    model = segmentation.model
    assert tuple(model.data_preprocessor.size) == tuple(model.backbone.get("img_size", size)) == size
    if model.test_cfg.mode == "slide":
        assert (tuple(model.test_cfg.crop_size), tuple(model.test_cfg.stride)) == (size, stride)
    transforms = [transform for pipeline in pipelines(segmentation) for transform in pipeline]
    crops = [tuple(t["crop_size"]) for t in transforms if t["type"] == "RandomCrop"]
    scales = [tuple(t["scale"]) for t in transforms if t["type"] in ("RandomResize", "Resize")]
    assert crops == [size]
    assert len(scales) >= 2 and set(scales) == {(4 * size[0], size[0])}  # (longest, shortest) side


def test_crop_size_changes_sizes_alone(cfg: Config) -> None:
    pipeline = (
        r"(\w+_dataloader\.dataset\.|\w+_)pipeline\.N\.(transforms\.N\.N\.)?(crop_size|scale|scales\.N|max_size|size)"
    )
    model = r"model\.(data_preprocessor\.(size|pad_size_divisor)|backbone\.img_size|test_cfg\.(crop_size|stride))"
    changed = changes(cfg, dict(crop_size=64))
    assert changed and not [key for key in changed if not re.fullmatch(f"{pipeline}|{model}", key)]


def test_crop_size_of_the_config_itself_changes_nothing(cfg: Config) -> None:
    scale = cfg.val_dataloader.dataset.pipeline[1].scale
    size = 224 if cfg.default_scope == "mmpretrain" else tuple(scale)[1]
    scales = {f"{loader}.dataset.pipeline.N.scale" for loader in LOADERS}
    scales |= {"train_pipeline.N.scale", "test_pipeline.N.scale"}
    if cfg.default_scope == "mmseg":  # one of ours resizes to 512 and crops to 518
        size = tuple(cfg.model.data_preprocessor.size)
    assert changes(cfg, dict(crop_size=size)) <= (scales if size == (518, 518) else set())


def test_crop_size_keeps_the_choices_between_sizes_in_proportion() -> None:
    (path,) = (path for path in SEGMENTATION if path.stem.startswith("mask2former_swin-t"))
    cfg = Config.fromfile(path)
    before = cfg.train_dataloader.dataset.pipeline[2].scales
    apply_shared_options(cfg, dict(crop_size=256))
    resize = cfg.train_dataloader.dataset.pipeline[2]
    assert resize.scales == [round(side / 2) for side in before] and resize.max_size == 1024


JITTER = sorted(path for path in DETECTION if "1333x800" not in path.stem)


@pytest.mark.parametrize("path", JITTER, ids=lambda path: path.stem)
@pytest.mark.parametrize("crop_size", [256, [256, 256]])
def test_crop_size_of_large_scale_jitter(path: Path, crop_size: Any) -> None:
    cfg = Config.fromfile(path)
    apply_shared_options(cfg, dict(crop_size=crop_size))
    assert tuple(cfg.model.backbone.img_size) == (256, 256) and cfg.model.data_preprocessor.pad_size_divisor == 256
    transforms = [transform for pipeline in pipelines(cfg) for transform in pipeline]
    assert [tuple(t["crop_size"]) for t in transforms if t["type"] == "RandomCrop"] == [(256, 256)]
    assert [tuple(t["scale"]) for t in transforms if t["type"] in ("RandomResize", "Resize")] == [(256, 256)] * 3


def test_crop_size_of_images_that_are_padded_to_squares_is_one_number(detection: Config) -> None:
    with pytest.raises(ValueError, match=r"crop_size=\(64, 96\) must be one number: the data preprocessor pads"):
        apply_shared_options(detection, dict(crop_size=(64, 96)))


@pytest.mark.parametrize(
    ("crop_size", "height", "width", "side"), [(256, 256, 256, 256), ([64, 96], 64, 96, 64), ([96, 64], 96, 64, 64)]
)
def test_images_that_pipelines_pad_come_out_in_the_size_that_was_asked_for(
    detection: Config, coco_root: Path, crop_size: Any, height: int, width: int, side: int
) -> None:
    preprocessor = detection.model.data_preprocessor
    preprocessor.update(pad_size_divisor=32, batch_augments=[dict(type="BatchFixedSizePad", size=(1024, 1024))])
    for pipeline in pipelines(detection):
        pipeline.insert(len(pipeline) - 1, dict(type="Pad", size=(1024, 1024)))
    apply_shared_options(detection, dict(crop_size=crop_size, data_root=str(coco_root), classes=["square", "disc"]))
    assert tuple(detection.model.backbone.img_size) == (height, width)
    assert tuple(preprocessor.batch_augments[0].size) == (height, width) and preprocessor.pad_size_divisor == 32
    transforms = [transform for pipeline in pipelines(detection) for transform in pipeline]
    # mmdet's RandomCrop and mmcv's Pad take (width, height)
    assert [tuple(t["crop_size"]) for t in transforms if t["type"] == "RandomCrop"] == [(width, height)]
    assert [tuple(t["size"]) for t in transforms if t["type"] == "Pad"] == [(width, height)] * 3
    # an image of any shape fits
    assert [tuple(t["scale"]) for t in transforms if t["type"] in ("RandomResize", "Resize")] == [(side, side)] * 3
    with DefaultScope.overwrite_default_scope("mmdet"):
        train, val = (DATASETS.build(detection[loader].dataset) for loader in LOADERS[:2])
    for dataset in (train, val):
        assert {tuple(dataset[i]["inputs"].shape) for i in range(2)} == {(3, height, width)}


PLAIN = sorted(path for path in DETECTION if "1333x800" in path.stem)


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("crop_size", "scale"), [(400, (666, 400)), ([400, 600], (666, 400)), ([600, 400], (666, 400))]
)
def test_shorter_side_of_images_that_are_not_cropped_becomes_the_crop_size(
    path: Path, crop_size: Any, scale: tuple
) -> None:
    cfg = Config.fromfile(path)
    apply_shared_options(cfg, dict(crop_size=crop_size))
    transforms = [transform for pipeline in pipelines(cfg) for transform in pipeline]
    scales = [tuple(t["scale"]) for t in transforms if t["type"] == "Resize"]
    assert len(scales) >= 2 and set(scales) == {scale}


def test_crop_size_scales_the_sizes_that_dino_trains_with() -> None:
    (path,) = (path for path in PLAIN if path.stem.startswith("dino"))
    cfg = Config.fromfile(path)
    cfg.tta_pipeline = [
        dict(
            type="TestTimeAug",
            transforms=[[dict(type="Resize", scale=(1333, side), keep_ratio=True) for side in (400, 800, 1200)]],
        )
    ]
    apply_shared_options(cfg, dict(crop_size=400))
    (choice,) = (t for t in cfg.train_dataloader.dataset.pipeline if t["type"] == "RandomChoice")
    (resize,), (before, crop, after) = choice.transforms
    assert resize.scales == after.scales == [(side // 2, 666) for side in range(480, 801, 32)]
    assert before.scales == [(200, 2100), (250, 2100), (300, 2100)] and crop.crop_size == (192, 300)
    assert [tuple(step.scale) for step in cfg.tta_pipeline[0].transforms[0]] == [(666, 200), (666, 400), (666, 600)]


def test_resizing_without_the_aspect_ratio_gets_width_and_height(custom: Config) -> None:
    custom.train_dataloader.dataset.pipeline = [dict(type="Resize", scale=(512, 512), keep_ratio=False)]
    apply_shared_options(custom, dict(crop_size=(96, 64)))
    assert tuple(custom.train_dataloader.dataset.pipeline[0].scale) == (64, 96)


def test_max_iters_scales_schedule_and_intervals(cfg: Config) -> None:
    before = leaves(copy.deepcopy(cfg.to_dict()))
    changed = changes(cfg, dict(max_iters=cfg.train_cfg.max_iters // 10))
    keys = [
        *("train_cfg.max_iters", "train_cfg.val_interval"),
        *("default_hooks.checkpoint.interval", "default_hooks.logger.interval"),
        *(key for key in before if re.fullmatch(r"param_scheduler\.\d+\.(begin|end|T_max|milestones\.\d+)", key)),
    ]
    after = leaves(cfg.to_dict())
    assert {key: after[key] for key in keys} == {key: before[key] // 10 for key in keys}
    assert changed <= {re.sub(r"\b\d+\b", "N", key) for key in keys}


def test_max_iters_scales_what_schedulers_count_in_iterations(custom: Config) -> None:
    custom.param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=False, begin=1500, end=160000, T_max=158500)]
    apply_shared_options(custom, dict(max_iters=1600))
    assert custom.param_scheduler[0].to_dict() == dict(
        type="CosineAnnealingLR", by_epoch=False, begin=15, end=1600, T_max=1585
    )


@pytest.mark.parametrize("max_iters", [1, 2, 3, 12, 900])
def test_milestones_are_steps_of_training_at_any_length(detection: Config, max_iters: int) -> None:
    apply_shared_options(detection, dict(max_iters=max_iters))
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(s), default_args=dict(optimizer=optimizer)) for s in detection.param_scheduler
    ]
    milestones = schedulers[1].milestones.elements()
    assert sum(1 <= step <= max_iters for step in milestones) == 2


@pytest.mark.parametrize("max_iters", [1, 2, 4, 50, 51, 54, 61, 1000, 320000])
def test_schedule_can_be_built_and_ends_with_training_at_any_length(custom: Config, max_iters: int) -> None:
    apply_shared_options(custom, dict(max_iters=max_iters))
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(s), default_args=dict(optimizer=optimizer)) for s in custom.param_scheduler
    ]
    assert max(scheduler.end for scheduler in schedulers) == max(max_iters, 4)  # two parts of at least two steps
    assert min(scheduler.begin for scheduler in schedulers) == 0
    assert 1 <= custom.train_cfg.val_interval <= max_iters
    assert 1 <= custom.default_hooks.checkpoint.interval <= max_iters


@pytest.mark.parametrize(
    ("key", "value", "shared", "elsewhere"),
    [
        ("train_cfg.val_interval", 7, "max_iters=1600", ("train_cfg.max_iters", 1600)),
        ("default_hooks.checkpoint.interval", 7, "max_iters=1600", ("train_cfg.max_iters", 1600)),
        ("param_scheduler.0.end", 7, "max_iters=1600", ("param_scheduler.1.end", 1600)),
        ("model.test_cfg.stride", (16, 16), "crop_size=64", ("model.test_cfg.crop_size", (64, 64))),
        ("val_dataloader.dataset.data_root", "/b", "data_root=/a", ("train_dataloader.dataset.data_root", "/a")),
    ],
)
def test_option_given_for_one_place_is_not_overridden_by_a_shared_one(
    key: str, value: Any, shared: str, elsewhere: tuple[str, Any]
) -> None:
    single = f"{key}={value}".replace(" ", "")
    for options in ([single, shared], [shared, single]):
        cfg = read_config(CUSTOM, *options)
        found = leaves(cfg.to_dict())
        assert (found[key], found[elsewhere[0]]) == (value, elsewhere[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(classes=[0, 1]), "classes="),
        (dict(classes=3), "classes="),
        (dict(classes=["cat", None]), "classes="),
        (dict(classes=["cat", "dog", "cat"]), "holds a name twice"),
        (dict(classes=[]), "classes="),
        (dict(crop_size=0), "crop_size=0 must be"),
        (dict(crop_size=-64), "crop_size=-64 must be"),
        (dict(crop_size=64.5), r"crop_size=64\.5 must be"),
        (dict(crop_size=(64, 64, 3)), "crop_size="),
        (dict(crop_size=(64, 32.5)), "crop_size="),
        (dict(crop_size="large"), "crop_size='large' must be"),
        (dict(max_iters=0), "max_iters=0 must be"),
        (dict(max_iters=-5), "max_iters=-5 must be"),
        (dict(max_iters=1.5), r"max_iters=1\.5 must be"),
        (dict(max_iters="many"), "max_iters='many' must be"),
        (dict(data_root=["/data/a", "b"]), "data_root="),
    ],
)
def test_value_of_the_wrong_kind_is_an_error_that_names_the_option(
    custom: Config, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        apply_shared_options(custom, options)


def test_max_iters_of_a_config_that_trains_by_epochs_is_an_error(custom: Config) -> None:
    custom.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=10)
    with pytest.raises(ValueError, match="for a config that trains by iterations"):
        apply_shared_options(custom, dict(max_iters=10))


@pytest.mark.parametrize("crop_size", [64, [96, 64]])
def test_pipelines_that_inference_reads_stay_those_of_the_data_loaders(segmentation: Config, crop_size: Any) -> None:
    apply_shared_options(segmentation, dict(crop_size=crop_size))
    assert segmentation.train_pipeline == segmentation.train_dataloader.dataset.pipeline
    assert segmentation.test_pipeline == segmentation.test_dataloader.dataset.pipeline
    assert segmentation.test_pipeline == segmentation.val_dataloader.dataset.pipeline


@pytest.mark.parametrize("with_mask", ["no", None, 1])
def test_masks_are_wanted_or_not(detection: Config, with_mask: Any) -> None:
    with pytest.raises(ValueError, match="must be True or False"):
        apply_shared_options(detection, dict(with_mask=with_mask))


def test_boxes_alone_reach_every_place_that_speaks_of_masks(detection: Config) -> None:
    detection.default_hooks.checkpoint.save_best = "coco/segm_mAP"
    mask_parts = {f"model.roi_head.{part}" for part in ("mask_head", "mask_roi_extractor")}
    within = leaves(detection.model.roi_head.to_dict(), "model.roi_head")
    mask_parts |= {re.sub(r"\b\d+\b", "N", key) for key in within if re.match(r"model\.roi_head\.mask_", key)}
    changed = changes(detection, dict(with_mask=False))
    assert changed | mask_parts == {
        *(f"{loader}.dataset.pipeline.N.with_mask" for loader in LOADERS),
        *(f"{name}_pipeline.N.with_mask" for name in ("train", "test")),
        "model.data_preprocessor.pad_mask",
        *mask_parts,
        *(f"{split}_evaluator.metric" for split in ("val", "test")),
        *(f"{split}_evaluator.metric.N" for split in ("val", "test")),
        "default_hooks.checkpoint.save_best",
    }
    assert detection.val_evaluator.metric == "bbox" and detection.default_hooks.checkpoint.save_best == "coco/bbox_mAP"
    assert detection.model.roi_head.mask_head is None and detection.model.roi_head.mask_roi_extractor is None


def test_detector_of_boxes_alone_stays_as_it_is() -> None:
    cfg = Config.fromfile(FOLDER / "det/retinanet_vit-b16_apla_8xb2-90k_coco-1024x1024.py")
    assert changes(cfg, dict(with_mask=False)) <= {"model.data_preprocessor.pad_mask"}
    with pytest.raises(ValueError, match="with_mask=True: the config has no model.roi_head.mask_head"):
        apply_shared_options(cfg, dict(with_mask=True))


def test_masks_stay_where_they_are_wanted(detection: Config) -> None:
    assert changes(detection, dict(with_mask=True)) == set()


def test_segmentation_has_no_masks(custom: Config) -> None:
    with pytest.raises(ValueError, match="with_mask=False is for detectors"):
        apply_shared_options(custom, dict(with_mask=False))
