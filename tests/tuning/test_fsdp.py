"""FlexibleRunner with FSDP in two processes, against Runner in one."""

import os
import uuid
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mmengine._strategy import DeepSpeedStrategy
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import Dataset

from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.models import APLAViT
from apla_mm.options.launching import join_processes, prepare_launch
from apla_mm.tuning.fsdp import check_strategy

STRATEGY = Path(__file__).parents[2] / "configs/_base_/strategies/fsdp.py"
NOT_ADAPTED_HERE = [dict(type="APLAHook", r=8)]


@DATASETS.register_module()
class Noise(Dataset):
    """Sixteen images of nothing."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> dict[str, Any]:
        return dict(inputs=torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(i)), labels=i % 3)


@MODELS.register_module()
class ShardedClassifier(BaseModel):
    """Two blocks of a ViT and a linear head."""

    def __init__(self, apla: dict[str, Any] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = APLAViT(
            "vit_tiny_patch16_224",
            pretrained=False,
            img_size=32,
            model_kwargs=dict(depth=2, embed_dim=32, num_heads=2),
            apla=apla,
        )
        self.head = nn.Linear(32, 3)

    def forward(self, inputs: Tensor, labels: Tensor, mode: str = "tensor") -> Any:
        logits = self.head(self.backbone(inputs)[-1].mean((2, 3)))
        return dict(loss=F.cross_entropy(logits, labels)) if mode == "loss" else logits


def make_config(work_dir: Path, launcher: str, processes: int, fsdp: bool = True, **settings: Any) -> Config:
    loader = dict(
        batch_size=4 // processes,
        num_workers=0,
        dataset=dict(type="Noise"),
        sampler=dict(type="DefaultSampler", shuffle=False),
        collate_fn=dict(type="default_collate"),
    )
    cfg = Config.fromfile(STRATEGY) if fsdp else Config()
    cfg.merge_from_dict(
        dict(
            model=dict(type="ShardedClassifier", apla=dict(r=8, recompute="mlp")),
            train_dataloader=loader,
            train_cfg=dict(by_epoch=False, max_iters=4),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-3), clip_grad=dict(max_norm=0.1)),
            param_scheduler=[dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=4)],
            default_hooks=dict(
                logger=dict(type="LoggerHook", interval=1, log_metric_by_epoch=False),
                checkpoint=dict(type="CheckpointHook", interval=2, by_epoch=False),
                resume_check=dict(type="ResumeCheckHook", allow=["processes", "train_dataloader.batch_size"]),
            ),
            custom_hooks=[dict(type="APLAHook")],
            log_processor=dict(by_epoch=False),
            env_cfg=dict(dist_cfg=dict(backend="nccl")),
            work_dir=str(work_dir),
            experiment_name=uuid.uuid4().hex,
            randomness=dict(seed=0),
        )
    )
    cfg.merge_from_dict(settings)
    prepare_launch(cfg, launcher)
    join_processes(cfg)
    return cfg


def error_of(cfg: Config) -> str:
    with pytest.raises(ValueError) as error:
        RUNNERS.build(cfg).train()
    return str(error.value)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    # a store of its own: join_processes takes a group that is there
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    runner = RUNNERS.build(make_config(folder / "whole", "pytorch", 2))
    runner.train()
    frozen = [p for p in runner.model.parameters() if not p.requires_grad]
    units = sum(isinstance(module, FullyShardedDataParallel) for module in runner.model.modules())
    results: dict[str, Any] = dict(
        wrapper=type(runner.model).__name__, units=units, held=sum(p.numel() for p in frozen)
    )
    resumed = make_config(folder / "resumed", "pytorch", 2, resume=True, load_from=f"{folder}/whole/iter_2.pth")
    RUNNERS.build(resumed).train()
    results["adapting"] = error_of(make_config(folder / "e", "pytorch", 2, custom_hooks=NOT_ADAPTED_HERE))
    RUNNERS.build(make_config(folder / "ddp", "pytorch", 2, strategy=None)).train()
    stock = make_config(folder / "e", "pytorch", 2)
    stock.strategy = dict(type="FSDPStrategy", model_wrapper=dict(type="OnCPU"))
    results["stock"] = error_of(stock)
    torch.save(results, folder / f"rank{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


def register_stock_wrapper() -> None:
    """mmengine's own wrapper, told that there is no GPU."""
    from mmengine.model import MMFullyShardedDataParallel
    from mmengine.registry import MODEL_WRAPPERS

    class OnCPU(MMFullyShardedDataParallel):
        def __init__(self, module: nn.Module, device_id: int) -> None:
            super().__init__(module, device_id=torch.device("cpu"))

    MODEL_WRAPPERS.register_module(module=OnCPU)


