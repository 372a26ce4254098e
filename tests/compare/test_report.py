"""The report of a folder whose trials are written by hand."""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config

from apla_mm.compare.comparison import Comparison
from apla_mm.compare.report import Row, _plots, differences, rows_of, write_report
from apla_mm.compare.trials.study import Study
from apla_mm.compare.trials.trial import Trial
from apla_mm.options.method import take_method

# one method of APLA's, so that there is no plot against r
SCORES = {"full": {1e-5: 30.0, 1e-4: 40.0, 1e-3: 20.0}, "apla:r=4": {1e-4: 35.0, 1e-3: 45.0, 1e-2: 50.0}}
FINAL = {"full": [41.0, 43.0], "apla:r=4": [51.0, 52.0]}
STUDY = Study(tuple(SCORES), seeds=2, trials=3, head_lr=1e-3, starts={m: tuple(rates) for m, rates in SCORES.items()})
BEST = {"full": 1e-4, "apla:r=4": 1e-2}


@pytest.fixture
def comparison(segmentation_config: Config, tmp_path: Path) -> Comparison:
    """One search that ends in the middle of its rates, one that ends at an edge, and two final runs of each."""

    def load(options: Mapping[str, Any]) -> Config:
        cfg = Config(segmentation_config.to_dict())
        take_method(cfg, options)
        return cfg

    made = Comparison(tmp_path / "out", STUDY, load, "mIoU")
    for method, rates in SCORES.items():
        for lr, score in rates.items():
            folder = made.prepare(Trial("search", method, 1.0, 0, lr, 1e-3))
            (folder / "trained.json").write_text(json.dumps(dict(scores=dict(mIoU=score))))
        for seed, score in enumerate(FINAL[method]):
            folder = made.prepare(Trial("final", method, 1.0, seed, BEST[method], 1e-3))
            record = dict(backbone=1000 * (method == "full") + 10, all=5000, step=0.25, peak=3 * 2**30, scores={})
            (folder / "trained.json").write_text(json.dumps(record))
            (folder / "scored.json").write_text(json.dumps(dict(mIoU=score)))
            # twenty images of one class, of which a share is right that is the score, and little besides
            share = score / 100 + np.random.default_rng(seed).normal(0, 0.01, 20)
            names = np.array([f"{i}.jpg" for i in range(20)])
            areas = dict(intersect=1000 * share[:, None], union=np.full((20, 1), 1000.0))
            np.savez(folder / "areas.npz", images=names, labels=names, **areas)
    return made


def test_rows_hold_what_the_trials_gave(comparison: Comparison) -> None:
    full, apla = rows_of(comparison)
    assert (full.method, full.scores, full.lr, full.edge) == ("full", {0: 41.0, 1: 43.0}, 1e-4, False)
    assert (apla.method, apla.scores, apla.lr, apla.edge) == ("apla:r=4", {0: 51.0, 1: 52.0}, 1e-2, True)
    assert full.mean == 42.0 and full.spread == statistics.stdev([41.0, 43.0]) and full.tried == SCORES["full"]


def test_the_better_one_comes_first_and_is_decided(comparison: Comparison) -> None:
    ((pair, found),) = differences(comparison, 1.0).items()
    assert pair == ("apla:r=4", "full")
    assert found.mean == pytest.approx(9.5, abs=0.5) and found.low > 6 and found.decided


def test_classifiers_are_compared_by_the_images_that_are_right(comparison: Comparison) -> None:
    for file in comparison.folder.glob("*/*/*/*/[ts]*ed.json"):
        file.write_text(file.read_text().replace("mIoU", "accuracy/top1"))
    for file in comparison.folder.glob("final/*/*/*/areas.npz"):
        wrong = 4 if "full" in str(file) else 1
        file.unlink()
        np.savez(file.with_name("hits.npz"), images=[f"{i}.jpg" for i in range(20)], hits=np.arange(20) >= wrong)
    comparison.metric = "accuracy/top1"
    ((pair, found),) = differences(comparison, 1.0).items()
    assert pair == ("apla:r=4", "full") and found.mean == pytest.approx(15)
    assert 0 <= found.low < 15 < found.high


def test_text_says_all_of_it(comparison: Comparison) -> None:
    failed = comparison.folder / "search/full/fraction1/lr0.001_head0.001_seed0"
    (failed / "trained.json").unlink()
    (failed / "failed.json").write_text(json.dumps(dict(tool="train.py", last="FloatingPointError: nan", log="x")))
    write_report(comparison, "the title")
    text = (comparison.folder / "report.md").read_text()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "| 1 | full | 2 | 42 | 1.414 | 0.0001 | 0.001 | 1,010 | 5,000 | 19.5 KiB | 0.250 | 3.00 GiB |" in lines
    assert any(line.startswith("| 1 | apla:r=4 | 2 | 51.5 | 0.7071 | 0.01 (at the edge) |") for line in lines)
    assert any(line.startswith("| apla:r=4 | full | +9.") and line.endswith("| yes |") for line in lines)
    assert "| 1 | full | 0.001 | failed |" in lines and "| 1 | apla:r=4 | 0.001 | 45 |" in lines
    assert "- `search/full/fraction1/lr0.001_head0.001_seed0`, train.py: FloatingPointError: nan" in lines
    page = (comparison.folder / "report.html").read_text()
    assert "<title>the title</title>" in page and page.count("data:image/png;base64,") == 2


def test_images_that_differ_between_runs_are_not_compared(comparison: Comparison) -> None:
    file = next(comparison.folder.glob("final/full/*/*seed0/areas.npz"))
    with np.load(file) as areas:
        others = dict(areas, images=areas["images"][::-1])
    np.savez(file, **others)
    assert differences(comparison, 1.0) == {}
    write_report(comparison, "the title")
    assert "None can be compared: two methods need" in (comparison.folder / "report.md").read_text()


def test_several_r_and_fractions_have_plots_of_their_own() -> None:
    def row(method: str, trains: int, fraction: float) -> Row:
        return Row(
            method, fraction, {0: 40.0, 1: 41.0}, 1e-3, 1e-3, {1e-3: 40.0}, False, 0, [dict(backbone=trains, all=9)]
        )

    of = {"apla:r=4": 100, "apla:r=full": 1000, "full": 9000}
    rows = [row(method, trains, fraction) for method, trains in of.items() for fraction in (0.5, 1.0)]
    labels = [figure.axes[0].get_xlabel() for figure in _plots(rows, "mIoU")]
    assert labels == [
        "parameters of the backbone that train", "learning rate", "channels that train", "fraction of the training set"
    ]  # fmt: skip
    channels = _plots(rows, "mIoU")[2].axes[0]
    assert [tick.get_text() for tick in channels.get_xticklabels()] == ["r=4", "r=full"]
    assert channels.get_legend_handles_labels()[1] == ["fraction 0.5", "fraction 1"]
    assert len(_plots(rows[4:], "mIoU")) == 3 and len(_plots(rows[5:], "mIoU")) == 2
