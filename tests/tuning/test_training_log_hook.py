import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mmengine.runner import Runner

from apla_mm.models import APLAViT
from apla_mm.tuning import training_log_hook
from apla_mm.tuning.apla_hook import APLAHook
from apla_mm.tuning.training_log_hook import TrainingLogHook

PEAK = re.compile(r"peak memory after (\d+) iterations?: ([\d.]+) GiB of ([\d.]+) GiB \((.*)\)")
CONSTRUCTORS = ["DefaultOptimWrapperConstructor", "TrainableOptimWrapperConstructor"]
POLY = dict(type="PolyLR", power=1.0, eta_min=0.0, begin=0, end=5, by_epoch=False)


def optim_wrapper(constructor: str, keys: dict[str, float], **paramwise: float) -> dict[str, Any]:
    custom = {key: dict(lr_mult=mult) for key, mult in keys.items()}
    return dict(
        optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.1),
        constructor=constructor,
        paramwise_cfg=dict(custom_keys=custom, **paramwise),
    )


def scalars(tmp_path: Path) -> list[dict[str, float]]:
    files = sorted(tmp_path.glob("work/*/vis_data/scalars.json"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture
def plain_classifier(tiny_classifier: Any) -> Any:
    """The same with a backbone that has not adapted itself."""
    tiny_classifier.backbone = APLAViT(
        "vit_tiny_patch16_224", pretrained=False, img_size=32, model_kwargs=dict(depth=2, embed_dim=32, num_heads=2)
    )
    return tiny_classifier


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_each_learning_rate_is_logged_by_name_and_again_after_resuming(
    constructor: str, make_runner: Callable[..., Runner], plain_classifier: Any, read_log: Any, tmp_path: Path
) -> None:
    def run(max_iters: int, **settings: Any) -> None:
        runner = make_runner(
            copy.deepcopy(plain_classifier),
            max_iters=max_iters,
            optim_wrapper=optim_wrapper(constructor, {"head": 10.0}, bias_decay_mult=0.0),
            param_scheduler=[dict(POLY)],
            custom_hooks=[APLAHook(r=8), TrainingLogHook()],  # replaces what the optimizer has got
            **settings,
        )
        runner.train()

    run(2)
    log = read_log()
    table = log.partition("optimizer's groups, before the schedule:\n")[2].splitlines()[:4]
    assert [" ".join(row.split()) for row in table] == [
        "group trained lr weight decay",
        "backbone 512 0.001 0.1",
        "backbone no decay 16 0.001 0",
        "head 99 0.01 0.1",
    ]
    for now in ("1.0000e-03", "7.5000e-04"):
        assert f"backbone.lr: {now} head.lr: {now.replace('-03', '-02').replace('-04', '-03')}  " in log
    run(4, resume=True)
    rows = scalars(tmp_path)
    assert [row["iter"] for row in rows] == [1, 2, 3, 4]
    for i, row in enumerate(rows):
        factor = 1 - i / 4
        assert row["backbone.lr"] == pytest.approx(1e-3 * factor) == row["lr"]
        assert row["head.lr"] == pytest.approx(1e-2 * factor)


BLOCK = "backbone.vit.blocks"
PROJ = f"{BLOCK}.0.attn.proj.trained"


@pytest.mark.parametrize(
    ("keys", "logged"),
    [
        ({}, {}),
        (
            {"head": 2.0, "blocks.0": 0.5, "blocks.1": 0.8},
            {"head": 2e-3, f"{BLOCK}.0.attn.proj.trained": 5e-4, f"{BLOCK}.1.attn.proj.trained": 8e-4},
        ),
        (
            {f"{PROJ}.weight": 0.1, f"{PROJ}.bias": 0.2, "blocks.1": 0.3, "head": 0.4},
            {f"{PROJ}.weight": 1e-4, "head": 4e-4},
        ),
    ],
)
def test_one_learning_rate_is_not_repeated_and_many_are_not_all_told(
    keys: dict[str, float],
    logged: dict[str, float],
    make_runner: Callable[..., Runner],
    tiny_classifier: Any,
    tmp_path: Path,
) -> None:
    wrapper = optim_wrapper("TrainableOptimWrapperConstructor", keys)
    runner = make_runner(tiny_classifier, 1, optim_wrapper=wrapper, custom_hooks=[TrainingLogHook(max_lrs=3)])
    runner.message_hub.update_scalar("train/neck.lr", 1.0)  # as from a checkpoint of other groups
    runner.train()
    (row,) = scalars(tmp_path)
    names = {key.removesuffix(".lr"): value for key, value in row.items() if key.endswith(".lr")}
    assert names == pytest.approx(logged)


def resident_peak() -> float:
    """In GiB, as Linux tells."""
    (size,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(size) / 2**20


@pytest.mark.parametrize(("memory_after", "told"), [(2, 2), (10, 3)])
def test_peak_memory_is_told_once(
    memory_after: int, told: int, make_runner: Callable[..., Runner], tiny_classifier: Any, read_log: Any
) -> None:
    before = resident_peak()
    make_runner(tiny_classifier, 3, custom_hooks=[TrainingLogHook(memory_after)]).train()
    ((iterations, peak, total, where),) = PEAK.findall(read_log())
    assert (int(iterations), where) == (told, "CPU")
    assert before - 0.01 <= float(peak) <= resident_peak() + 0.01
    (size,) = re.findall(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert float(total) == pytest.approx(int(size) / 2**20, abs=0.06)


def test_peak_of_a_gpu_outlives_mmengines_reset_and_the_largest_of_all_processes_counts(
    make_runner: Callable[..., Runner], tiny_classifier: Any, read_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = iter([2 * 2**30, 3 * 2**30, 1 * 2**30])
    monkeypatch.setattr(training_log_hook, "peak_memory", lambda: next(peaks))
    monkeypatch.setattr(training_log_hook, "device_memory", lambda: (80 * 2**30, "GPU"))
    make_runner(tiny_classifier, 4, custom_hooks=[TrainingLogHook(memory_after=3)]).train()
    assert PEAK.findall(read_log()) == [("3", "3.00", "80.0", "GPU")]

    monkeypatch.setattr(training_log_hook, "all_gather_object", lambda one: [one, (7 * 2**30, 40 * 2**30, "other")])
    monkeypatch.setattr(training_log_hook, "get_world_size", lambda: 2)
    hook = TrainingLogHook()
    hook._peak = 5 * 2**30
    hook._log_memory()
    assert PEAK.findall(read_log())[1:] == [("0", "7.00", "40.0", "other; the largest of 2 processes")]
