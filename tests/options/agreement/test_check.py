"""Settings that do not agree are named before a runner is built, with options that mend them."""

import re
import shlex
from pathlib import Path

import mmdet
import mmseg
import pytest
from helpers import ROOT
from helpers.optional import shipped_configs
from helpers.tools import read_config
from mmengine.config import Config

from apla_mm.options.agreement import DisagreementError, Problem, check_agreement
from apla_mm.options.agreement.check import find_problems

FOLDER = ROOT / "configs"
OURS = [*shipped_configs(), *sorted(FOLDER.glob("demo/digits*.py"))]
SEG, DET = FOLDER / "seg/apla_vitb_custom.py", FOLDER / "det/apla_vitb_custom.py"
DINO, SWIN = (
    FOLDER / f"seg/{name}.py"
    for name in ("setr-pup_dinov2-b14_apla_1xb16-160k_ade20k-518x518", "upernet_swin-t_apla_8xb2-160k_ade20k-512x512")
)
MIT = FOLDER / "seg/segformer_mit-b0_apla_8xb2-160k_ade20k-512x512.py"
VIT = FOLDER / "seg/setr-pup_mmseg-vit-b16_apla_8xb2-160k_ade20k-512x512.py"
RETINA = FOLDER / "det/retinanet_vit-b16_apla_8xb2-90k_coco-1024x1024.py"
MASK_RCNN = FOLDER / "det/mask-rcnn_swin-t_apla_8xb2-90k_coco-1333x800.py"

CLS = FOLDER / "cls/linear_dinov2-s14_apla_1xb64-10k_custom-224x224.py"

ERROR, WARNING = True, False
BEST = "default_hooks.checkpoint.save_best"
MEAN, STD = "model.data_preprocessor.mean", "model.data_preprocessor.std"
TRAIN_LOADER = "train_dataloader"

