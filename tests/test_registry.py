"""Configs with a base of this package, read by mmengine itself and run by its Runner, as those with a base by path."""

from pathlib import Path

import pytest
from helpers import small_configs
from helpers.comparisons import assert_same
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from apla_mm.models import APLAViT
from apla_mm.registry import REGISTRIES

pytestmark = pytest.mark.slow


def test_training_and_validation_are_those_of_the_base_by_path(data_root: Path, tmp_path: Path) -> None:
    found = []
    file = tmp_path / "named.py"
    file.write_text("_base_ = 'apla_mm::seg/apla_vitb_custom.py'\n")
    for name, how in dict(path={}, named=dict(file=file)).items():
        cfg = small_configs.segmentation_config(data_root, tmp_path / name, **how)
        cfg.randomness = dict(seed=0)
        assert (cfg.model.get("_scope_") == "apla_mm") is (name == "named")
        with DefaultScope.overwrite_default_scope(None):
            runner = Runner.from_cfg(cfg)
            runner.train()
        found.append((type(runner.model), runner.model.state_dict(), runner.message_hub.log_scalars))
    (kind_of_path, state, scalars), (kind_of_named, named, named_scalars) = found
    assert kind_of_path is kind_of_named
    assert_same(state, named)
    scores = {key: one.current() for key, one in scalars.items() if key.startswith("val/") and "time" not in key}
    assert scores and scores == {key: named_scalars[key].current() for key in scores}


def test_parts_are_found_in_the_scope_that_was_left_for_this_one() -> None:
    (models,) = (registry for registry in REGISTRIES if registry.parent is MODELS)
    for scope, part in dict(mmseg="SETRUPHead", mmdet="RPNHead").items():
        __import__(f"{scope}.models")
        with DefaultScope.overwrite_default_scope(scope), DefaultScope.overwrite_default_scope("apla_mm"):
            assert models.get(part).__module__.startswith(f"{scope}.")
            assert models.get("APLAViT") is APLAViT and models.get("Nowhere") is None
