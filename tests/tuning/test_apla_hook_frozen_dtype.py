"""APLAHook(frozen_dtype='bfloat16') under autocast: the same training, and the same checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.backbones import BACKBONES, build, make_runner
from helpers.comparisons import assert_same_checkpoint
from helpers.logs import log_of
from helpers.nets import TinyClassifier
from helpers.optional import needs
from mmengine.runner import Runner
from torch import Tensor

from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.method.memory.frozen_dtype import held_names

PARTS = ("state_dict", "ema_state_dict", "optimizer")


def runner_of(work_dir: Path, frozen_dtype: str | None, wrapper: str = "BFloat16OptimWrapper", **kwargs: Any) -> Runner:
    needs("mmseg")
    model = build(*BACKBONES["mmseg ViT"][:2])
    hook = dict(type="APLAHook", r=3, frozen_dtype=frozen_dtype, train_norm=True)
    return make_runner(
        model,
        work_dir,
        {},
        custom_hooks=[hook, dict(type="EMAHook", momentum=0.1)],
        optim_wrapper=dict(type=wrapper, optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.1)),
        randomness=dict(seed=0),
        **kwargs,
    )


def test_checkpoints_are_equal_and_either_resumes_the_other(tmp_path: Path) -> None:
    for name, dtype in (("plain", None), ("held", "bfloat16")):
        runner = runner_of(tmp_path / name, dtype)
        runner.train()
        assert len(held_names(runner.model)) == (10 if dtype else 0)
    plain, held = (read_checkpoint(tmp_path / name / "iter_3.pth") for name in ("plain", "held"))
    assert_same_checkpoint(plain, held, PARTS)
    assert {type(tensor) for tensor in held["state_dict"].values()} == {Tensor}
    assert held["meta"]["apla"]["frozen_dtype"] == "bfloat16" and "frozen_dtype" not in plain["meta"]["apla"]
    assert "10 frozen weights held in bfloat16" in log_of(tmp_path / "held")

    for name, dtype in (("plain", "bfloat16"), ("held", None)):
        checkpoint = tmp_path / ("held" if name == "plain" else "plain") / "iter_3.pth"
        runner_of(tmp_path / f"{name} again", dtype, iters=5, load_from=str(checkpoint), resume=True).train()
    again = (tmp_path / f"{name} again" / "iter_5.pth" for name in ("plain", "held"))
    assert_same_checkpoint(*again, parts=PARTS)


@pytest.mark.parametrize(("wrapper", "warns"), [("BFloat16OptimWrapper", False), ("OptimWrapper", True)])
def test_without_autocast_there_is_a_warning(tmp_path: Path, wrapper: str, warns: bool) -> None:
    runner_of(tmp_path, "bfloat16", wrapper, iters=1).train()
    assert ("held in another dtype act so under autocast alone" in log_of(tmp_path)) is warns


def test_a_backbone_that_adapts_itself_holds_too() -> None:
    torch.manual_seed(0)
    model = TinyClassifier(apla=dict(r=4, frozen_dtype="bfloat16"))
    assert len(held_names(model.backbone)) == 7
    assert model.backbone.report is not None and len(model.backbone.report.held) == 7