#: of classification, as CASES
CLS_CASES: list[tuple[Path, list[str], str, bool]] = [
    (CLS, [f"{BEST}=accuracy/top5"], BEST, ERROR),
    (CLS, ["val_evaluator.topk=(5,)"], BEST, ERROR),
    (CLS, [f"{BEST}=accuracy"], BEST, ERROR),
    (CLS, ["model.head.num_classes=3", "val_evaluator.topk=(1,5)"], "val_evaluator.topk", ERROR),
    (CLS, [f"{MEAN}=127.5,127.5,127.5"], MEAN, WARNING),
    (CLS, ["model.data_preprocessor.to_rgb=False"], "model.data_preprocessor.to_rgb", WARNING),
    (CLS, ["model.head.in_channels=384"], "model.head.in_channels", ERROR),
    (CLS, ["model.backbone.output=cls_token"], "model.head.in_channels", ERROR),
    (CLS, ["model.backbone.out_indices=(8,11)"], "model.head.in_channels", ERROR),
    (CLS, ["model.backbone.output=maps", "model.head.in_channels=384"], "model.backbone.output", ERROR),
    (CLS, ["classes=cat,dog", "model.head.num_classes=7"], "model.head.num_classes", ERROR),
    (CLS, ["crop_size=100"], "model.backbone.img_size", WARNING),
]
#: config, options, where the problem is, whether it is an error
CASES: list[tuple[Path, list[str], str, bool]] = [
    # scores
    (SEG, ["val_evaluator.iou_metrics=[mDice]"], BEST, ERROR),
    (SEG, ["val_evaluator.iou_metrics=mFscore"], BEST, ERROR),
    (SEG, [f"{BEST}=coco/bbox_mAP"], BEST, ERROR),
    (SEG, [f"{BEST}=[mIoU,mDice]"], BEST, ERROR),
    (SEG, ["val_evaluator.prefix=val"], BEST, ERROR),
    (SEG, ["val_evaluator=None", "val_dataloader=None", "val_cfg=None"], BEST, ERROR),
    (SEG, ["val_evaluator.iou_metrics=[mIou]", f"{BEST}=auto"], "val_evaluator.iou_metrics", ERROR),
    (DET, ["val_evaluator.metric=segm"], BEST, ERROR),
    (DET, [f"{BEST}=bbox_mAP"], BEST, ERROR),
    (DET, ["val_evaluator.metric_items=[mAP_50]"], BEST, ERROR),
    (RETINA, ["val_evaluator.metric=[bbox,segm]"], "val_evaluator.metric", ERROR),
    (RETINA, ["test_evaluator.metric=segm"], "test_evaluator.metric", ERROR),
    # the optimizer
    (SEG, ["optim_wrapper.optimizer.type=AdamWW"], "optim_wrapper.optimizer.type", ERROR),
    (SEG, ["optim_wrapper.optimizer.lr=-1e-3"], "optim_wrapper.optimizer.lr", ERROR),
    (SEG, ["optim_wrapper.optimizer.lr=high"], "optim_wrapper.optimizer.lr", ERROR),
    (SEG, ["optim_wrapper.optimizer.momentum=0.9"], "optim_wrapper.optimizer.momentum", ERROR),
    (SEG, ["optim_wrapper.optimizer.betas=(0.9,)"], "optim_wrapper.optimizer.betas", ERROR),
    (SEG, ["optim_wrapper.optimizer.weight_decay=-0.1"], "optim_wrapper.optimizer.weight_decay", ERROR),
    # images
    (SEG, [f"{MEAN}=123.675,116.28,103.53"], MEAN, WARNING),
    (SEG, [f"{STD}=58.395,57.12,57.375"], STD, WARNING),
    (DINO, [f"{MEAN}=127.5,127.5,127.5"], MEAN, WARNING),
    (DET, [f"{MEAN}=0.485,0.456,0.406", f"{STD}=0.229,0.224,0.225"], MEAN, ERROR),
    (SEG, ["model.backbone.model_name=vit_base_patch16_clip_224.openai"], MEAN, WARNING),
    (SEG, ["model.data_preprocessor.bgr_to_rgb=False"], "model.data_preprocessor.bgr_to_rgb", WARNING),
    (SWIN, ["model.data_preprocessor.bgr_to_rgb=False"], "model.data_preprocessor.bgr_to_rgb", WARNING),
    (SWIN, [f"{MEAN}=103.53,116.28,123.675"], MEAN, WARNING),
    (
        SWIN,
        [f"{MEAN}=103.53,116.28,123.675", "model.backbone.init_cfg=None"],
        "model.data_preprocessor.bgr_to_rgb",
        WARNING,
    ),
    (SWIN, [f"{STD}=1,1,1"], STD, WARNING),
    (VIT, [f"{MEAN}=123.675,116.28,103.53"], MEAN, WARNING),
    (
        DET,
        ["train_dataloader.dataset.pipeline.4.crop_size=(512,512)"],
        "model.data_preprocessor.pad_size_divisor",
        WARNING,
    ),
    (
        DINO,
        ["model.data_preprocessor.test_cfg.size_divisor=16"],
        "model.data_preprocessor.test_cfg.size_divisor",
        WARNING,
    ),
    (DINO, ["crop_size=512"], "model.data_preprocessor.size", WARNING),
    (DINO, ["model.backbone.img_size=512"], "model.backbone.img_size", WARNING),
    (DET, ["model.data_preprocessor.pad_size_divisor=1000"], "model.data_preprocessor.pad_size_divisor", WARNING),
    (SEG, ["crop_size=500"], "model.test_cfg.crop_size", WARNING),
    (SEG, ["model.data_preprocessor.size=(256,256)"], "model.data_preprocessor.size", ERROR),
    (SEG, ["train_dataloader.dataset.pipeline.3.crop_size=(256,256)"], "model.data_preprocessor.size", WARNING),
    (SEG, ["model.test_cfg.stride=(600,341)"], "model.test_cfg.stride", ERROR),
    (SEG, ["model.test_cfg.stride=None"], "model.test_cfg.mode", ERROR),
    (SWIN, ["model.test_cfg.mode=slide"], "model.test_cfg.mode", ERROR),
    (SWIN, ["model.test_cfg.mode=sliding"], "model.test_cfg.mode", ERROR),
    # labels
    (SEG, ["model.data_preprocessor.seg_pad_val=0"], "model.data_preprocessor.seg_pad_val", WARNING),
    (SEG, ["model.data_preprocessor.seg_pad_val=254"], "model.data_preprocessor.seg_pad_val", ERROR),
    (SEG, ["val_evaluator.ignore_index=0"], "val_evaluator.ignore_index", WARNING),
    (SEG, ["model.auxiliary_head.1.ignore_index=0"], "model.auxiliary_head.1.ignore_index", WARNING),
    (SEG, ["model.decode_head.loss_decode.class_weight=[1,2,3]"], "model.decode_head.loss_decode.class_weight", ERROR),
    (
        SEG,
        ["model.auxiliary_head.0.loss_decode.class_weight=[1.]"],
        "model.auxiliary_head.0.loss_decode.class_weight",
        ERROR,
    ),
    (
        DET,
        ["model.roi_head.bbox_head.loss_cls.class_weight=1,1,1"],
        "model.roi_head.bbox_head.loss_cls.class_weight",
        ERROR,
    ),
    (SEG, ["optim_wrapper.optimizer.type=AdamWW"], "optim_wrapper.optimizer.type", ERROR),
    # classes
    (SEG, ["model.auxiliary_head.1.num_classes=3"], "model.auxiliary_head.1.num_classes", ERROR),
    (SWIN, ["model.decode_head.num_classes=151"], "model.decode_head.num_classes", ERROR),
    (DET, ["model.roi_head.mask_head.num_classes=2"], "model.roi_head.mask_head.num_classes", ERROR),
    (SWIN, ["model.decode_head.out_channels=1"], "model.decode_head.out_channels", ERROR),
    (SEG, ["model.decode_head.out_channels=1"], "model.decode_head.loss_decode.use_sigmoid", ERROR),
    (SEG, ["val_dataloader.dataset.reduce_zero_label=True"], "val_dataloader.dataset.reduce_zero_label", WARNING),
    (SWIN, ["test_dataloader.dataset.reduce_zero_label=False"], "test_dataloader.dataset.reduce_zero_label", WARNING),
    (
        SEG,
        ["classes=a,b", "val_dataloader.dataset.metainfo.classes=b,a"],
        "val_dataloader.dataset.metainfo.classes",
        ERROR,
    ),
    (
        SEG,
        ["classes=a,b", "val_dataloader.dataset.metainfo.classes=a,c"],
        "val_dataloader.dataset.metainfo.classes",
        WARNING,
    ),
    # loaders
    (
        SEG,
        [f"{TRAIN_LOADER}.num_workers=0", f"{TRAIN_LOADER}.persistent_workers=True"],
        f"{TRAIN_LOADER}.persistent_workers",
        ERROR,
    ),
    (
        SEG,
        ["val_dataloader.num_workers=0", "val_dataloader.prefetch_factor=4"],
        "val_dataloader.prefetch_factor",
        ERROR,
    ),
    (SEG, ["test_dataloader.num_workers=0", "test_dataloader.timeout=9"], "test_dataloader.timeout", ERROR),
    (SEG, [f"{TRAIN_LOADER}.prefetch_factor=0"], f"{TRAIN_LOADER}.prefetch_factor", ERROR),
    (SEG, [f"{TRAIN_LOADER}.num_workers=-1"], f"{TRAIN_LOADER}.num_workers", ERROR),
    (SEG, [f"{TRAIN_LOADER}.batch_size=0"], f"{TRAIN_LOADER}.batch_size", ERROR),
    (SEG, ["val_dataloader.sampler.type=InfiniteSampler"], "val_dataloader.sampler.type", ERROR),
    (SWIN, [f"{TRAIN_LOADER}.batch_size=1"], f"{TRAIN_LOADER}.batch_size", ERROR),
    # length of training
    (SEG, ["train_cfg.val_interval=200000"], "train_cfg.val_interval", WARNING),
    (SEG, ["train_cfg.val_interval=0"], "train_cfg.val_interval", ERROR),
    (SEG, ["train_cfg.val_begin=200000"], "train_cfg.val_begin", ERROR),
    (SEG, ["train_cfg.max_iters=80000"], "param_scheduler.1.end", WARNING),
    (SEG, ["train_cfg.max_iters=320000"], "param_scheduler.1.end", WARNING),
    (SEG, ["param_scheduler.1.begin=170000", "param_scheduler.1.end=180000"], "param_scheduler.1.begin", WARNING),
    (DET, ["param_scheduler.1.milestones=[60000,95000]"], "param_scheduler.1.milestones", WARNING),
    (DET, ["train_cfg.max_iters=50000"], "param_scheduler.1.milestones", WARNING),
    (SEG, ["param_scheduler.1.by_epoch=True"], "param_scheduler.1.by_epoch", ERROR),
    (SEG, ["default_hooks.checkpoint.by_epoch=True"], "default_hooks.checkpoint.by_epoch", ERROR),
    (SEG, ["log_processor.by_epoch=True"], "log_processor.by_epoch", WARNING),
    (SEG, ["default_hooks.logger.log_metric_by_epoch=True"], "default_hooks.logger.log_metric_by_epoch", WARNING),
    (SEG, ["default_hooks.checkpoint.interval=-1"], "default_hooks.checkpoint.max_keep_ckpts", WARNING),
    (
        SEG,
        ["default_hooks.checkpoint.interval=200000", "default_hooks.checkpoint.save_last=False"],
        "default_hooks.checkpoint.interval",
        ERROR,
    ),
    (DET, ["param_scheduler.1.end=70000"], "param_scheduler.1.end", WARNING),
    # evaluation
    (SEG, ["val_dataloader.batch_size=4"], "val_dataloader.batch_size", WARNING),
    (SEG, ["val_dataloader.dataset.pipeline.1.scale=(1024,256)"], "val_dataloader.dataset.pipeline.1.scale", WARNING),
    (SEG, ["test_dataloader.dataset.pipeline.1.scale=(1024,256)"], "val_dataloader.dataset.pipeline.1.scale", WARNING),
    # parts of the model
    (SEG, ["model.decode_head.in_channels=1024"], "model.decode_head.in_channels", ERROR),
    (SEG, ["model.auxiliary_head.2.in_channels=384"], "model.auxiliary_head.2.in_channels", ERROR),
    (
        SEG,
        ["model.backbone.model_name=vit_large_patch16_384.augreg_in21k_ft_in1k"],
        "model.decode_head.in_channels",
        ERROR,
    ),
    (SEG, ["model.decode_head.in_index=4"], "model.decode_head.in_index", ERROR),
    (SEG, ["model.backbone.out_indices=(3,11)"], "model.auxiliary_head.2.in_index", ERROR),
    (SEG, ["model.backbone.out_indices=(3,6,9,12)"], "model.backbone.out_indices", ERROR),
    (SWIN, ["model.backbone.embed_dims=128"], "model.decode_head.in_channels", ERROR),
    (SWIN, ["model.backbone.out_indices=(1,2,3)"], "model.decode_head.in_index", ERROR),
    (SWIN, ["model.decode_head.in_channels=[96,192,384]"], "model.decode_head.in_channels", ERROR),
    (SWIN, ["model.auxiliary_head.in_index=1"], "model.auxiliary_head.in_channels", ERROR),
    (MIT, ["model.backbone.embed_dims=64"], "model.decode_head.in_channels", ERROR),
    (VIT, ["model.backbone.embed_dims=1024"], "model.decode_head.in_channels", ERROR),
    (DET, ["model.neck.in_channels=1024"], "model.neck.in_channels", ERROR),
    (DET, ["model.neck.out_channels=128"], "model.rpn_head.in_channels", ERROR),
    (DET, ["model.neck.out_channels=128"], "model.roi_head.bbox_roi_extractor.out_channels", ERROR),
    (DET, ["model.neck.num_outs=4"], "model.rpn_head.anchor_generator.strides", ERROR),
    (
        DET,
        ["model.rpn_head.anchor_generator.strides=[8,16,32,64,128]"],
        "model.rpn_head.anchor_generator.strides",
        ERROR,
    ),
    (
        MASK_RCNN,
        ["model.roi_head.mask_roi_extractor.featmap_strides=[8,16,32,64]"],
        "model.roi_head.mask_roi_extractor.featmap_strides",
        ERROR,
    ),
    (DET, ["model.roi_head.mask_head.in_channels=128"], "model.roi_head.mask_head.in_channels", ERROR),
    (DET, ["model.roi_head.bbox_head.roi_feat_size=9"], "model.roi_head.bbox_head.roi_feat_size", ERROR),
    (MASK_RCNN, ["model.backbone.embed_dims=128"], "model.neck.in_channels", ERROR),
    (
        DET,
        ["train_dataloader.dataset.pipeline.1.with_mask=False"],
        "train_dataloader.dataset.pipeline.1.with_mask",
        ERROR,
    ),
]


