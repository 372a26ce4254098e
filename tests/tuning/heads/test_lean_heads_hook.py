"""The hook on whole segmentors: the same training, with less."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.logs import log_of
from helpers.nets import TinyClassifier
from helpers.small_configs import shrink
from mmengine.config import Config
from mmengine.runner import Runner

from apla_mm.models.heads.lean_heads import LeanHead

pytestmark = pytest.mark.slow


def trained(cfg: Config, lean: Any, name: str) -> Runner:
    cfg = copy.deepcopy(cfg)
    if lean is None:
        del cfg.default_hooks.lean_heads
    else:
        cfg.default_hooks.lean_heads = lean
    cfg.work_dir, cfg.randomness = f"{cfg.work_dir}/{name}", dict(seed=0)
    cfg.visualizer.name = name
    cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = 4
    cfg.optim_wrapper.optimizer = dict(type="SGD", lr=0.01, weight_decay=0.0)  # AdamW makes steps of rounding
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize("recompute", [False, True])
def test_run_is_the_plain_one(segmentation_config: Config, recompute: bool, tmp_path: Any) -> None:
    lean = trained(segmentation_config, dict(type="LeanHeadsHook", recompute=recompute), f"lean{recompute}")
    plain = trained(segmentation_config, None, f"plain{recompute}")
    heads = [m for m in lean.model.modules() if isinstance(m, LeanHead)]
    assert len(heads) == 4 and all(head.recomputes is recompute for head in heads)
    assert not any(isinstance(m, LeanHead) for m in plain.model.modules())
    scalars = [runner.message_hub.log_scalars for runner in (lean, plain)]
    for key in ("train/decode.loss_ce", "train/aux_0.loss_ce", "train/decode.acc_seg", "train/loss"):
        values = [torch.tensor([float(v) for v in one[key].data[0]]) for one in scalars]
        torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-4)
    states = [runner.model.state_dict() for runner in (lean, plain)]
    assert list(states[0]) == list(states[1])
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_log_says_what_was_changed_and_what_left_alone(segmentation_config: Config) -> None:
    cfg = segmentation_config
    cfg.model.auxiliary_head[1].loss_decode = dict(type="LovaszLoss", reduction="none", loss_weight=0.4)
    runner = trained(cfg, dict(type="LeanHeadsHook"), "log")
    assert (
        "3 of 4 heads compute their losses from small logits; 'auxiliary_head.1' is left alone: LovaszLoss is no "
        "function of sums over pixels" in log_of(Path(runner.work_dir))
    )


def test_model_without_heads_is_an_error(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner(TinyClassifier(apla=dict(r=8)), custom_hooks=[dict(type="LeanHeadsHook")])
    with pytest.raises(ValueError, match="no decode head of mmseg's and no part of mmdet's; leave the hook out"):
        runner.train()


def test_shrunken_configs_have_it() -> None:
    from helpers import ROOT

    cfg = Config.fromfile(ROOT / "configs/seg/apla_vitb_ade.py")
    shrink(cfg)
    assert cfg.default_hooks.lean_heads == dict(type="LeanHeadsHook")
