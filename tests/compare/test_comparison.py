"""A comparison's folder: configs of trials, settings that must stay, scores that are there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from apla_mm.compare.comparison import Comparison, seeded
from apla_mm.compare.study import Study
from apla_mm.compare.trial import Trial
from apla_mm.options.method import take_method


@pytest.mark.parametrize(
    ("method", "seed"),
    [
        ("apla:r=4", 7),
        ("apla:r=0.5", 7),
        ("apla:r=4,seed=2", 2),
        ("apla:r=full", None),
        ("full", None),
        ("lora:r=2", None),
    ],
)
def test_the_seed_of_a_run_draws_channels_unless_the_method_says_how(method: str, seed: int | None) -> None:
    assert seeded(method, 7).get("seed") == seed
    assert "seed" not in seeded("apla:r=4,selection=magnitude", 7)


def make(cfg: Config, folder: Path, study: Study, **settings: Any) -> Comparison:
    def load(options: Mapping[str, Any]) -> Config:
        loaded = Config(cfg.to_dict())
        take_method(loaded, options)
        return loaded

    return Comparison(folder, study, load, Path("tools"), "mIoU", **settings)


def test_trials_have_configs_that_run_by_themselves(segmentation_config: Config, tmp_path: Path) -> None:
    comparison = make(segmentation_config, tmp_path / "out", Study(("apla:r=4",), head_lr=1e-3))
    for trial in (Trial("search", "apla:r=4", 1.0, 0, 1e-4, 1e-3), Trial("final", "apla:r=4", 0.5, 3, 1e-4, 1e-3)):
        folder = comparison.prepare(trial)
        assert folder == comparison.prepare(trial)
        cfg = Config.fromfile(folder / "config.py")
        assert cfg.randomness.seed == trial.seed and cfg.model.backbone.apla == dict(r=4, seed=trial.seed)
        assert cfg.optim_wrapper.optimizer.lr == 1e-3 and cfg.optim_wrapper.paramwise_cfg.part_lr == dict(backbone=1e-4)
        assert cfg.work_dir == str(folder / "run")
    assert comparison.scores() == {}


def test_scores_are_read_from_what_trials_wrote(segmentation_config: Config, tmp_path: Path) -> None:
    comparison = make(segmentation_config, tmp_path / "out", Study(("full",), head_lr=1e-3))
    search, final, failed = (
        Trial(kind, "full", 1.0, 0, lr, 1e-3) for kind, lr in (("search", 1e-4), ("final", 1e-4), ("search", 1e-3))
    )
    (comparison.prepare(search) / "trained.json").write_text(json.dumps(dict(scores=dict(mIoU=40.0))))
    (comparison.prepare(final) / "scored.json").write_text(json.dumps(dict(mIoU=50.0)))
    (comparison.prepare(failed) / "failed.json").write_text(json.dumps(dict(tool="train", last="", log="")))
    assert comparison.scores() == {search: 40.0, final: 50.0, failed: None}
    comparison.forget_failures()
    assert failed not in comparison.scores()


def test_a_folder_of_other_settings_is_refused_and_more_methods_are_not(
    segmentation_config: Config, tmp_path: Path
) -> None:
    make(segmentation_config, tmp_path / "out", Study(("full",), head_lr=1e-3))
    make(segmentation_config, tmp_path / "out", Study(("full", "head"), seeds=5, head_lr=1e-3))
    with pytest.raises(ValueError, match=r"with other settings \(held_out, head_lr\)"):
        make(segmentation_config, tmp_path / "out", Study(("full",)), held_out=0.5)
    segmentation_config.train_cfg.max_iters += 1
    with pytest.raises(ValueError, match=r"with other settings \(config\)"):
        make(segmentation_config, tmp_path / "out", Study(("full",), head_lr=1e-3))