KNOWN = [*CASES, *(CLS_CASES if CLS in OURS else [])]


@pytest.mark.parametrize(("config", "options", "where", "error"), KNOWN, ids=lambda value: str(value)[-70:])
def test_settings_that_do_not_agree_are_named_and_the_printed_options_mend_them(
    config: Path, options: list[str], where: str, error: bool
) -> None:
    problems = {problem.where: problem for problem in find_problems(read_config(config, *options))}
    assert where in problems, problems.keys()
    problem = problems[where]
    assert problem.error is error
    assert str(problem).startswith(f"{where}: ")
    printed = re.findall(r"--cfg-options .*?(?=; |$)", str(problem))
    if not problem.cure:
        assert problem.hint
        return
    mended = read_config(config, *options, *shlex.split(printed[0])[1:])
    assert where not in {problem.where for problem in find_problems(mended)}


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_our_configs_raise_no_false_alarm(path: Path) -> None:
    # the paper's recipe has ImageNet's statistics for weights that saw others: that is told
    expected = ["model.data_preprocessor.mean"] if path.stem.startswith("setr-pup_vit-l16_paper") else []
    assert [problem.where for problem in find_problems(read_config(path))] == expected


SHIPPED = [
    Path(package.__file__).parent / ".mim/configs" / name
    for package, names in (
        (
            mmseg,
            (
                "ann/ann_r50-d8_4xb2-40k_cityscapes-512x1024.py",
                "beit/beit-base_upernet_8xb2-160k_ade20k-640x640.py",
                "bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024.py",
                "ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py",
                "deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py",
                "fcn/fcn-d6_r50b-d16_4xb2-80k_cityscapes-512x1024.py",
                "knet/knet-s3_swin-l_upernet_8xb2-adamw-80k_ade20k-640x640.py",
                "mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py",
                "point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py",
                "san/san-vit-b16_coco-stuff164k-640x640.py",
                "segformer/segformer_mit-b5_8xb2-160k_ade20k-640x640.py",
                "segmenter/segmenter_vit-b_mask_8xb1-160k_ade20k-512x512.py",
                "sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py",
                "setr/setr_vit-l-mla_8xb1-160k_ade20k-512x512.py",
                "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
                "unet/unet-s5-d16_fcn_4xb4-40k_stare-128x128.py",
            ),
        ),
        (
            mmdet,
            (
                "atss/atss_r50_fpn_1x_coco.py",
                "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
                "condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py",
                "dino/dino-4scale_r50_8xb2-12e_coco.py",
                "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
                "htc/htc_r50_fpn_1x_coco.py",
                "lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py",
                "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
                "mm_grounding_dino/coco/grounding_dino_swin-t_finetune_16xb4_1x_coco_48_17.py",
                "mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py",
                "v3det/dino-4scale_r50_8xb2_sample1e-3_v3det_36e.py",
                "yolact/yolact_r50_1xb8-55e_coco.py",
                "panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py",
                "pascal_voc/retinanet_r50_fpn_1x_voc0712.py",
                "qdtrack/qdtrack_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval.py",
                "queryinst/queryinst_r50_fpn_1x_coco.py",
                "rtmdet/rtmdet-ins_s_8xb32-300e_coco.py",
                "simple_copy_paste/mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_32xb2-ssj-90k_coco.py",
                "solo/solo_r50_fpn_1x_coco.py",
                "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",
                "yolox/yolox_s_8xb8-300e_coco.py",
            ),
        ),
    )
    for name in names
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_of_mmseg_and_mmdet_are_no_errors(path: Path) -> None:
    assert [str(problem) for problem in find_problems(Config.fromfile(path)) if problem.error] == []


def test_all_errors_are_told_at_once_and_warnings_with_them() -> None:
    options = ["val_evaluator.iou_metrics=[mDice]", "model.decode_head.in_index=9", f"{MEAN}=0,0,0"]
    with pytest.raises(DisagreementError) as error:
        check_agreement(read_config(SEG, *options))
    first, *lines = str(error.value).splitlines()
    assert first == "2 settings do not agree with others:"
    assert [line.split(": ")[0].strip() for line in lines] == [
        "model.decode_head.in_index",
        BEST,
        f"(warning) {MEAN}",
    ]


def test_warnings_alone_are_given_back() -> None:
    (warning,) = check_agreement(read_config(SEG, f"{MEAN}=123.675,116.28,103.53"))
    assert warning == (
        "model.data_preprocessor.mean: the pretrained weights 'vit_base_patch16_384.augreg_in21k_ft_in1k' saw other "
        "images: mean=(123.675, 116.28, 103.53) where they had (127.5, 127.5, 127.5); --cfg-options "
        "'model.data_preprocessor.mean=[127.5,127.5,127.5]' 'model.data_preprocessor.std=[127.5,127.5,127.5]'"
    )


def test_rules_of_training_are_left_out_in_a_test() -> None:
    cfg = read_config(
        SEG, "val_evaluator.iou_metrics=[mDice]", "train_cfg.max_iters=80000", "train_dataloader.num_workers=-1"
    )
    assert find_problems(cfg, ("test_dataloader",)) == []


def test_other_weights_than_timms_may_have_seen_any_images() -> None:
    for option in ("model.backbone.pretrained=False", "model.backbone.model_kwargs.depth=12"):
        assert find_problems(read_config(SEG, f"{MEAN}=0,0,0", option)) == []


def test_a_path_of_weights_is_of_the_model_that_is_named() -> None:
    problems = find_problems(read_config(SEG, f"{MEAN}=0,0,0", "model.backbone.pretrained=weights.pth"))
    assert [problem.where for problem in problems] == [MEAN]


def test_monitors_of_hooks_and_schedulers_are_scores_too() -> None:
    cfg = read_config(SEG)
    cfg.custom_hooks.append(dict(type="EarlyStoppingHook", monitor="mDice"))
    cfg.param_scheduler.append(dict(type="ReduceOnPlateauLR", monitor="loss_val", by_epoch=False))
    assert [(p.where, p.error) for p in find_problems(cfg)] == [
        ("custom_hooks.2.monitor", True),
        ("param_scheduler.2.monitor", True),
    ]


def test_training_by_epochs_counts_epochs() -> None:
    cfg = read_config(SEG)
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=20)
    cfg.param_scheduler = [
        dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=500),
        dict(type="MultiStepLR", milestones=[8, 14], begin=0, end=12),
    ]
    cfg.custom_hooks.append(dict(type="EMAHook", begin_epoch=12))
    assert {p.where for p in find_problems(cfg)} == {
        "train_dataloader.sampler.type",
        "param_scheduler.1.milestones",
        "train_cfg.val_interval",
        "custom_hooks.2.begin_epoch",
    }


