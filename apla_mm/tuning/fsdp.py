"""FSDP for adapted models, under mmengine's FlexibleRunner."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmengine._strategy import DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from mmengine.device import get_device
from mmengine.model import MMFullyShardedDataParallel
from mmengine.runner import FlexibleRunner
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

from ..method.memory.recompute import blocks_of
from ..method.memory.sharding import keep_whole
from ..options.sync_bn import sync_bn_to_bn


class APLAFullyShardedDataParallel(MMFullyShardedDataParallel):
    """mmengine's FSDP of what is frozen in a model; what trains stays whole, as in DDP.

    Each transformer block is a unit: of the frozen weights a process holds its share, one or two blocks', and those
    outside of blocks.

    Args:
        module: An adapted model.
        **kwargs: Arguments of mmengine's wrapper; without GPUs ``device_id`` is ignored.
    """

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        if get_device() == "cpu":
            kwargs["device_id"] = torch.device("cpu")
            module = sync_bn_to_bn(module)
        if kwargs.get("auto_wrap_policy") is None:
            blocks = {block for block, _ in blocks_of(module).values()}
            kwargs["auto_wrap_policy"] = partial(lambda_auto_wrap_policy, lambda_fn=blocks.__contains__)
        trained = keep_whole(module)
        for parameter in trained:  # FSDP moves the others
            parameter.data = parameter.data.to(get_device())
        super().__init__(module, ignored_states=trained, **kwargs)


class APLAFSDPStrategy(FSDPStrategy):
    """mmengine's FSDPStrategy with :class:`APLAFullyShardedDataParallel`.

    Checkpoints are those of one process, whole and plain, and are resumed on any number of processes. One process
    without a launcher has nothing to shard and runs as with SingleDeviceStrategy. The model must have been adapted
    when it is built, as by ``apla=dict(r=64)`` of APLAViT.

    Args:
        model_wrapper: Config of the wrapper.
        **kwargs: Arguments of mmengine's strategy, but for ``state_dict_cfg`` and ``activation_checkpointing``.
    """

    def __init__(self, *, model_wrapper: dict[str, Any] | None = None, **kwargs: Any) -> None:
        wrapper = {"type": "APLAFullyShardedDataParallel", **(model_wrapper or {})}
        # Whole on each rank, of which the first one saves: the others' projections cannot merge what trained into
        # shards. And from a CPU to the CPU FSDP loses what it offloads.
        settings = dict(rank0_only=False, offload_to_cpu=get_device() != "cpu")
        state_dict_cfg = dict(
            state_dict_type="FULL_STATE_DICT",
            state_dict_config=dict(type="FullStateDictConfig", **settings),
            optim_state_dict_config=dict(type="FullOptimStateDictConfig", **settings),
        )
        super().__init__(model_wrapper=wrapper, state_dict_cfg=state_dict_cfg, **kwargs)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        return super()._wrap_model(model) if self.distributed else SingleDeviceStrategy._wrap_model(self, model)

    def optim_state_dict(self) -> dict[str, Any]:
        """The state dict of an optimizer that nothing of is sharded."""
        return self.optim_wrapper.state_dict()

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load such a state dict."""
        self.optim_wrapper.load_state_dict(state_dict)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within it each process holds all weights of a model that FSDP may have sharded; nothing written there lasts."""
    if not isinstance(model, FullyShardedDataParallel):
        yield
        return
    with FullyShardedDataParallel.summon_full_params(model, writeback=False):
        yield


def check_strategy(runner: Any, adapts: bool) -> None:
    """See whether the strategy of a FlexibleRunner suits an adapted model, before it trains.

    Args:
        runner: A runner of any kind; others are fine.
        adapts: Whether a hook is about to adapt the model.

    Raises:
        ValueError: It does not.
    """
    if not isinstance(runner, FlexibleRunner):
        return
    model = runner.model
    if adapts:
        raise ValueError(
            "APLAHook adapts nothing under FlexibleRunner, which has wrapped the model, built the optimizer and loaded "
            "weights before it calls hooks: leave r, channels and blocks out, and let the backbone adapt itself, as "
            "APLAViT does by apla=dict(r=64)"
        )
    if isinstance(model, FullyShardedDataParallel) and not isinstance(model, APLAFullyShardedDataParallel):
        raise ValueError(
            f"{type(model).__name__} shards what trains together with what is frozen: both would get gradients, and "
            "there would be no checkpoint; use strategy=dict(type='APLAFSDPStrategy')"
        )
    if isinstance(runner.strategy, DeepSpeedStrategy) and model.model.zero_optimization_stage() == 3:
        raise ValueError(
            "ZeRO-3 may gather frozen weights anew without what was trained in them: use stage 1 or 2, or "
            "strategy=dict(type='APLAFSDPStrategy')"
        )
