"""mmengine's EMAHook beside adapted layers.

It averages and exchanges the rows that train and the full weight, which has them too, each by itself, and cannot know
that an adapted layer brings one up to date by the other. If both are equal whenever it looks, they stay so.
"""

from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import nn

from ..method import PartialLinear


def settle(runner: Runner) -> None:
    """Make full weights equal to the rows that train, in a runner's model and in its averages, if there are any."""
    averages = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    for hook in averages:
        for model in (hook.src_model, hook.ema_model):
            _settle(model)


def _settle(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, PartialLinear):
            module.sync()
