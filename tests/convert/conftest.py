"""A small model that mmengine's Runner trained, with what it was before."""

import os
import runpy
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import apla_mm
from apla_mm.models import APLAViT

TOOLS = Path(__file__).parents[2] / "tools/model_converters"


class Classifier(BaseModel):
    """Two blocks of a ViT, a norm with statistics and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = APLAViT(
            "vit_tiny_patch16_224",
            pretrained=False,
            img_size=32,
            model_kwargs=dict(depth=2, embed_dim=32, num_heads=2),
            apla=dict(r=8, seed=3),
        )
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 3)

    def forward(self, inputs: Tensor, labels: Tensor, mode: str = "tensor") -> Any:
        logits = self.head(self.norm(self.backbone(inputs)[-1].mean((2, 3))))
        if mode == "loss":
            return dict(loss=F.cross_entropy(logits, labels))
        return list(logits)


class CountMetric(BaseMetric):
    """Scores that tell one validation from another."""

    rounds = 0

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        self.rounds += 1
        return dict(accuracy=1 / (self.rounds + 1))


class Samples(Dataset):
    metainfo = dict(classes=("cat", "dog", "owl"), palette=[[0, 0, 0], [9, 9, 9], [7, 7, 7]])

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Any]:
        return dict(inputs=torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(i)), labels=i % 3)


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
    model = Classifier()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    channels = {
        f"backbone.vit.{name}": module.trained.channels.tolist()
        for name, module in model.backbone.vit.named_modules()
        if isinstance(module, apla_mm.PartialLinear)
    }
    runner = Runner(
        model=model,
        work_dir=str(folder / "work"),
        train_dataloader=DataLoader(Samples(), batch_size=4),
        val_dataloader=DataLoader(Samples(), batch_size=4),
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
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    files = (folder / "work/iter_4.pth", best, folder / "base.pth", folder / "vit.safetensors")
    return Trained(*files, state, before, channels)


@pytest.fixture
def run_tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs one of the tools in this process; gives what it wrote, or raises SystemExit as it does."""

    def run(name: str, *arguments: object) -> str:

        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
        output = capsys.readouterr()
        return output.out + output.err

    return run


@pytest.fixture
def start_tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs one of the tools in a process of its own."""

    def start(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:

        command = [sys.executable, str(TOOLS / f"{name}.py"), *map(str, arguments)]
        settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(command, env=settings, capture_output=True, text=True, check=False, timeout=200)

    return start


@pytest.fixture
def delta(trained: Trained, tmp_path: Path, run_tool: Callable[..., str]) -> Path:
    """The delta of the best checkpoint, with its base file in ``bases``."""
    run_tool("extract_delta", trained.best, trained.base, tmp_path / "delta.safetensors")
    return tmp_path / "delta.safetensors"
