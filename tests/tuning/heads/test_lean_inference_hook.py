"""The hook in real runs: the same scores, and no logits of the image's size."""

import copy
from pathlib import Path
from typing import Any

import pytest
from helpers.logs import log_of
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

pytestmark = pytest.mark.slow


class Sees(Hook):
    """Notes which entries predictions have."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.keys |= {key for sample in outputs for key in sample.all_keys()}


def scores(cfg: Config, lean: bool, mode: str) -> tuple[dict[str, float], set[str]]:
    cfg = copy.deepcopy(cfg)
    cfg.model.test_cfg = dict(mode=mode) if mode == "whole" else dict(mode=mode, crop_size=(32, 32), stride=(20, 20))
    cfg.default_hooks.pop("lean_inference", None)
    if lean:
        cfg.default_hooks.lean_inference = dict(type="LeanInferenceHook")
    cfg.randomness, cfg.visualizer.name = dict(seed=0), f"{mode}{lean}"
    runner, sees = Runner.from_cfg(cfg), Sees()
    runner.register_hook(sees)
    return runner.test(), sees.keys


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_scores_are_the_plain_ones(segmentation_config: Config, mode: str) -> None:
    plain, plain_keys = scores(segmentation_config, False, mode)
    lean, lean_keys = scores(segmentation_config, True, mode)
    assert lean == plain and 0 < plain["mIoU"] < 100
    assert "seg_logits" in plain_keys and "seg_logits" not in lean_keys and "pred_sem_seg" in lean_keys


def test_configs_have_it_and_the_log_names_what_is_left_alone(segmentation_config: Config) -> None:
    cfg = segmentation_config
    assert cfg.default_hooks.lean_inference == dict(type="LeanInferenceHook")
    cfg.model.data_preprocessor.setdefault("test_cfg", None)
    runner = Runner.from_cfg(cfg)

    class Own(type(runner.model)):  # type: ignore[misc]
        def postprocess_result(self, *args: Any, **kwargs: Any) -> Any:
            return super().postprocess_result(*args, **kwargs)

    runner.model.__class__ = Own
    for _ in range(2):
        runner.test()
    log = log_of(Path(cfg.work_dir))
    assert log.count("is left alone: ") == 1 and "postprocess_result" in log
