"""A comparison in a folder: what is done there, and what is still to be run."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..delta.atomic_file import write_atomic
from ..methods import read_method
from ..text import quoted
from .trials.run_trial import FAILED, SCORED, TRAINED, run_trial
from .trials.splits import Split, draw_fraction, hold_out
from .trials.study import Scores, Study
from .trials.trial import (
    PREDICTIONS,
    Trial,
    annotations_of_test,
    classes_of,
    for_final,
    for_search,
    items_of,
    set_rates,
)

STUDY = "study.json"
CHOSEN = "chosen.json"  #: the rates of each method's final runs, by fraction


class Comparison:
    """Runs what a study consists of, and keeps it in a folder.

    Args:
        folder: Where all lies; one that was cut off goes on there.
        study: Which methods are compared.
        load: Gives the config with further options merged, as the commands read it: ``method=...`` and the like.
        metric: What runs are scored by, such as ``'mIoU'``: the higher the better.
        held_out: Share of the training items that a learning rate is chosen by.
        train_args: Further arguments of ``apla-mm train``.

    Raises:
        ValueError: The folder is that of a comparison with other settings, or a method there has had more trials than
            the study gives to all.
    """

    def __init__(
        self,
        folder: Path,
        study: Study,
        load: Callable[[Mapping[str, Any]], Config],
        metric: str,
        held_out: float = 0.2,
        train_args: Sequence[str] = (),
    ) -> None:
        self.folder, self.study, self.load = Path(folder), study, load
        self.metric, self.held_out, self.train_args = metric, held_out, list(train_args)
        self.items = cache(lambda: items_of(load({}), "train_dataloader"))
        cfg = load({})
        self.annotations = annotations_of_test(cfg)
        self._draws_labels = cfg.get("default_scope") == "mmseg"
        self._remember()
        study.check_even(self.scores())

    def scores(self) -> dict[Trial, float | None]:
        """Of all trials in the folder that have ended; None of those that failed, or whose score is no number.

        Raises:
            ValueError: There is no such score.
        """
        found: dict[Trial, float | None] = {}
        for file in sorted(self.folder.glob("*/*/*/*/trial.json")):
            trial, folder = Trial(**json.loads(file.read_text())), file.parent
            search = trial.kind == "search"
            result = folder / (TRAINED if search else SCORED)
            if (folder / FAILED).exists():
                found[trial] = None
            elif result.exists():
                record = json.loads(result.read_text())
                found[trial] = self._score(record["scores"] if search else record, result)
        return found

    def _score(self, scores: Mapping[str, float | None] | None, file: Path) -> float | None:
        if scores is None:
            raise ValueError(f"training ended without a validation, which its learning rate is judged by: {file}")
        if not scores:
            return 0.0  # all that mmdet's CocoMetric says of a detector that found nothing
        if self.metric not in scores:
            raise ValueError(
                f"runs are scored by '{self.metric}', and that is none of what the evaluator gave, {quoted(scores)} "
                f"({file}): give --metric, and another --work-dir"
            )
        return scores[self.metric]

    def prepare(self, trial: Trial) -> Path:
        """Write a trial's config into its folder, unless it is there.

        Returns:
            The folder.
        """
        folder = self.folder / trial.folder
        if (folder / "trial.json").exists():
            return folder
        cfg = self.load(dict(method=seeded(trial.method, trial.seed)))
        set_rates(cfg, trial.lr, trial.head_lr)
        cfg.randomness = dict(seed=trial.seed)
        cfg.work_dir = str((folder / "run").absolute())
        cfg.custom_hooks = [*cfg.get("custom_hooks", []), dict(type="RecordHook", folder=str(folder.absolute()))]
        names = [item.name for item in self.items()]
        folder.mkdir(parents=True, exist_ok=True)
        if trial.kind == "search":
            for_search(cfg, self.items(), self.split(trial.fraction), folder)
        else:
            for_final(cfg, self.items(), draw_fraction(names, trial.fraction, trial.seed), folder)
        cfg.dump(str(folder / "config.py"))
        write_atomic((json.dumps(asdict(trial)) + "\n").encode(), folder / "trial.json")
        return folder

    def test_images(self) -> list[str]:
        """The paths of the test set's images."""
        return [item.name for item in items_of(self.load({}), "test_dataloader")]

    def test_classes(self) -> tuple[str, ...]:
        """The test set's classes."""
        return classes_of(self.load({}), "test_dataloader")

    def forget_failures(self) -> None:
        """Have the trials that ended in an error run again."""
        for file in self.folder.glob(f"*/*/*/*/{FAILED}"):
            file.unlink()

    def keep_chosen(self) -> None:
        """Write down which rates are chosen: runs of others may lie in the folder, from before more were tried."""
        scores, file = self.scores(), self.folder / CHOSEN
        chosen = json.loads(file.read_text()) if file.exists() else {}
        for method in self.study.methods:
            for fraction in self.study.fractions:
                if finals := self.study.finals(scores, method, fraction):
                    rates = dict(lr=finals[0].lr, head_lr=finals[0].head_lr)
                    chosen.setdefault(method, {})[f"{fraction:g}"] = rates
        write_atomic((json.dumps(chosen, indent=1) + "\n").encode(), file)

    def split(self, fraction: float) -> Split:
        """What the trials of a fraction train on, and are scored on."""
        names = [item.name for item in self.items()]
        return hold_out(names, draw_fraction(names, fraction, 0), self.held_out, 0)

    def run(self, submit: Callable[..., Any], jobs: int, tell: Callable[[str], None], wait: float = 1.0) -> Scores:
        """Run what is left.

        Args:
            submit: Starts ``run_trial(*arguments)`` somewhere, and gives a job with ``done()`` and ``result()``.
            jobs: How many run at once.
            tell: Gets a line of text for each trial that ended.
            wait: Seconds between two looks.

        Returns:
            The scores.

        Raises:
            RuntimeError: A trial was killed. Those that ran beside it are waited for.
        """
        running: dict[Trial, Any] = {}
        killed: list[str] = []
        while True:
            scores = self.scores()
            waiting = [t for t in self.study.next_trials(scores) if t not in running]
            for trial in waiting[: 0 if killed else jobs - len(running)]:
                folder = self.prepare(trial)
                running[trial] = submit(run_trial, str(folder), self.train_args, self._test_args(trial))
            if not running:
                break
            ended = [trial for trial, job in running.items() if job.done()]
            if not ended:
                time.sleep(wait)
            for trial in ended:
                job = running.pop(trial)
                try:
                    job.result()
                except Exception as error:  # of the launcher, or of the job: whatever it is, the others go on
                    killed.append(f"{trial.folder}: {error}")
                tell(self._told(trial))
        if killed:
            raise RuntimeError(f"{len(killed)} trials did not end: {'; '.join(killed)}")
        return self.scores()

    def _test_args(self, trial: Trial) -> list[str] | None:
        if trial.kind == "search":
            return None
        # a detector's predictions are written by its evaluator
        return ["--out", str(self.folder / trial.folder / PREDICTIONS)] if self._draws_labels else []

    def _told(self, trial: Trial) -> str:
        file = self.folder / trial.folder / FAILED
        if file.exists():
            failure = json.loads(file.read_text())
            return f"{trial.folder}: failed, {failure['last']} ({failure['log']})"
        scores = self.scores()
        if trial not in scores:
            return f"{trial.folder}: did not end"
        return f"{trial.folder}: {self.metric} {'no number' if (s := scores[trial]) is None else f'{s:.4g}'}"

    def _remember(self) -> None:
        """Write the settings that all trials share, or see that they are those of the folder."""
        own = json.loads(
            json.dumps(
                dict(
                    config=self.load({}).pretty_text,
                    metric=self.metric,
                    held_out=self.held_out,
                    head_lr=self.study.head_lr,
                    train_args=self.train_args,
                )
            )
        )
        file = self.folder / STUDY
        if not file.exists():
            write_atomic((json.dumps(own, indent=1) + "\n").encode(), file)
            return
        before = json.loads(file.read_text())
        if others := [key for key in own if before.get(key) != own[key]]:
            raise ValueError(
                f"{self.folder} is the folder of a comparison with other settings ({', '.join(others)}): give another "
                "--work-dir, or the settings as they were; methods, seeds, fractions and trials may be added"
            )


def seeded(method: str, seed: int) -> dict[str, Any]:
    """A method whose channels a run's seed draws, unless it says itself how they are chosen.

    Args:
        method: As on the command line.
        seed: Of the run.
    """
    read = dict(read_method(method))
    draws = read["type"] == "apla" and read.get("r") not in (None, "full")
    if draws and not {"seed", "selection", "channels"} & read.keys():
        read["seed"] = seed
    return read
