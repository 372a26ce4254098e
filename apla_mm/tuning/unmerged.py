"""What a plain state dict does not tell of a model that trains: the parameters as they are."""

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import Tensor, nn

from ..method.wrappers import unwrapped
from ..text import quoted


def unmerged_of(runner: Runner) -> dict[str, dict[str, Tensor]]:
    """The parameters of a runner's models that are not in their state dicts, or not as they are.

    Of LoRA these are A, B and the frozen weight beside which they stand: out of the merged weight it would come back to
    rounding only.

    Returns:
        Name of a model, ``model`` or ``ema``, to names of parameters to copies of them on the CPU. Models without any
        are left out.
    """
    return {key: found for key, model in _models(runner).items() if (found := _unmerged(model))}


def restore(runner: Runner, saved: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write such parameters back.

    Raises:
        ValueError: They are not those of the runner's models.
    """
    models = {key: dict(model.named_parameters()) for key, model in _models(runner).items()}
    for key, tensors in saved.items():
        own = models.get(key, {})
        others = [name for name, t in tensors.items() if name not in own or own[name].shape != t.shape]
        if others:
            raise ValueError(f"the checkpoint is not of this run: its {quoted(others, 3)} do not fit the model ({key})")
        for name, tensor in tensors.items():
            own[name].data.copy_(tensor)


def _unmerged(model: nn.Module) -> dict[str, Tensor]:
    state: Mapping[str, Any] = model.state_dict()
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if name not in state or state[name].data_ptr() != parameter.data_ptr()
    }


def _models(runner: Runner) -> dict[str, nn.Module]:
    averaged = [hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)]
    return {"model": unwrapped(runner.model), **({"ema": averaged[0]} if averaged else {})}
