"""Real heads of mmseg's against themselves: losses, gradients, statistics and state dicts."""

import copy
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.models import *  # noqa: F403  # registers the heads
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn.utils import prune

from apla_mm.measure import PeakBytes
from apla_mm.method.class_change import change_back
from apla_mm.models.heads.lean_heads import LeanHead, _classified, make_heads_lean

CLASSES, WIDTH = 5, 8
BN = dict(type="BN")
ONE = dict(in_channels=WIDTH, in_index=0)
FOUR = dict(in_channels=[4, 6, 8, 10], in_index=[0, 1, 2, 3])
SETR: dict[str, Any] = dict(norm_cfg=BN, **ONE)
PYRAMID = [(4, 16, 12), (6, 8, 6), (8, 4, 3), (10, 2, 2)]
PLAIN = [(WIDTH, 4, 3)] * 4

HEADS: dict[str, tuple[dict[str, Any], list[tuple[int, int, int]]]] = {
    "SETR-PUP": (dict(type="SETRUPHead", num_convs=4, up_scale=2, kernel_size=3, **SETR), PLAIN),
    "SETR auxiliary": (
        dict(type="SETRUPHead", num_convs=1, up_scale=4, kernel_size=3, align_corners=True, **SETR),
        PLAIN,
    ),
    "SETR-MLA": (
        dict(
            type="SETRMLAHead", mla_channels=2, up_scale=4, norm_cfg=BN, in_channels=[WIDTH] * 4, in_index=[0, 1, 2, 3]
        ),
        PLAIN,
    ),
    "FCN": (dict(type="FCNHead", num_convs=2, norm_cfg=BN, **ONE), PLAIN),
    "PSP": (dict(type="PSPHead", pool_scales=(1, 2), norm_cfg=BN, **ONE), PLAIN),
    "ASPP": (dict(type="ASPPHead", dilations=(1, 2), norm_cfg=BN, **ONE), PLAIN),
    "UPer": (dict(type="UPerHead", pool_scales=(1, 2), norm_cfg=BN, **FOUR), PYRAMID),
    "SegFormer": (dict(type="SegformerHead", norm_cfg=BN, **FOUR), PYRAMID),
    "FPN": (dict(type="FPNHead", feature_strides=[4, 8, 16, 32], norm_cfg=BN, **FOUR), PYRAMID),
    # these write to what convolutions or matrix products give, or have statistics of their own
    "FCN without norms": (dict(type="FCNHead", num_convs=2, **ONE), PLAIN),
    "SegFormer without norms": (dict(type="SegformerHead", **FOUR), PYRAMID),
    "non-local": (dict(type="NLHead", norm_cfg=BN, **ONE), PLAIN),
    "DNL": (dict(type="DNLHead", norm_cfg=BN, **ONE), PLAIN),
    "EMA": (dict(type="EMAHead", ema_channels=WIDTH, num_bases=4, num_stages=2, norm_cfg=BN, **ONE), PLAIN),
}


def make(kind: str, **settings: Any) -> tuple[nn.Module, list[Tensor]]:
    config, shapes = HEADS[kind]
    with DefaultScope.overwrite_default_scope("mmseg"):
        head = MODELS.build(dict(channels=WIDTH, num_classes=CLASSES) | config | settings)
    torch.manual_seed(0)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return head, [torch.randn(2, *shape) for shape in shapes]


def samples_of(height: int, width: int, classes: int = CLASSES) -> list[SegDataSample]:
    labels = torch.randint(0, classes, (2, 1, height, width))
    labels[:, :, :2] = 255
    return [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]


def step(head: nn.Module, maps: list[Tensor], samples: Any) -> dict[str, Tensor]:
    """All that a training step of a head gives and changes."""
    head.train()
    maps = [one.detach().clone().requires_grad_() for one in maps]
    torch.manual_seed(1)  # of dropout
    losses = head.loss(maps, samples, ConfigDict())
    sum(value for key, value in losses.items() if key.startswith("loss")).backward()
    found = {**losses, **{f"map {i}": one.grad for i, one in enumerate(maps) if one.grad is not None}}
    found |= {f"gradient {name}": p.grad for name, p in head.named_parameters() if p.grad is not None}
    return found | {f"state {name}": value.clone() for name, value in head.state_dict().items()}


