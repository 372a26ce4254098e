"""FlexibleRunner with FSDP in two processes, against Runner in one."""

import uuid
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ROOT
from helpers.comparisons import assert_same_checkpoint, changed_rows, clone
from helpers.data_sets import Noise
from helpers.logs import log_of
from helpers.nets import TinyClassifier
from helpers.processes import in_group
from mmengine._strategy import DeepSpeedStrategy
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.options.launching import join_processes, prepare_launch
from apla_mm.tuning.fsdp import check_strategy

pytestmark = pytest.mark.slow

STRATEGY = ROOT / "configs/_base_/strategies/fsdp.py"
NOT_ADAPTED_HERE = [dict(type="APLAHook", r=8)]


DATASETS.register_module(module=Noise)


@MODELS.register_module()
class ShardedClassifier(TinyClassifier):
    """With the same weights in every process."""

    def __init__(self, apla: dict[str, Any] | None) -> None:
        torch.manual_seed(0)
        super().__init__(apla=apla)


def make_config(work_dir: Path, launcher: str, processes: int, fsdp: bool = True, **settings: Any) -> Config:
    loader = dict(
        batch_size=4 // processes,
        num_workers=0,
        dataset=dict(type="Noise", count=16),
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


def work(rank: int, folder: Path) -> dict[str, Any]:
    runner = RUNNERS.build(make_config(folder / "whole", "pytorch", 2))  # join_processes takes the group that is there
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
    return results


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
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Where two processes have trained, and what each tells of it."""
    folder = tmp_path_factory.mktemp("fsdp_runner")
    return folder, in_group(work, folder, folder)


@pytest.fixture(scope="module")
def folder(runs: tuple[Path, list[dict[str, Any]]]) -> Path:
    return runs[0]


@pytest.fixture(scope="module")
def results(runs: tuple[Path, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return runs[1]


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    """The checkpoint of Runner in one process, with the same batches."""
    Runner.from_cfg(make_config(folder / "alone", "none", 1, fsdp=False)).train()
    return read_checkpoint(folder / "alone/iter_4.pth")


def compare(one: dict[str, Any], other: dict[str, Any], tolerance: float = 0.0) -> None:
    assert_same_checkpoint(one, other, ("state_dict", "optimizer"), tolerance=tolerance, ordered=True)
    assert one["meta"]["iter"] == 4


def test_two_processes_that_shard_save_what_one_alone_saves(folder: Path, alone: dict[str, Any]) -> None:
    saved = read_checkpoint(folder / "whole/iter_4.pth")
    compare(saved, alone, 1e-6)
    plain = ShardedClassifier(apla=None)
    before = clone(plain.state_dict())
    plain.load_state_dict(saved["state_dict"])
    moved = {key.rpartition(".")[0] for key in changed_rows(before, plain.state_dict())}
    assert moved == {"head", *(f"backbone.vit.blocks.{i}.attn.proj" for i in range(2))}


def test_each_process_holds_half(results: list[dict[str, Any]]) -> None:
    model = ShardedClassifier(apla=dict(r=8))
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    held = [result["held"] for result in results]
    assert sum(held) == frozen and max(held) <= frozen / 2 + 64
    assert {result["units"] for result in results} == {3}  # both blocks, and the rest
    assert {result["wrapper"] for result in results} == {"APLAFullyShardedDataParallel"}


def test_the_hook_logs_and_proves(folder: Path) -> None:
    log = log_of(folder / "whole")
    assert "first step: 6 of 6 trained tensors changed, 0 of " in log
    total = sum(p.numel() for p in ShardedClassifier(apla=None).parameters())
    assert f"{total:,}" in log


def test_two_processes_go_on_from_a_checkpoint_as_if_never_stopped(folder: Path) -> None:
    compare(read_checkpoint(folder / "resumed/iter_4.pth"), read_checkpoint(folder / "whole/iter_4.pth"))


def test_one_process_goes_on_from_the_checkpoint_of_two(folder: Path, tmp_path: Path) -> None:
    cfg = make_config(tmp_path, "none", 1, resume=True, load_from=f"{folder}/whole/iter_2.pth")
    RUNNERS.build(cfg).train()
    assert "resuming with other settings, as allowed:" in log_of(tmp_path)
    compare(read_checkpoint(tmp_path / "iter_4.pth"), read_checkpoint(folder / "whole/iter_4.pth"), 1e-6)


def test_other_channels_are_not_resumed(folder: Path, tmp_path: Path) -> None:
    cfg = make_config(tmp_path, "none", 1, resume=True, load_from=f"{folder}/whole/iter_2.pth")
    cfg.model.apla.seed, cfg.default_hooks.resume_check.allow = 1, "*"
    with pytest.raises(ValueError, match="channels of backbone.vit.blocks.0.attn.proj: 8 .* then, 8 .* now"):
        RUNNERS.build(cfg).train()


def test_hook_that_would_adapt_is_an_error(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["adapting"].startswith("APLAHook adapts nothing under FlexibleRunner")
        assert "apla=dict(r=64)" in result["adapting"]


def test_stock_strategy_is_an_error(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert result["stock"].startswith("OnCPU shards what trains") and "APLAFSDPStrategy" in result["stock"]


def test_ddp_under_flexible_runner_trains_the_same_without_a_gpu(folder: Path) -> None:
    saved = read_checkpoint(folder / "ddp/iter_4.pth")
    saved["state_dict"] = {key.removeprefix("module."): t for key, t in saved["state_dict"].items()}  # as mmengine does
    compare(saved, read_checkpoint(folder / "whole/iter_4.pth"), 1e-7)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_3_is_an_error(stage: int) -> None:
    runner = FlexibleRunner.__new__(FlexibleRunner)
    runner.strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)
    runner.model = SimpleNamespace(model=SimpleNamespace(zero_optimization_stage=lambda: stage))
    with pytest.raises(ValueError, match="ZeRO-3") if stage == 3 else nullcontext():
        check_strategy(runner, adapts=False)
