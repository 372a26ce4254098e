"""The hook that adds to the log what mmengine leaves out."""

from typing import Any

from mmengine.dist import all_gather_object, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..method.wrappers import unwrapped
from ..runs.peak_memory import device_memory, peak_memory
from ..runs.vis_backends import add_vis_backends
from .optimizers.parameter_groups import ParameterGroup, format_groups, groups_by_lr, groups_by_settings


class TrainingLogHook(Hook):
    """Logs each group of parameters with its learning rate, and the peak memory; adds TensorBoard and the like.

    Before training it writes a table: the groups by name, how much trains in each, learning rate and weight decay.
    mmengine logs the learning rate of the optimizer's first group alone; where learning rates differ, each of them is
    logged beside it, as ``backbone.lr`` and ``decode_head.lr``, say. Soon after the start it writes the peak memory,
    once: on a GPU that of tensors, as in mmengine's ``memory``, else the process's resident memory.

    Any back end of mmengine is added by one line, in a config or on the command line::

        vis_backends = ['TensorboardVisBackend']
        --cfg-options vis_backends=TensorboardVisBackend

    Args:
        memory_after: Iterations after which the peak memory is logged; at the end of a shorter training.
        max_lrs: The most learning rates that are logged in each line. Of more, the lowest and the highest are.
    """

    def __init__(self, memory_after: int = 10, max_lrs: int = 6) -> None:
        self.memory_after = memory_after
        self.max_lrs = max_lrs
        self._logged: list[ParameterGroup] = []
        self._iterations = 0
        self._peak = 0

    def before_run(self, runner: Runner) -> None:
        """Add the back ends."""
        add_vis_backends(runner)

    def before_train(self, runner: Runner) -> None:
        """Log the groups; here, since until now parameters may be replaced and an optimizer's state be loaded."""
        model = unwrapped(runner.model)
        groups = groups_by_settings(runner.optim_wrapper, model)
        print_log(f"optimizer's groups, before the schedule:\n{format_groups(groups)}", logger="current")
        by_lr = sorted(groups_by_lr(runner.optim_wrapper, model), key=lambda group: group.lr)
        self._logged = by_lr if len(by_lr) <= self.max_lrs else [by_lr[0], by_lr[-1]]
        for key in [key for key in runner.message_hub.log_scalars if key.endswith(".lr")]:
            del runner.message_hub.log_scalars[key]  # of a checkpoint, and perhaps of other groups
        self._iterations = self._peak = 0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Hand the learning rates to mmengine's log, if they differ."""
        if len(self._logged) > 1:
            for group in self._logged:
                # LogProcessor knows learning rates by the end of their names
                runner.message_hub.update_scalar(f"train/{group.name}.lr", group.current_lr)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Log the peak memory, once."""
        if self._iterations < self.memory_after:
            self._iterations += 1
            self._peak = max(self._peak, peak_memory())  # LoggerHook, which comes later, sets CUDA's peak to zero
            if self._iterations == self.memory_after:
                self._log_memory()

    def after_train(self, runner: Runner) -> None:
        """Log the peak memory of a short training."""
        if 0 < self._iterations < self.memory_after:
            self._log_memory()

    def _log_memory(self) -> None:
        peaks = all_gather_object((self._peak, *device_memory()))
        peak, total, device = max(peaks)
        where = device if get_world_size() == 1 else f"{device}; the largest of {len(peaks)} processes"
        print_log(
            f"peak memory after {self._iterations} iterations: {peak / 2**30:.2f} GiB of {total / 2**30:.1f} GiB "
            f"({where})",
            logger="current",
        )