def assert_equal(found: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    assert list(found) == list(right)
    for name, value in right.items():
        assert found[name].shape == value.shape, name
        least = tolerance * (1 + float(value.detach().abs().max()))
        assert (found[name] - value).abs().max() <= least, name


def compare(
    head: nn.Module, maps: list[Tensor], samples: Any, recompute: bool, dtype: torch.dtype, tolerance: float = 1e-9
) -> None:
    head, maps = head.to(dtype), [one.to(dtype) for one in maps]
    lean = copy.deepcopy(head)
    assert make_heads_lean(lean, recompute) == {"": ""}
    try:
        right = step(head, maps, samples)
    except IndexError:
        pytest.skip("this mmseg's class weights do not know ignored labels")
    assert_equal(step(lean, maps, samples), right, tolerance if dtype is torch.float64 else 1e-4)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kind", HEADS)
def test_losses_gradients_and_statistics_are_the_plain_heads(kind: str, recompute: bool) -> None:
    head, maps = make(kind)
    compare(head, maps, samples_of(64, 48), recompute, torch.float64)


@pytest.mark.parametrize("kind", ["SETR-PUP", "SETR-MLA", "SegFormer"])
@pytest.mark.parametrize("size", [(64, 48), (61, 50), (30, 20)])
def test_label_maps_of_any_size(kind: str, size: tuple[int, int]) -> None:
    head, maps = make(kind)
    compare(head, maps, samples_of(*size), True, torch.float32)


CE = dict(type="CrossEntropyLoss")
LOSSES: dict[str, Any] = {
    "mean": CE,
    "of what counts": dict(CE, avg_non_ignore=True, loss_weight=0.4),
    "class weights": dict(CE, class_weight=[0.1, 1.0, 2.0, 1.3, 3.0]),
    "sum": dict(CE, reduction="sum"),
    "sigmoid": dict(CE, use_sigmoid=True),
    "sigmoid of what counts": dict(CE, use_sigmoid=True, avg_non_ignore=True),
    "focal": dict(type="FocalLoss"),
    "Dice": dict(type="DiceLoss", use_sigmoid=False),
    "naive Dice": dict(type="DiceLoss", use_sigmoid=True, naive_dice=True, ignore_index=2),
    "Tversky": dict(type="TverskyLoss", class_weight=[0.1, 1.0, 2.0, 1.3, 3.0]),
    "several": [CE, dict(type="DiceLoss", loss_weight=3.0, use_sigmoid=False), dict(CE, loss_weight=0.5)],
}


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_of_mmseg(kind: str) -> None:
    head, maps = make("SETR-PUP", loss_decode=LOSSES[kind])
    in_float32 = kind not in ("mean", "of what counts", "class weights", "sum")  # in part, by mmseg itself
    try:
        compare(head, maps, samples_of(64, 48), False, torch.float64, 1e-6 if in_float32 else 1e-9)
    except RuntimeError as error:
        if kind == "focal" and "must match the size" in str(error):
            pytest.skip("this mmseg's FocalLoss does not run on a CPU")
        raise


@pytest.mark.parametrize("thresh", [None, 0.3])
@pytest.mark.parametrize("loss", ["mean", "class weights", "several of one kind"])
def test_sampled_pixels(thresh: float | None, loss: str) -> None:
    losses = LOSSES.get(loss, [CE, dict(CE, loss_weight=0.5, loss_name="loss_more")])
    sampler = dict(type="OHEMPixelSampler", thresh=thresh, min_kept=300)
    head, maps = make("FCN", loss_decode=losses, sampler=sampler)
    compare(head, maps, samples_of(64, 48), False, torch.float64)


@pytest.mark.parametrize("losses", [dict(CE, use_sigmoid=True), [dict(CE, use_sigmoid=True, loss_weight=2.0)]])
def test_one_channel_for_two_classes(losses: Any) -> None:
    head, maps = make("SETR-PUP", num_classes=2, out_channels=1, threshold=0.3, loss_decode=losses)
    compare(head, maps, samples_of(64, 48, classes=2), False, torch.float64, 1e-6)


@pytest.mark.parametrize("classes", [1, CLASSES])
def test_labels_that_a_sigmoid_loss_has_no_channel_for_are_an_error_as_in_mmseg(classes: int) -> None:
    settings = dict(num_classes=max(2, classes), out_channels=classes, loss_decode=dict(CE, use_sigmoid=True))
    head, maps = make("FCN", **settings)
    samples = samples_of(16, 12, max(2, classes) + 1)
    for sample in samples:
        sample.gt_sem_seg.data[:, 3:5] = max(2, classes)
    with pytest.raises((AssertionError, IndexError)):
        step(head, maps, samples)
    make_heads_lean(head)
    with pytest.raises(RuntimeError, match=f"labels from {max(2, classes)} on, and the sigmoid loss"):
        step(head, maps, samples)


def test_all_pixels_are_ignored() -> None:
    head, maps = make("SETR-PUP")
    samples = samples_of(64, 48)
    for sample in samples:
        sample.gt_sem_seg.data.fill_(255)
    compare(head, maps, samples, False, torch.float64)


LEFT_ALONE = {
    "a loss that sorts": (
        dict(type="FCNHead", loss_decode=dict(type="LovaszLoss", reduction="none"), **ONE),
        "LovaszLoss is",
    ),
    "losses of its own": (dict(type="DAHead", pam_channels=4, **ONE), "DAHead has a loss_by_feat of its own"),
    "a context's loss": (
        dict(type="EncHead", num_codes=4, norm_cfg=BN, **FOUR),
        "EncHead has a loss_by_feat of its own",
    ),
    "of points": (
        dict(type="FCNHead", loss_decode=[CE, dict(type="FocalLoss")], sampler=dict(type="OHEMPixelSampler"), **ONE),
        "OHEMPixelSampler beside a loss that is not softmax",
    ),
}


@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_other_heads_are_left_alone_with_the_reason(kind: str) -> None:
    config, reason = LEFT_ALONE[kind]
    with DefaultScope.overwrite_default_scope("mmseg"):
        head = MODELS.build(dict(channels=WIDTH, num_classes=CLASSES) | config)
    plain = type(head)
    (told,) = make_heads_lean(head).values()
    assert told.startswith(reason) and type(head) is plain


@pytest.mark.parametrize("kind", HEADS)
def test_inference_and_state_dict_stay_and_the_way_back(kind: str) -> None:
    head, maps = make(kind)
    head.eval()
    plain, before, state = type(head), head.forward(maps), copy.deepcopy(head.state_dict())
    make_heads_lean(head, recompute=True)
    assert isinstance(head, LeanHead) and isinstance(head, plain)
    assert make_heads_lean(head) == {"": ""} and not head.recomputes  # again, otherwise
    assert torch.equal(head.forward(maps), before)
    assert list(head.state_dict()) == list(state)
    change_back(head)
    assert type(head) is plain and "recomputes" not in vars(head)
    assert torch.equal(head.forward(maps), before)


def test_what_is_computed_again_keeps_statistics_and_the_mode() -> None:
    head, maps = make("SETR-PUP")
    make_heads_lean(head, recompute=True)
    head.train()
    head.up_convs[0][0].bn.eval()  # as frozen norms are
    for _ in range(2):
        head.loss([one.requires_grad_() for one in maps], samples_of(64, 48), ConfigDict())["loss_ce"].backward()
    norms = [up[0].bn for up in head.up_convs]
    assert [int(norm.num_batches_tracked) for norm in norms] == [0, 2, 2, 2]
    assert all(norm.track_running_stats for norm in norms)


def test_a_recomputed_head_of_setr_holds_one_piece_at_a_time() -> None:
    """Its last stage is four times as large as the one before: what all of them keep is not there at once."""
    peaks = {}
    for how in ("kept", "recomputed"):
        head, maps = make("SETR-PUP", channels=64)
        make_heads_lean(head, recompute=how == "recomputed")
        head.train()
        maps, samples = [torch.randn(2, WIDTH, 16, 16).requires_grad_() for _ in maps], samples_of(256, 256)
        with PeakBytes() as counted:
            head.loss(maps, samples, ConfigDict())["loss_ce"].backward()
        peaks[how] = counted.peak
    assert peaks["recomputed"] < 0.8 * peaks["kept"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_classifier_under_autocast_is_the_convolution(layout: torch.memory_format) -> None:
    classify = nn.Conv2d(WIDTH, CLASSES, 1)
    maps = torch.randn(2, WIDTH, 6, 4).to(memory_format=layout)
    found = []
    for function in (_classified, lambda convolution, x: convolution(x)):
        x = maps.clone(memory_format=torch.preserve_format).requires_grad_()
        classify.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            logits = function(classify, x)
        logits.float().square().sum().backward()
        found.append((logits, x.grad, classify.weight.grad.clone(), classify.bias.grad.clone()))
    assert found[0][0].dtype == torch.bfloat16 and found[0][1].dtype == torch.float32
    for own, right in zip(*found, strict=True):
        torch.testing.assert_close(own, right, rtol=0.03, atol=0.03 * float(right.detach().abs().max()))


@pytest.mark.parametrize("kind", ["FCN", "SegFormer"])
def test_a_weight_that_is_computed_by_a_hook(kind: str) -> None:
    heads = []
    for _ in range(2):
        head, maps = make(kind)
        convolution: Any = head.conv_seg if kind == "FCN" else head.fusion_conv.conv
        prune.l1_unstructured(convolution, "weight", 0.5)
        heads.append(head.double())
    assert make_heads_lean(heads[1]) == {"": ""}
    maps, samples = [one.double() for one in maps], samples_of(64, 48)
    for _ in range(2):
        right, found = (step(head, maps, samples) for head in heads)
        assert_equal(found, right, 1e-9)
