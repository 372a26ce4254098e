"""A small model that mmengine's Runner trained, with what it was before."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from helpers.comparisons import clone
from helpers.data_sets import Noise
from helpers.nets import TinyClassifier
from helpers.tools import CONVERTERS, call_tool
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

import apla_mm


class CountMetric(BaseMetric):
    """Scores that tell one validation from another."""

    rounds = 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        self.rounds += 1
        return dict(accuracy=1 / (self.rounds + 1))


CLASSES = dict(classes=("cat", "dog", "owl"), palette=[[0, 0, 0], [9, 9, 9], [7, 7, 7]])


class Trained(NamedTuple):
    """Files of a training run of four iterations, validated after two and four.

    ``best`` was saved by the first validation, ``last`` before the second one, which was worse. ``base`` is the
    checkpoint before training, ``vit`` the ViT's weights before training, under timm's names.
    """

    last: Path
    best: Path
    base: Path
    vit: Path
    state: dict[str, Tensor]
    before: dict[str, Tensor]
    channels: dict[str, list[int]]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    model = TinyClassifier(norm=True, apla=dict(r=8, seed=3))
    before = clone(model.state_dict())
    channels = {
        f"backbone.vit.{name}": module.trained.channels.tolist()
        for name, module in model.backbone.vit.named_modules()
        if isinstance(module, apla_mm.PartialLinear)
    }
    runner = Runner(
        model=model,
        work_dir=str(folder / "work"),
        train_dataloader=DataLoader(Noise(**CLASSES), batch_size=4),
        val_dataloader=DataLoader(Noise(**CLASSES), batch_size=4),
        val_evaluator=Evaluator(CountMetric()),
        val_cfg=dict(),
        train_cfg=dict(by_epoch=False, max_iters=4, val_interval=2),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.1)),
        default_hooks=dict(
            checkpoint=dict(type="CheckpointHook", interval=4, by_epoch=False, save_best="accuracy", rule="greater")
        ),
        custom_hooks=[dict(type="APLAHook")],
        experiment_name=uuid.uuid4().hex,
    )
    runner.train()
    torch.save(dict(meta={}, state_dict=before), folder / "base.pth")
    prefix = "backbone.vit."
    vit = {name.removeprefix(prefix): tensor for name, tensor in before.items() if name.startswith(prefix)}
    safetensors.torch.save_file(vit, folder / "vit.safetensors")
    (best,) = (folder / "work").glob("best_*.pth")
    state = clone(model.state_dict())
    files = (folder / "work/iter_4.pth", best, folder / "base.pth", folder / "vit.safetensors")
    return Trained(*files, state, before, channels)


@pytest.fixture
def run_tool(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs one of the tools in this process; gives what it wrote, or raises SystemExit as it does."""

    def run(name: str, *arguments: object) -> str:
        capsys.readouterr()
        call_tool(CONVERTERS / f"{name}.py", *arguments)
        output = capsys.readouterr()
        return output.out + output.err

    return run


@pytest.fixture
def delta(trained: Trained, tmp_path: Path, run_tool: Callable[..., str]) -> Path:
    """The delta of the best checkpoint, with its base file in ``bases``."""
    run_tool("extract_delta", trained.best, trained.base, tmp_path / "delta.safetensors")
    return tmp_path / "delta.safetensors"
