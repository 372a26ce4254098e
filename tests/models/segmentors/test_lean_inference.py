"""Segmentors of mmseg's against themselves: labels, samples and state dicts."""

import copy
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.apis import inference_model
from mmseg.models import *  # noqa: F403  # registers the heads
from mmseg.models.segmentors import EncoderDecoder, SegTTAModel
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from apla_mm.dense import resized_logits
from apla_mm.method.class_change import change_back
from apla_mm.models.heads.lean_heads import make_heads_lean
from apla_mm.models.segmentors import lean_inference
from apla_mm.models.segmentors.lean_inference import LeanInference, make_inference_lean
from apla_mm.options.command_line import build_runner

CLASSES, WIDTH = 6, 8
BN = dict(type="BN")
FOUR = dict(in_channels=[4, 6, 8, 10], in_index=[0, 1, 2, 3], norm_cfg=BN)
ONE = dict(in_channels=6, in_index=1, norm_cfg=BN)
HEADS: dict[str, dict[str, Any]] = {
    "SETR-PUP": dict(type="SETRUPHead", num_convs=3, up_scale=2, kernel_size=3, **ONE),
    "SETR-MLA": dict(type="SETRMLAHead", mla_channels=2, up_scale=4, **{**FOUR, "in_channels": [10] * 4}),
    "FCN": dict(type="FCNHead", num_convs=1, **ONE),
    "corners": dict(type="FCNHead", num_convs=1, align_corners=True, **ONE),
    "UPer": dict(type="UPerHead", pool_scales=(1, 2), **FOUR),
    "SegFormer": dict(type="SegformerHead", **FOUR),
    "DA": dict(type="DAHead", pam_channels=4, **ONE),
    "Enc": dict(type="EncHead", num_codes=4, **FOUR),
    "one channel": dict(type="FCNHead", num_convs=1, num_classes=2, out_channels=1, threshold=0.4, **ONE),
}