register_stock_wrapper()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained."""
    folder = tmp_path_factory.mktemp("fsdp_runner")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "-1")
        torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    """The checkpoint of Runner in one process, with the same batches."""
    Runner.from_cfg(make_config(folder / "alone", "none", 1, fsdp=False)).train()
    return read_checkpoint(folder / "alone/iter_4.pth")


def results_of(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"rank{rank}.pth") for rank in range(2)]


def log_of(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.glob("*/*.log"))


def assert_same_checkpoint(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    assert list(one["state_dict"]) == list(other["state_dict"])
    for key, tensor in one["state_dict"].items():
        torch.testing.assert_close(tensor, other["state_dict"][key], rtol=0, atol=tolerance)
    assert one["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]
    for i, state in one["optimizer"]["state"].items():
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, other["optimizer"]["state"][i][name], rtol=0, atol=tolerance)
    assert one["meta"]["iter"] == other["meta"]["iter"] == 4


def test_two_processes_that_shard_save_what_one_alone_saves(folder: Path, alone: dict[str, Any]) -> None:
    saved = read_checkpoint(folder / "whole/iter_4.pth")
    assert_same_checkpoint(saved, alone, 1e-6)
    plain = ShardedClassifier(apla=None)
    before = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
    plain.load_state_dict(saved["state_dict"])
    moved = {key.rpartition(".")[0] for key, t in plain.state_dict().items() if not torch.equal(t, before[key])}
    assert moved == {"head", *(f"backbone.vit.blocks.{i}.attn.proj" for i in range(2))}


def test_each_process_holds_half(folder: Path) -> None:
    model = ShardedClassifier(apla=dict(r=8))
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    held = [result["held"] for result in results_of(folder)]
    assert sum(held) == frozen and max(held) <= frozen / 2 + 64
    assert {result["units"] for result in results_of(folder)} == {3}  # both blocks, and the rest
    assert {result["wrapper"] for result in results_of(folder)} == {"APLAFullyShardedDataParallel"}


def test_the_hook_logs_and_proves(folder: Path) -> None:
    log = log_of(folder / "whole")
    assert "first step: 6 of 6 trained tensors changed, 0 of " in log
    total = sum(p.numel() for p in ShardedClassifier(apla=None).parameters())
    assert f"{total:,}" in log


def test_two_processes_go_on_from_a_checkpoint_as_if_never_stopped(folder: Path) -> None:
    assert_same_checkpoint(
        read_checkpoint(folder / "resumed/iter_4.pth"), read_checkpoint(folder / "whole/iter_4.pth"), 0
    )


def test_one_process_goes_on_from_the_checkpoint_of_two(folder: Path, tmp_path: Path) -> None:
    cfg = make_config(tmp_path, "none", 1, resume=True, load_from=f"{folder}/whole/iter_2.pth")
    RUNNERS.build(cfg).train()
    assert "resuming with other settings, as allowed:" in log_of(tmp_path)
    assert_same_checkpoint(read_checkpoint(tmp_path / "iter_4.pth"), read_checkpoint(folder / "whole/iter_4.pth"), 1e-6)


def test_other_channels_are_not_resumed(folder: Path, tmp_path: Path) -> None:
    cfg = make_config(tmp_path, "none", 1, resume=True, load_from=f"{folder}/whole/iter_2.pth")
    cfg.model.apla.seed, cfg.default_hooks.resume_check.allow = 1, "*"
    with pytest.raises(ValueError, match="channels of backbone.vit.blocks.0.attn.proj: 8 .* then, 8 .* now"):
        RUNNERS.build(cfg).train()


def test_hook_that_would_adapt_is_an_error(folder: Path) -> None:
    for result in results_of(folder):
        assert result["adapting"].startswith("APLAHook adapts nothing under FlexibleRunner")
        assert "apla=dict(r=64)" in result["adapting"]


def test_stock_strategy_is_an_error(folder: Path) -> None:
    for result in results_of(folder):
        assert result["stock"].startswith("OnCPU shards what trains") and "APLAFSDPStrategy" in result["stock"]


def test_ddp_under_flexible_runner_trains_the_same_without_a_gpu(folder: Path) -> None:
    saved = read_checkpoint(folder / "ddp/iter_4.pth")
    saved["state_dict"] = {key.removeprefix("module."): t for key, t in saved["state_dict"].items()}  # as mmengine does
    assert_same_checkpoint(saved, read_checkpoint(folder / "whole/iter_4.pth"), 1e-7)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_3_is_an_error(stage: int) -> None:
    runner = FlexibleRunner.__new__(FlexibleRunner)
    runner.strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)
    runner.model = SimpleNamespace(model=SimpleNamespace(zero_optimization_stage=lambda: stage))
    with pytest.raises(ValueError, match="ZeRO-3") if stage == 3 else nullcontext():
        check_strategy(runner, adapts=False)
