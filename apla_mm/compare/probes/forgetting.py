"""What the adapted backbones of a comparison have forgotten: their features on other data, before and after."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ...loading.base_from_config import initial_state
from ...loading.checkpoint_reader import read_checkpoint
from ...measure.similarity import linear_cka
from ...text import listed, table
from ..comparison import CHOSEN
from ..trials.run_trial import SCORED
from ..trials.trial import Trial
from .probe import ProbeData, features_of, probe_scores, samples_of

BACKBONE = "backbone."


@dataclass(frozen=True)
class Probed:
    """A backbone on other data.

    Attributes:
        scores: What its features are worth; see :func:`~.probe.probe_scores`.
        similarity: Linear CKA of its features and the base's.
    """

    scores: Mapping[str, float]
    similarity: float


@dataclass(frozen=True)
class Forgetting:
    """What the methods of a comparison did to a base, by one set of data.

    Attributes:
        base: The base's own scores.
        methods: Of each method and fraction, what each of its final runs left.
    """

    base: Mapping[str, float]
    methods: Mapping[tuple[str, float], Sequence[Probed]]

    def as_table(self) -> str:
        """Means, their change from the base, and the deviation of runs."""
        ways = list(self.base)
        head = ["method", "fraction", "runs", *(f"{way}, %" for way in ways), "CKA with the base"]
        rows = [["the base", "", "", *(f"{self.base[way]:.1f}" for way in ways), "1"]]
        for (method, fraction), runs in self.methods.items():
            changes = [_change([run.scores[way] for run in runs], self.base[way]) for way in ways]
            similarities = [run.similarity for run in runs]
            spread = f" +- {statistics.stdev(similarities):.3f}" if len(runs) > 1 else ""
            similarity = f"{statistics.fmean(similarities):.3f}{spread}"
            rows.append([method, f"{fraction:g}", str(len(runs)), *changes, similarity])
        return table(head, rows, markdown=True)


def _change(scores: Sequence[float], base: float) -> str:
    mean = statistics.fmean(scores)
    spread = f" +- {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{mean:.1f}{spread} ({mean - base:+.1f})"


def final_runs(folder: Path) -> Iterator[tuple[Trial, Path]]:
    """The final runs of a comparison that have ended, at the rates that are chosen, and their folders.

    Raises:
        ValueError: There is none.
    """
    chosen = json.loads((folder / CHOSEN).read_text()) if (folder / CHOSEN).exists() else {}
    found = 0
    for file in sorted(folder.glob("final/*/*/*/trial.json")):
        trial = Trial(**json.loads(file.read_text()))
        rates = chosen.get(trial.method, {}).get(f"{trial.fraction:g}")
        if rates == dict(lr=trial.lr, head_lr=trial.head_lr) and (file.parent / SCORED).exists():
            found += 1
            yield trial, file.parent
    if not found:
        raise ValueError(
            f"{folder} has no final run that has ended and is in the report: it should be the --work-dir of a "
            "comparison, whose report apla-mm compare ... --report-only writes again"
        )


def forgetting(
    folder: Path, data: ProbeData, size: int | None = None, tell: Callable[[str], None] = lambda line: None
) -> Forgetting:
    """Probe the base and the backbone of each final run of a comparison.

    Args:
        folder: The comparison's.
        data: That they were not adapted to.
        size: Height and width of the images; None for that of the model's data preprocessor.
        tell: Gets a line for each run.

    Raises:
        ValueError: No final run has ended, the model has no size and none is given, or runs began with random weights.
    """
    runs = list(final_runs(folder))
    cfg = Config.fromfile(runs[0][1] / "config.py")
    size = size or _size_of(cfg)
    init_default_scope(cfg.default_scope)
    backbone, preprocess = _base_of(cfg), _preprocess_of(cfg)
    before = features_of(backbone, preprocess, data.images, size)
    base = probe_scores(samples_of(before, data))
    methods: dict[tuple[str, float], list[Probed]] = {}
    for trial, own in runs:
        checkpoint = (own / "run/last_checkpoint").read_text().strip()
        state = read_checkpoint(checkpoint)["state_dict"]
        backbone.load_state_dict(_of_backbone(state))
        after = features_of(backbone, preprocess, data.images, size)
        similarity = linear_cka(before.flatten(0, 2), after.flatten(0, 2))
        probed = Probed(probe_scores(samples_of(after, data)), similarity)
        methods.setdefault((trial.method, trial.fraction), []).append(probed)
        tell(f"{trial.folder}: {', '.join(f'{k} {v:.1f}' for k, v in probed.scores.items())}, CKA {similarity:.3f}")
    return Forgetting(base, methods)


def _size_of(cfg: Config) -> int:
    size = cfg.model.data_preprocessor.get("size")
    if size is None:
        raise ValueError("the model's data preprocessor has no size: give --img-size")
    return int(min(size))


def _base_of(cfg: Config) -> nn.Module:
    """The backbone with the weights that training began with, plain."""
    for key in ("apla", "frozen"):
        cfg.model.backbone.pop(key, None)
    if cfg.model.backbone.pop("query_blocks", 0):  # whose last map passes the final norm
        cfg.model.backbone.norm = True
    if cfg.model.backbone.pop("output", "maps") != "maps":
        cfg.model.backbone.norm = True
    states = []
    with torch.random.fork_rng():
        for seed in (0, 1):
            torch.manual_seed(seed)
            states.append(_of_backbone(initial_state(cfg)))
    if drawn := [name for name, tensor in states[0].items() if not torch.equal(tensor, states[1][name])]:
        raise ValueError(
            f"the config names no weights for {listed(drawn)} of the backbone: each run began with random ones of its "
            "own, and there is no base that could have been forgotten"
        )
    module: nn.Module = MODELS.build(cfg.model.backbone)
    module.load_state_dict(states[0])
    return module


def _of_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(BACKBONE): value for name, value in state.items() if name.startswith(BACKBONE)}


def _preprocess_of(cfg: Config) -> Callable[[Tensor], Tensor]:
    preprocessor: Any = MODELS.build(cfg.model.data_preprocessor)
    preprocessor.eval()

    def preprocess(image: Tensor) -> Tensor:
        inputs: Any = preprocessor(dict(inputs=[image], data_samples=[BaseDataElement()]), False)["inputs"]
        return torch.as_tensor(inputs)

    return preprocess
