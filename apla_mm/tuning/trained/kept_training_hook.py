"""The hook that sees that what was chosen to train does, to the end."""

from collections.abc import Mapping
from typing import Any

from mmengine.runner import Runner
from torch import nn

from ...method.frozen_modules import frozen_modules
from ...method.wrappers import unwrapped
from ...processes import in_every_process
from ..ema import settle
from ..frozen_parts import check_as_before, modes_kept, requires_grad_of
from .trainable_check_hook import TrainableCheckHook


class KeptTrainingHook(TrainableCheckHook):
    """What hooks that choose what trains have in common: it stays so, and what is frozen runs as in evaluation.

    A change of what trains by the model's own ``train()``, ``init_weights()`` or forward is an error.

    Args:
        **check: Arguments of :class:`TrainableCheckHook`: depth, prove, patience.
    """

    def __init__(self, **check: Any) -> None:
        super().__init__(**check)
        self._trains: Mapping[str, bool] = {}  # by the names of all parameters
        self._parts: list[nn.Module] = []
        self._evaluated: list[nn.Module] = []
        self._watched: list[tuple[nn.Parameter, bool]] = []

    def keep(self, model: nn.Module, parts: list[nn.Module], frozen_eval: bool, drop_path: bool) -> None:
        """From now on what trains of a model shall train, and no more.

        Args:
            model: The model, not wrapped.
            parts: The parts of it that were changed.
            frozen_eval: Run what is frozen in the parts as in evaluation.
            drop_path: With ``frozen_eval``, whether stochastic depth goes on.
        """
        self._trains, self._parts = requires_grad_of(model), parts
        self._evaluated = [m for part in parts for m in frozen_modules(part, drop_path)] if frozen_eval else []

    def before_run(self, runner: Runner) -> None:
        """As :class:`TrainableCheckHook`; what other hooks have kept so far is as this one has left it."""
        super().before_run(runner)
        for hook in runner.hooks:
            if isinstance(hook, KeptTrainingHook) and hook._trains and self._trains:
                hook._trains = self._trains

    def before_train(self, runner: Runner) -> None:
        """Log the table, of what trains in training too.

        Raises:
            ValueError: Since ``before_run`` something was frozen or thawed, as by the model's ``init_weights``, or
                ``train()`` does so.
            RuntimeError: Nothing trains, or another process failed so.
        """
        model = unwrapped(runner.model)

        def check() -> None:
            check_as_before(model, self._trains, "weights were initialised and loaded")
            with modes_kept(model):
                model.train()
            check_as_before(model, self._trains, "its train() was called")

        in_every_process(check)
        self._watched = [(p, p.requires_grad) for part in self._parts for p in part.parameters()]
        super().before_train(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep frozen modules in evaluation mode."""
        for module in self._evaluated:
            module.training = False
        super().before_train_iter(runner, batch_idx, data_batch)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """See that what was chosen still trains, and as :class:`TrainableCheckHook`; an EMAHook averages next.

        Raises:
            ValueError: The model's forward froze or thawed something of it.
            RuntimeError: A frozen tensor changed.
        """
        if any(parameter.requires_grad is not trains for parameter, trains in self._watched):
            check_as_before(unwrapped(runner.model), self._trains, f"iteration {runner.iter + 1} began")
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        settle(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """Prepare for an EMAHook, which exchanges the model's weights and their averages next."""
        settle(runner)


def check_method_was_read(runner: Runner) -> None:
    """Check that no key ``method`` is left in the config, which this package's tools carry out and take away.

    Raises:
        ValueError: There is one.
    """
    if (method := runner.cfg.get("method")) is not None:
        raise ValueError(
            f"method={method!r} in the config is read by apla-mm train alone; for other tools write "
            "custom_hooks=[dict(type='TuningHook', method=...)], or for APLA dict(type='APLAHook', r=...)"
        )
