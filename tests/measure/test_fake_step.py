"""Counts on fake tensors, against the same step on real ones."""

import gc
import time
from collections.abc import Callable
from dataclasses import asdict

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers.nets import tiny_vit
from helpers.optional import needs
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from apla_mm.measure import (
    Fit,
    PeakBytes,
    TrainingStep,
    compared_methods,
    count_peak,
    count_step,
    fake_tensors,
    largest_batch,
    step_cost,
)
from apla_mm.method import adapt

METHODS = {method.name: method.method for method in compared_methods([4, "full"], ["mlp", "linear", "block"])}


def make(
    method: str, width: int = 32, size: int = 32, batch: int = 2, dtype: torch.dtype = torch.float32
) -> TrainingStep:
    backbone = tiny_vit(num_classes=0, embed_dim=width, img_size=size)
    model = nn.ModuleDict(dict(backbone=backbone, head=nn.Linear(width, 3)))
    METHODS[method].prepare(model.backbone)
    x, y = torch.randn(batch, 3, size, size), torch.randint(3, (batch,))
    return TrainingStep(model.train(), lambda: F.cross_entropy(model.head(model.backbone(x)), y), dtype)


def allocated_peak(run: Callable[[], object]) -> int:
    """What torch's own allocator handed out at most at once while this ran, by the profiler's record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("method", METHODS)
def test_counts_are_those_of_the_real_step(method: str) -> None:
    counted = count_step(lambda: make(method))
    step = make(method)
    real = step_cost(step)
    assert {key: value for key, value in asdict(counted).items() if key in asdict(real)} == asdict(real)
    model = [*step.model.parameters(), *step.model.buffers()]
    assert counted.model_bytes == sum(tensor.nbytes for tensor in model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["full fine-tuning", "APLA r=4", "APLA r=4, mlp", "APLA r=4, block"])
def test_the_peak_is_what_the_allocator_hands_out(method: str, dtype: torch.dtype) -> None:
    def build() -> TrainingStep:  # large enough that a kernel's workspace is little
        return make(method, width=128, size=192, batch=4, dtype=dtype)

    step = build()
    step()
    cost = step_cost(step)  # leaves no gradients
    before = sum(t.nbytes for t in (*step.model.parameters(), *step.model.buffers())) + cost.optimizer_bytes
    before += 4 * (3 * 192 * 192 * 4 + 8)  # the batch
    gc.collect()
    real = before + allocated_peak(step)
    assert count_peak(build) == pytest.approx(real, rel=0.03)


def test_peak_of_tensors_that_come_and_go() -> None:
    with PeakBytes() as peak:
        a = torch.zeros(100)
        b = a[:10]
        del a  # the view keeps the storage
        assert (peak.live, peak.peak) == (400, 400)
        b = b + 1
        assert (peak.live, peak.peak) == (40, 440)
        peak.reset()
        torch.zeros(50)
        assert (peak.live, peak.peak) == (40, 240)
    del b
    assert peak.live == 0


def test_what_building_leaves_behind_does_not_count() -> None:
    def build() -> TrainingStep:
        with torch.device("meta"):  # as a backbone that asks what its like would give
            nn.Linear(1000, 1000)
        behind = tiny_vit(embed_dim=64)
        behind.itself = [behind]  # only the garbage collector frees it
        return make("APLA r=4")

    assert count_peak(build) == count_peak(lambda: make("APLA r=4"))


def test_values_that_constructors_and_losses_read() -> None:
    with fake_tensors():
        model = tiny_vit(num_classes=0, depth=3, drop_path_rate=0.2)
        rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
        assert rates == pytest.approx([0.0, 0.1, 0.2])
        x = torch.randn(4, 5)
        assert x[:, torch.ones(5) > 0].shape == (4, 5) and x[x > 0].shape == x.masked_select(x > 0).shape == (20,)
        assert (x > 0).nonzero().shape == (20, 2) and x[x[:, 0] > 0, 1].shape == (4,)
        assert x.sum().item() == 1.0 and bool((x > 0).any())


def test_a_step_that_depends_on_values_is_refused() -> None:
    def build() -> TrainingStep:
        layer = nn.Linear(4, 4)
        return TrainingStep(layer, lambda: layer(torch.randn(2, 4)).unique().sum())

    with pytest.raises(ValueError, match="depends on its tensors' values and cannot be counted: aten._unique2"):
        count_step(build)
    assert torch.zeros(1).tolist() == [0.0]


def test_a_head_of_mmseg_counts_as_it_runs() -> None:
    needs("mmseg")
    from mmengine.structures import PixelData
    from mmseg.models.decode_heads import FCNHead
    from mmseg.structures import SegDataSample

    def build() -> TrainingStep:
        head = FCNHead(in_channels=4, channels=8, num_classes=5, num_convs=1, norm_cfg=dict(type="BN"), in_index=0)
        x, labels = torch.randn(2, 4, 8, 8), torch.randint(5, (2, 1, 32, 32))
        samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]

        def loss() -> Tensor:
            return sum(v for k, v in head.loss([x], samples, {}).items() if k.startswith("loss"))

        return TrainingStep(head, loss)

    counted, real = count_step(build), step_cost(build())
    assert {key: value for key, value in asdict(counted).items() if key in asdict(real)} == asdict(real)


@pytest.mark.slow
def test_a_model_that_fits_nowhere_is_counted_in_seconds() -> None:
    def build() -> TrainingStep:
        model = timm.create_model("vit_giant_patch14_224", num_classes=0, img_size=1024)
        adapt(model, r=0.125, recompute="block")
        x = torch.randn(16, 3, 1024, 1024)
        return TrainingStep(model, lambda: model(x).square().mean())

    start = time.perf_counter()
    peak = count_peak(build)
    assert time.perf_counter() - start < 60  # some 5 s on an idle machine
    assert 20 * 2**30 < peak < 40 * 2**30


@pytest.mark.parametrize(
    ("peak", "memory", "fit"),
    [
        (lambda n: 100 + 10 * n, 175, Fit(7, 170)),
        (lambda n: 100 + 10 * n, 170, Fit(7, 170)),
        (lambda n: 100 + 10 * n, 105, Fit(0, 110)),
        (lambda n: max(500, 10 * n), 2005, Fit(200, 2000)),  # of the optimizer, until the activations exceed it
        (lambda n: 10 * n + 3 * (n % 2), 1000, Fit(100, 1000)),
        (lambda n: 5, 10, Fit(64, 5)),
    ],
)
def test_largest_batch(peak: Callable[[int], int], memory: int, fit: Fit) -> None:
    counted: list[int] = []
    assert (
        largest_batch(lambda n: counted.append(n) or peak(n), memory, most=64 if fit.peak_bytes == 5 else 2**16) == fit
    )
    assert len(counted) < 20 and len(set(counted)) == len(counted)
