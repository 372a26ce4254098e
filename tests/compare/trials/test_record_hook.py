"""What a run writes down of itself."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from helpers.nets import TinyClassifier
from mmengine.evaluator import BaseMetric
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from apla_mm.compare.trials.record_hook import RecordHook


class Share(BaseMetric):
    """A score, one that is no number, and a name."""

    def process(self, data_batch: object, data_samples: object) -> None:
        self.results.append(1)

    def compute_metrics(self, results: list[int]) -> dict[str, object]:
        return {"share": 0.25 * len(results), "nothing": math.nan, "name": "text"}


def test_counts_times_and_scores(make_runner: Callable[..., Runner], tmp_path: Path) -> None:
    model = TinyClassifier(apla=dict(r=3))
    loader = DataLoader([dict(inputs=torch.zeros(3, 32, 32), labels=0)] * 2, batch_size=1)
    runner = make_runner(
        model,
        max_iters=5,
        train_cfg=dict(by_epoch=False, max_iters=5, val_interval=5),
        val_dataloader=loader,
        val_evaluator=[Share()],
        val_cfg=dict(),
        test_dataloader=loader,
        test_evaluator=[Share()],
        test_cfg=dict(),
        custom_hooks=[dict(type="RecordHook", folder=str(tmp_path / "trial"))],
    )
    runner.train()
    trained = json.loads((tmp_path / "trial/trained.json").read_text())
    assert trained["backbone"] == sum(p.numel() for p in model.backbone.parameters() if p.requires_grad) == 2 * 3 * 33
    assert trained["all"] == trained["backbone"] + 32 * 3 + 3
    assert trained["scores"] == {"share": 0.5, "nothing": None}
    assert 0 < trained["step"] < 60 and trained["peak"] > 2**27
    assert not (tmp_path / "trial/scored.json").exists()
    runner.test()
    assert json.loads((tmp_path / "trial/scored.json").read_text()) == {"share": 0.5, "nothing": None}


def test_the_step_is_the_median_without_the_first_tenth() -> None:
    hook = RecordHook("unused")
    hook.times = [100.0, 100.0, *[1.0] * 4, *[2.0] * 5, *[3.0] * 9]
    assert hook.median_step() == 2.5
    hook.times = []
    assert hook.median_step() is None