class Pyramid(nn.Module):
    """Maps of strides 4 to 32; all with ten channels and of one stride, for SETR-MLA."""

    def __init__(self, widths: Sequence[int] = (4, 6, 8, 10), strides: Sequence[int] = (4, 8, 16, 32)) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(3, width, stride, stride=stride) for width, stride in zip(widths, strides, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [convolution(x) for convolution in self.convolutions]


def build(kind: str, mode: str = "whole", dtype: torch.dtype = torch.float64) -> Any:
    config = HEADS[kind]
    backbone: dict[str, Any] = dict(type=Pyramid)
    if config["type"] == "SETRMLAHead":
        backbone.update(widths=[10] * 4, strides=[8] * 4)
    head = dict(channels=WIDTH, num_classes=CLASSES, **{k: v for k, v in config.items() if k != "num_classes"})
    head["num_classes"] = config.get("num_classes", CLASSES)
    return of_config(dict(type="EncoderDecoder", backbone=backbone, decode_head=head), mode, dtype)


def of_config(config: dict[str, Any], mode: str = "whole", dtype: torch.dtype = torch.float64) -> Any:
    test_cfg = dict(mode=mode, **(dict(crop_size=(64, 64), stride=(40, 40)) if mode == "slide" else {}))
    preprocessor = dict(type="SegDataPreProcessor", mean=[0.0] * 3, std=[64.0] * 3, bgr_to_rgb=True)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(dict(data_preprocessor=preprocessor, test_cfg=ConfigDict(test_cfg), **config))
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


SIZE = (96, 128)


def samples_of(*metas: dict[str, Any]) -> list[SegDataSample]:
    common = dict(img_path="a.png", img_shape=SIZE, pad_shape=SIZE, ori_shape=(77, 150), reduce_zero_label=False)
    return [SegDataSample(metainfo={**common, **meta}) for meta in metas]


METAS: dict[str, list[dict[str, Any]]] = {
    "sizes of their own": [dict(), dict(ori_shape=(200, 131)), dict(ori_shape=SIZE)],
    "padded": [
        dict(img_padding_size=(0, 13, 0, 7)),
        dict(padding_size=[3, 0, 5, 0]),
        dict(img_padding_size=(0, 28, 0, 0)),
    ],
    "flipped": [
        dict(flip=True, flip_direction="horizontal", img_padding_size=(0, 13, 0, 7)),
        dict(flip=True, flip_direction="vertical", padding_size=[3, 0, 5, 0]),
        dict(flip=False, flip_direction=None),
    ],
}


def assert_same_predictions(
    model: Any, lean: Any, inputs: Tensor, metas: list[dict[str, Any]] | None, other: float = 0.0
) -> None:
    with torch.no_grad():
        right = model.predict(inputs, None if metas is None else samples_of(*metas))
        given = None if metas is None else samples_of(*metas)
        found = lean.predict(inputs, given)
    assert given is None or all(one is other for one, other in zip(given, found, strict=True))
    assert len(found) == len(right)
    for one, expected in zip(found, right, strict=True):
        own, plain = one.pred_sem_seg.data, expected.pred_sem_seg.data
        assert own.dtype == plain.dtype
        assert own.shape == plain.shape and (own != plain).float().mean() <= other
        assert len(plain.unique()) > 1
        assert "seg_logits" not in one
        assert one.metainfo == expected.metainfo


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("metas", [*METAS, None])
@pytest.mark.parametrize("kind", HEADS)
def test_labels_are_the_plain_segmentors(kind, metas, mode):
    model = build(kind, mode)
    lean = copy.deepcopy(model)
    assert make_inference_lean(lean) == []
    inputs = torch.randn(3, 3, *SIZE, dtype=torch.float64)
    assert_same_predictions(model, lean, inputs, METAS[metas] if metas else None)


@pytest.mark.parametrize("kind", ["SETR-PUP", "SegFormer"])
@pytest.mark.parametrize("kept", [False, True])
def test_windows_that_leave_out_pixels_are_an_error_as_they_are_in_mmseg(kind, kept, monkeypatch):
    model = build(kind, "slide")
    model.test_cfg.update(crop_size=(32, 32), stride=(40, 32))
    lean = copy.deepcopy(model)
    make_inference_lean(lean)
    if kept:  # the sum of all windows, as where their logits are not small
        monkeypatch.setattr(
            lean_inference, "_before_upsampling", lambda head: lambda x: (head.forward(x).repeat(1, 1, 9, 9), None)
        )
    inputs = torch.randn(1, 3, 112, 96, dtype=torch.float64)
    with pytest.raises(AssertionError):
        model.predict(inputs)
    with pytest.raises(ValueError, match=r"crop_size=\(32, 32\), stride=\(40, 32\) leave out pixels"):
        lean.predict(inputs)


@pytest.mark.parametrize("kind", ["SETR-PUP", "SETR-MLA", "SegFormer"])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_heads_that_train_from_small_logits(kind, mode):
    model = build(kind, mode)
    lean = copy.deepcopy(model)
    make_heads_lean(lean)
    make_inference_lean(lean)
    assert_same_predictions(model, lean, torch.randn(3, 3, *SIZE, dtype=torch.float64), METAS["padded"])


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_cascades(mode):
    fcn = dict(HEADS["FCN"], channels=WIDTH, num_classes=CLASSES)
    ocr = dict(fcn, type="OCRHead", ocr_channels=4)
    del ocr["num_convs"]
    config = dict(type="CascadeEncoderDecoder", num_stages=2, backbone=dict(type=Pyramid), decode_head=[fcn, ocr])
    model = of_config(config, mode)
    lean = copy.deepcopy(model)
    assert make_inference_lean(lean) == []
    assert_same_predictions(model, lean, torch.randn(3, 3, *SIZE, dtype=torch.float64), METAS["flipped"])


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_head_with_its_own_prediction_keeps_logits_at_the_inputs_size(mode):
    fcn = dict(HEADS["FCN"], channels=WIDTH, num_classes=CLASSES)
    point = dict(
        type="PointHead", in_channels=[4], in_index=[0], channels=WIDTH, num_fcs=1, num_classes=CLASSES,
        coarse_pred_each_layer=True,
    )  # fmt: skip
    config = dict(type="CascadeEncoderDecoder", num_stages=2, backbone=dict(type=Pyramid), decode_head=[fcn, point])
    model = of_config(config, mode, torch.float32)  # mmcv's sampling of points knows no other
    model.test_cfg.update(subdivision_steps=2, subdivision_num_points=60, scale_factor=2)
    lean = copy.deepcopy(model)
    ((name, reason),) = make_inference_lean(lean)
    assert name == "decode_head" and reason.startswith("PointHead predicts in its own way")
    assert_same_predictions(model, lean, torch.randn(3, 3, *SIZE), METAS["padded"], 1e-3)


def full_size(model: Any, monkeypatch: Any, mode: str) -> int:
    """The most values of a floating tensor within a prediction of one image, behind the backbone."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            found = [x.numel() for x in tree_leaves(result) if isinstance(x, Tensor) and x.is_floating_point()]
            self.numel = max([self.numel, *found])
            return result

    monkeypatch.setattr(resized_logits, "strip_heights", lambda height, *_: ((i, i + 1) for i in range(height)))
    with torch.no_grad(), Largest() as largest:
        model.predict(torch.randn(1, 3, *SIZE, dtype=torch.float64), samples_of(dict(ori_shape=(300, 400))))
    return largest.numel


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_nothing_of_the_images_size_with_all_classes_exists(mode, monkeypatch):
    model = build("UPer", mode)
    most = CLASSES * SIZE[0] * SIZE[1]
    assert full_size(model, monkeypatch, mode) >= CLASSES * 300 * 400
    make_inference_lean(model)
    assert full_size(model, monkeypatch, mode) < most


def test_windows_are_added_in_place_where_their_small_logits_are_larger_together(monkeypatch):
    model = build("SETR-PUP", "slide")
    model.test_cfg.stride = (8, 8)
    make_inference_lean(model)
    most = CLASSES * SIZE[0] * SIZE[1]
    assert full_size(model, monkeypatch, "slide") == most


def test_autocast():
    model = build("UPer", dtype=torch.float32)
    lean, samples = copy.deepcopy(model), samples_of(*METAS["padded"])
    make_inference_lean(lean)
    inputs = torch.randn(3, 3, *SIZE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        right = model.predict(inputs, samples_of(*METAS["padded"]))
        found = lean.predict(inputs, samples)
    for one, other in zip(found, right, strict=True):
        own = other.seg_logits.data.float().gather(0, one.pred_sem_seg.data)
        most = other.seg_logits.data.float().amax(0, keepdim=True)
        assert (most - own <= 2**-6 * most.abs().clamp_min(1)).all()


def test_inference_model_of_images_of_any_size():
    model = build("UPer", dtype=torch.float32)
    model.cfg = Config(
        dict(
            test_pipeline=[
                dict(type="LoadImageFromFile"),
                dict(type="Resize", scale=(128, 96), keep_ratio=True),
                dict(type="PackSegInputs"),
            ]
        )
    )
    lean = copy.deepcopy(model)
    make_inference_lean(lean)
    image = np.random.default_rng(0).integers(0, 255, (73, 150, 3), dtype=np.uint8)
    with DefaultScope.overwrite_default_scope("mmseg"):
        right, found = inference_model(model, image), inference_model(lean, image)
    assert found.pred_sem_seg.data.shape == (1, 73, 150)
    assert (found.pred_sem_seg.data != right.pred_sem_seg.data).float().mean() < 1e-3  # float32
    assert "seg_logits" not in found


def views(dtype: torch.dtype) -> dict[str, Any]:
    """Two images, each at two sizes and flipped at one of them."""
    kinds = [((96, 128), {}), ((64, 96), {}), ((96, 128), dict(flip=True, flip_direction="horizontal"))]
    torch.manual_seed(1)
    inputs = [[64 * torch.randn(3, *size, dtype=dtype) for _ in range(2)] for size, _ in kinds]
    samples = [
        [
            *samples_of(dict(img_shape=size, pad_shape=size, ori_shape=(150, 77), img_path="a.png", **meta)),
            *samples_of(dict(img_shape=size, pad_shape=size, ori_shape=(60, 99), img_path="b.png", **meta)),
        ]
        for size, meta in kinds
    ]
    for sample in samples[0]:
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, *sample.ori_shape))
    return dict(inputs=inputs, data_samples=samples)


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("kind", ["UPer", "SETR-PUP"])
def test_test_time_augmentation(kind, mode):
    tta = SegTTAModel(build(kind, mode, torch.float32))
    lean = copy.deepcopy(tta)
    assert make_inference_lean(lean) == [] == make_inference_lean(lean)
    with torch.no_grad():
        right, found = tta.test_step(views(torch.float32)), lean.test_step(views(torch.float32))
    for one, other in zip(found, right, strict=True):
        own, plain = one.pred_sem_seg.data, other.pred_sem_seg.data
        assert own.shape == plain.shape and own.dtype == plain.dtype
        assert (own != plain).float().mean() < 1e-3 and len(own.unique()) > 1  # float32
        assert sorted(one.keys()) == ["gt_sem_seg", "pred_sem_seg"] and one.metainfo == other.metainfo
    change_back(lean)
    assert type(lean) is SegTTAModel and type(lean.module) is EncoderDecoder
    assert "seg_logits" in lean.test_step(views(torch.float32))[0]


def test_segmentor_that_was_changed_back_alone_is_averaged_by_mmseg():
    tta = SegTTAModel(build("FCN", dtype=torch.float32))
    make_inference_lean(tta)
    change_back(tta.module)
    assert "seg_logits" in tta.test_step(views(torch.float32))[0]


class OwnTTA(SegTTAModel):
    def merge_preds(self, data_samples_list: Any) -> Any:
        return [samples[0].seg_logits for samples in data_samples_list]


@pytest.mark.parametrize(
    ("cls", "kind", "reason"),
    [(OwnTTA, "FCN", "OwnTTA may need its seg_logits"), (SegTTAModel, "one channel", "of a single channel")],
)
def test_test_time_augmentation_that_needs_logits_is_left_alone(cls, kind, reason):
    tta = cls(build(kind, dtype=torch.float32))
    ((name, told),) = make_inference_lean(tta)
    assert name == "module" and reason in told and type(tta) is cls and type(tta.module) is EncoderDecoder
    tta.test_step(views(torch.float32))


def test_segmentor_with_its_own_postprocessing_is_left_alone():
    class Own(EncoderDecoder):
        def postprocess_result(self, *args: Any, **kwargs: Any) -> Any:
            return super().postprocess_result(*args, **kwargs)

    config = dict(type=Own, backbone=dict(type=Pyramid), decode_head=dict(HEADS["FCN"], channels=4, num_classes=3))
    model = of_config(config)
    assert make_inference_lean(nn.Sequential(model)) == [("0", "Own has a postprocess_result of its own")]
    assert type(model) is Own


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize(("method", "name"), [("encode_decode", "decode_head"), ("inference", "")])
def test_segmentor_with_its_own_logits_keeps_them_at_the_inputs_size(method, name, mode):
    def own(self: Any, *args: Any) -> Any:
        return -getattr(EncoderDecoder, method)(self, *args)

    cls = type("Own", (EncoderDecoder,), {method: own})
    config = dict(type=cls, backbone=dict(type=Pyramid), decode_head=dict(HEADS["FCN"], channels=4, num_classes=3))
    model = of_config(config, mode)
    lean = copy.deepcopy(model)
    assert make_inference_lean(lean) == [(name, f"Own has its own {method}: logits stay at the input's size")]
    assert_same_predictions(model, lean, torch.randn(3, 3, *SIZE, dtype=torch.float64), METAS["flipped"])


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_validation_in_a_run_has_the_same_scores(segmentation_config: Config, mode: str) -> None:
    if mode == "slide":
        segmentation_config.model.test_cfg = dict(mode="slide", crop_size=(64, 64), stride=(40, 40))
    runner = build_runner(segmentation_config)
    right = runner.val()
    assert make_inference_lean(runner.model) == []
    found = runner.val_loop.run()
    assert found.keys() == right.keys() and "mIoU" in right
    assert all(abs(found[key] - right[key]) < 0.02 for key in right)  # percent, to two digits; float32


def test_state_dict_copies_pickles_and_the_way_back():
    model = build("UPer")
    plain, state = type(model), copy.deepcopy(model.state_dict())
    make_inference_lean(model)
    assert make_inference_lean(model) == []  # again
    assert isinstance(model, LeanInference) and isinstance(model, plain) and type(model).__name__ == plain.__name__
    assert list(model.state_dict()) == list(state)
    inputs = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other, LeanInference)
        assert "seg_logits" not in other.predict(inputs)[0]
    assert model(inputs, mode="tensor").shape[2:] == (24, 32)
    change_back(model)
    assert type(model) is plain and "small" not in vars(model)
    assert "seg_logits" in model.predict(inputs)[0]


def test_unknown_modes_are_mmsegs_error():
    model = build("FCN")
    make_inference_lean(model)
    model.test_cfg = ConfigDict(mode="tiles")
    with pytest.raises(AssertionError, match="tiles"):
        model.predict(torch.randn(1, 3, *SIZE, dtype=torch.float64))
