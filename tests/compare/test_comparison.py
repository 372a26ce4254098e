"""A comparison's folder: configs of trials, settings that must stay, scores that are there."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from apla_mm.compare.comparison import Comparison, seeded
from apla_mm.compare.trials.study import Study
from apla_mm.compare.trials.trial import Trial
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

    return Comparison(folder, study, load, "mIoU", **settings)


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
    (comparison.prepare(final) / "scored.json").write_text(json.dumps(dict(mIoU=None)))
    assert comparison.scores()[final] is None
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


def test_a_metric_that_the_evaluator_does_not_give_ends_it_after_the_first_trial(
    segmentation_config: Config, tmp_path: Path
) -> None:
    comparison = make(segmentation_config, tmp_path / "out", Study(("full",), head_lr=1e-3))
    trial = Trial("search", "full", 1.0, 0, 1e-4, 1e-3)
    (comparison.prepare(trial) / "trained.json").write_text(json.dumps(dict(scores=dict(mDice=40.0))))
    with pytest.raises(ValueError, match="by 'mIoU', and that is none of what the evaluator gave, 'mDice'"):
        comparison.scores()


def test_a_detector_that_found_nothing_scores_zero_and_no_validation_is_told(
    segmentation_config: Config, tmp_path: Path
) -> None:
    comparison = make(segmentation_config, tmp_path / "out", Study(("full",), head_lr=1e-3))
    search, final = (Trial(kind, "full", 1.0, 0, 1e-4, 1e-3) for kind in ("search", "final"))
    record = comparison.prepare(search) / "trained.json"
    record.write_text(json.dumps(dict(scores={})))
    (comparison.prepare(final) / "scored.json").write_text("{}")
    assert comparison.scores() == {search: 0.0, final: 0.0}
    record.write_text(json.dumps(dict(scores=None)))
    with pytest.raises(ValueError, match="training ended without a validation"):
        comparison.scores()


def test_no_method_has_more_trials_than_the_others(segmentation_config: Config, tmp_path: Path) -> None:
    rates = (1e-5, 3e-5, 1e-4, 3e-4)
    seven = make(segmentation_config, tmp_path / "out", Study(("full",), trials=7, head_lr=1e-3))
    for rate in rates:
        trial = Trial("search", "full", 1.0, 0, rate, 1e-3)
        (seven.prepare(trial) / "trained.json").write_text(json.dumps(dict(scores=dict(mIoU=40.0))))
    make(segmentation_config, tmp_path / "out", Study(("full", "lora:r=2"), trials=4, head_lr=1e-3))
    make(segmentation_config, tmp_path / "out", Study(("lora:r=2",), trials=3, head_lr=1e-3))
    with pytest.raises(ValueError, match=r"full, fraction 1: 4 learning rates were tried.*give --trials 4"):
        make(segmentation_config, tmp_path / "out", Study(("full", "lora:r=2"), trials=3, head_lr=1e-3))
    starts = {"full": (1e-6, 3e-6)}
    with pytest.raises(ValueError, match=r"they would be 6, more than the 5 trials of the others"):
        make(segmentation_config, tmp_path / "out", Study(("full",), trials=5, head_lr=1e-3, starts=starts))


class Done:
    """A job that has ended."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def done(self) -> bool:
        return True

    def result(self) -> None:
        if self.error:
            raise self.error


def test_more_trials_later_and_a_trial_that_is_killed(segmentation_config: Config, tmp_path: Path) -> None:
    """With scores that are best at 3e-5 at first, and at 1e-5 once it was tried."""
    out, started, told = tmp_path / "out", [], []

    def submit(_: Any, folder: str, train_args: list[str], test_args: list[str] | None) -> Done:
        trial = Trial(**json.loads(Path(folder, "trial.json").read_text()))
        started.append(trial)
        score = dict(mIoU=-abs(math.log10((trial.lr or 0) / 1e-5)))
        file, record = ("trained.json", dict(scores=score)) if test_args is None else ("scored.json", score)
        Path(folder, file).write_text(json.dumps(record))
        return Done()

    starts = {"full": (3e-5, 1e-4)}
    for trials in (2, 4):
        study = Study(("full",), seeds=1, trials=trials, head_lr=1e-3, starts=starts)
        scores = make(segmentation_config, out, study).run(submit, 1, told.append)
        assert len(scores) == len(started) == len(set(started)) == len(told)
        make(segmentation_config, out, study).keep_chosen()
    finals = [trial.lr for trial in started if trial.kind == "final"]
    assert json.loads((out / "chosen.json").read_text()) == {"full": {"1": dict(lr=finals[1], head_lr=1e-3)}}
    assert finals == [3e-5, study.rate(scores, "full", 1.0)] and finals[1] < 2e-5

    study = Study(("full", "head"), seeds=1, trials=4, head_lr=1e-3, starts=starts)
    killed = make(segmentation_config, out, study)
    with pytest.raises(RuntimeError, match=r"1 trials did not end: final/head/.*: signal 9"):
        killed.run(lambda *_: Done(RuntimeError("signal 9")), 1, told.append)
    assert told[-1].endswith("did not end")
