"""The hook that trains a model by any tuning method but APLA's."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import FlexibleRunner, Runner
from torch import Tensor, nn

from ..internals import resumes
from ..loading.base_from_config import prepare_to_load
from ..loading.delta_meta import as_json
from ..loading.weights_check_hook import add_weights_check
from ..method import Report
from ..method.wrappers import is_wrapper, unwrapped
from ..methods import APLA, Full, build_method, read_method
from ..processes import in_every_process
from .adapt_runner import check_checkpointing, find_target, wrap_anew
from .prepare_runner import check_same_parameters, prepare_runner
from .trained.kept_training_hook import KeptTrainingHook, check_method_was_read
from .trained.trainable_check_hook import is_training
from .unmerged import restore, unmerged_of

METHOD_KEY = "method"  #: of the method in a checkpoint's ``meta``
_UNMERGED = "apla_mm_unmerged"  #: of what a checkpoint holds beside ``state_dict``, to be resumed


class TuningHook(KeptTrainingHook):
    """Trains a model by a tuning method, logs what trains, and proves on the first step that nothing else moved.

    One line in the config of any mmseg or mmdet model::

        custom_imports = dict(imports=['apla_mm'])
        custom_hooks = [dict(type='TuningHook', method=dict(type='lora', r=8))]

    Checkpoints stay plain: what a method adds is merged in their ``state_dict``, and training goes on unmerged. Beside
    it they hold what a run that is resumed needs (``apla_mm_unmerged``), which every other reader passes over. A
    validation in training scores what is saved. New parameters take the optimizer's settings for the weight beside
    which they stand; heads train as the config says.

    For APLA there is :class:`APLAHook`.

    Args:
        method: A method as :func:`apla_mm.methods.read_method` reads it: ``'head'``, ``dict(type='lora', r=8)``, or
            ``'package.module.Class'`` for one of your own; see :class:`apla_mm.methods.TuningMethod`.
        target: Dotted path of the part of the model that the method is for, or several.
        frozen_eval: Run what the method freezes as in evaluation: statistics of norms stand still, nothing is dropped.
            Full fine-tuning freezes nothing.
        drop_path: With ``frozen_eval``, whether stochastic depth goes on.
        **check: Arguments of :class:`TrainableCheckHook`: depth, prove, patience.

    Raises:
        ValueError: There is no such method, or it takes no such argument.
    """

    def __init__(
        self,
        method: str | Mapping[str, Any],
        target: str | Sequence[str] = "backbone",
        frozen_eval: bool = True,
        drop_path: bool = True,
        **check: Any,
    ) -> None:
        super().__init__(**check)
        self.method = build_method(method)
        if isinstance(self.method, APLA):
            raise ValueError("TuningHook: APLA's hook is APLAHook: custom_hooks=[dict(type='APLAHook', r=...)]")
        self.given = read_method(method)
        self.targets = [target] if isinstance(target, str) else list(target)
        self.frozen_eval, self.drop_path = frozen_eval, drop_path
        self._unmerged: Mapping[str, Mapping[str, Tensor]] | None = None

    def before_run(self, runner: Runner) -> None:
        """Prepare the targets of a runner that is about to train.

        Raises:
            ValueError: A target does not exist, has adapted itself, or cannot be trained so; or the runner is
                FlexibleRunner or has another TuningHook, or the config asks for mmengine's activation checkpointing.
            RuntimeError: Another process failed so, or trains other parameters.
        """
        add_weights_check(runner, self.priority)  # with this one's it is called next
        if isinstance(runner, FlexibleRunner):
            raise ValueError(
                "TuningHook is not for FlexibleRunner, which has wrapped the model, built the optimizer and loaded "
                "weights before it calls hooks: use mmengine's Runner, on several GPUs too"
            )
        if sum(isinstance(hook, TuningHook) for hook in runner.hooks) > 1:
            raise ValueError("a run has one TuningHook, which may be for several parts: target=['backbone', 'neck']")
        check_method_was_read(runner)
        prepare_to_load(runner)
        if not is_training(runner):
            return  # checkpoints are plain, and so is the model
        check_checkpointing(runner, "method=dict(..., recompute='block') saves memory")
        model, wrapped = unwrapped(runner.model), is_wrapper(runner.model)
        in_every_process(lambda: _check_not_adapted(model))
        # not wrapped until the ranks are known to agree: where shapes differ DDP fails in some, and the others wait
        runner.model = model
        in_every_process(lambda: prepare_runner(runner, self.method, self.targets))
        print_log(f"{', '.join(self.targets)}: trained by {self.method}", logger="current")
        parts = [find_target(model, target) for target in self.targets]
        self.keep(model, parts, self.frozen_eval and not isinstance(self.method, Full), self.drop_path)
        check_same_parameters(model)
        super().before_run(runner)
        if wrapped:
            wrap_anew(runner, model)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep what the checkpoint holds beside the weights, if the run is resumed.

        Raises:
            ValueError: The checkpoint is of another method.
        """
        if not resumes(runner) or not is_training(runner):
            return
        then, now = (checkpoint.get("meta") or {}).get(METHOD_KEY), as_json(self.given)
        if _but_recompute(then) != _but_recompute(now):
            raise ValueError(
                f"the checkpoint that is resumed was trained by {then or 'no TuningHook'}, and method is {now}: the "
                "optimizer's state belongs to what trained then. To begin from its weights, leave out --resume and set "
                "load_from"
            )
        self._unmerged = checkpoint.get(_UNMERGED, {})

    def before_train(self, runner: Runner) -> None:
        """Go on unmerged where the run that is resumed was, and log the table; errors of the base class.

        Raises:
            ValueError: What the checkpoint holds does not fit the model.
        """
        if saved := self._unmerged:
            in_every_process(lambda: restore(runner, saved))
        self._unmerged = None
        super().before_train(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Write the method into the checkpoint's ``meta``, and beside the weights what a resumed run needs."""
        checkpoint["meta"][METHOD_KEY] = as_json(self.given)
        if "optimizer" in checkpoint and (found := unmerged_of(runner)):
            checkpoint[_UNMERGED] = found


def _but_recompute(given: Any) -> Any:
    """A method without what changes no result."""
    return {key: value for key, value in given.items() if key != "recompute"} if isinstance(given, dict) else given


def _check_not_adapted(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(getattr(module, "report", None), Report):
            raise ValueError(
                f"TuningHook: '{name}', {type(module).__name__}, has adapted itself by APLA: leave its apla out"
            )
