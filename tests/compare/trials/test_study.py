"""What a comparison runs, on scores that a formula gives."""

import math

import pytest

from apla_mm.compare.trials.study import Study
from apla_mm.compare.trials.trial import Trial

BEST = {"head": 2e-3, "full": 1e-6, "apla:r=64": 1e-3, "lora:r=8": 3e-4}


def score(trial: Trial) -> float:
    rate = trial.head_lr if trial.lr is None else trial.lr
    return 50 - abs(math.log10(rate / BEST[trial.method])) - abs(math.log10(trial.head_lr / 2e-3))


def run(study: Study, scores: dict[Trial, float | None] | None = None) -> dict[Trial, float | None]:
    scores = dict(scores or {})
    while trials := study.next_trials(scores):
        assert len(set(trials)) == len(trials)
        scores |= {trial: score(trial) for trial in trials}
    return scores


def test_all_have_equally_many_trials_one_rate_of_heads_and_their_own_best() -> None:
    study = Study(("head", "full", "apla:r=64"), seeds=2, fractions=(0.5, 1.0), trials=7)
    scores = run(study)
    assert len(scores) == study.count() == 2 * (3 * 7 + 3 * 2)
    for fraction in study.fractions:
        finals = [t for t in scores if t.kind == "final" and t.fraction == fraction]
        assert len({t.head_lr for t in finals}) == 1 and {t.seed for t in finals} == {0, 1}
        for method in study.methods:
            assert len(study.rates_of(scores, method, fraction)) == 7
            found = study.rate(scores, method, fraction)
            assert found is not None and abs(math.log10(found / BEST[method])) < 0.3
            assert all(t.lr is None for t in finals if t.method == "head")


def test_it_goes_on_where_it_was() -> None:
    study = Study(("full", "lora:r=8"), seeds=1, trials=5)
    whole = run(study)
    for cut in (1, 4, 9, 12):
        assert run(study, dict(list(whole.items())[:cut])) == whole
    assert study.next_trials(whole) == []


def test_the_rate_of_heads_may_be_given_and_methods_added_later() -> None:
    study = Study(("full",), seeds=1, trials=3, head_lr=1e-3)
    scores = run(study)
    assert all(t.head_lr == 1e-3 and t.method == "full" for t in scores) and len(scores) == study.count() == 4
    more = run(Study(("full", "head"), seeds=2, trials=3, head_lr=1e-3), scores)
    assert scores.items() <= more.items()
    assert {(t.method, t.seed) for t in more if t.kind == "final"} == {
        ("full", 0),
        ("full", 1),
        ("head", 0),
        ("head", 1),
    }


def test_a_method_of_which_all_trials_failed_has_no_final_run() -> None:
    study = Study(("full", "apla:r=64"), seeds=2, trials=4, head_lr=1e-3)
    scores: dict[Trial, float | None] = {}
    while trials := study.next_trials(scores):
        scores |= {t: None if t.method == "full" else score(t) for t in trials}
    assert {t.method for t in scores if t.kind == "final"} == {"apla:r=64"}
    assert study.rate(scores, "full", 1.0) is None


def test_folders_tell_trials_apart() -> None:
    study = Study(("head", "full", "apla:r=64"), seeds=2, fractions=(0.5, 1.0), trials=5)
    scores = run(study)
    assert len({trial.folder for trial in scores}) == len(scores)
    assert Trial("final", "a.b.C:x=1/2", 1.0, 0, None, 1e-3).folder.parts[1] == "a.b.C_x=1_2"


@pytest.mark.parametrize("trials", [3, 5])
def test_starts_may_be_given(trials: int) -> None:
    study = Study(("full",), trials=trials, head_lr=1e-3, starts={"full": (3e-6, 1e-5, 3e-5)})
    assert {t.lr for t in study.next_trials({})} == {3e-6, 1e-5, 3e-5}


def test_one_rate_that_is_given_is_taken_without_a_trial() -> None:
    starts = {"apla:r=64": (2e-3,), "head": (5e-4,)}
    study = Study(("apla:r=64", "full"), seeds=3, trials=4, starts=starts)
    scores = run(study)
    assert len(scores) == study.count() == 4 + 2 * 3
    assert {(t.kind, t.lr) for t in scores if t.method == "apla:r=64"} == {("final", 2e-3)}
    assert {t.head_lr for t in scores} == {5e-4}