def test_resume_from_elsewhere_than_the_latest_checkpoint(tmp_path: Path) -> None:
    options = ["resume=True", "load_from=begin.pth", f"work_dir={tmp_path}"]
    assert find_problems(read_config(SEG, *options)) == []
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_2.pth"))
    (problem,) = find_problems(read_config(SEG, *options))
    assert (problem.where, problem.error) == ("load_from", False)
    assert "'begin.pth'" in problem.what and f"'{tmp_path}/iter_2.pth'" in problem.what


@pytest.mark.parametrize(
    ("launcher", "processes", "norm", "found"),
    [("none", "1", "SyncBN", 1), ("pytorch", "2", "SyncBN", 0), ("pytorch", "2", "BN", 1), (None, "1", "SyncBN", 0)],
)
def test_batch_norm_of_one_image_depends_on_who_shares_it(
    launcher: str | None,
    processes: str,
    norm: str,
    found: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = read_config(SWIN, "train_dataloader.batch_size=1", f"model.decode_head.norm_cfg.type={norm}")
    monkeypatch.setenv("WORLD_SIZE", processes)
    cfg.launcher = launcher
    assert len(find_problems(cfg)) == found


def test_options_without_workers_leave_out_what_needs_workers() -> None:
    cfg = read_config(SEG, *(f"{split}_dataloader.num_workers=0" for split in ("train", "val", "test")))
    assert find_problems(cfg) == []
    assert not any(cfg[f"{split}_dataloader"].get("persistent_workers") for split in ("train", "val", "test"))


def test_problem_as_text() -> None:
    problem = Problem("a.b", "it is 1, and c is 2", {"a.b": 2, "classes": ["x, y", "it's"]}, "or 3")
    assert str(problem) == ('a.b: it is 1, and c is 2; --cfg-options a.b=2 \'classes=["x, y", "it\'"\'"\'s"]\'; or 3')
