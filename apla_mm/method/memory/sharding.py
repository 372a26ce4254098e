"""An adapted model under FSDP: what is frozen is sharded, what trains stays whole."""

import torch.distributed
from torch import nn

from ...text import quoted
from ..partial_linear import PartialLinear
from .frozen_dtype import held_names


def keep_whole(model: nn.Module) -> list[nn.Parameter]:
    """Ready a model for ``FullyShardedDataParallel``; what trains in it is left out of the sharding.

    A flat parameter that mixes both would get a gradient of its whole size, frozen weights included. What trains is
    small; it stays on every process and its gradients are averaged in backward, one by one as they come, so that
    backward must reach the same parameters in each process::

        FSDP(model, ignored_states=keep_whole(model), use_orig_params=True, auto_wrap_policy=...)

    Weights are loaded before, or into the wrapped model by ``load_state_dict``. Clipping, the optimizer's state and
    its state dict are those of one process.

    Args:
        model: A model with some of its parameters frozen, the same on each process.

    Returns:
        The parameters that train, after a broadcast from rank 0.

    Raises:
        ValueError: Everything trains, or nothing, or frozen weights are held in another dtype.
    """
    if names := held_names(model):
        raise ValueError(
            f"{quoted(names, 2)} are held in another dtype, and FullyShardedDataParallel shards plain ones: leave "
            "frozen_dtype out"
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not 0 < len(trained) < len(list(model.parameters())):
        raise ValueError(
            f"{'everything' if trained else 'nothing'} trains: this shards what is frozen and leaves the rest whole; "
            "adapt the model first"
        )
    for module in model.modules():
        if isinstance(module, PartialLinear):
            module.sync()
            module.trained.leads = True
    for parameter in trained:
        torch.distributed.broadcast(parameter.data, 0)
        parameter.register_post_accumulate_grad_hook(_average)
    return trained


def _average(parameter: nn.Parameter) -> None:
    # gradients of earlier iterations that it holds are the same everywhere, and stay so
    assert parameter.grad is not None
    torch.distributed.all_reduce(parameter.grad)
    parameter.grad.div_(torch.distributed.get_world_size())
