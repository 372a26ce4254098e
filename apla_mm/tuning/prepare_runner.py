"""Prepares the model of a runner that is about to train for a tuning method."""

from collections.abc import Sequence
from contextlib import suppress

from mmengine.dist import all_gather_object
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import nn

from ..method.wrappers import unwrapped
from ..methods import TuningMethod
from ..text import quoted
from .adapt_runner import beside_which, find_target, hold_what_trains
from .frozen_parts import check_train_keeps, frozen_by_itself, modes_kept, requires_grad_of
from .optimizers.parameter_groups import optimizers_of


def prepare_runner(runner: Runner, method: TuningMethod, targets: Sequence[str]) -> None:
    """Prepare parts of a runner's model after its optimizer was built and before its weights are loaded.

    The optimizer's groups keep their settings and hold exactly what trains. What the model freezes itself, when it is
    built or each time that it is set to train, must stay frozen. After a refusal the model is as it was.

    Args:
        runner: The runner.
        method: The method.
        targets: Dotted paths of the parts.

    Raises:
        ValueError: A part does not exist, or cannot be trained so; or the method breaks a rule of
            :class:`~apla_mm.methods.TuningMethod`, or cannot go together with a hook of the runner.
    """
    model = unwrapped(runner.model)
    parts = [find_target(model, target) for target in targets]
    as_built = requires_grad_of(model)
    plain = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    own = {id(parameter) for parameter in model.parameters()}
    frozen = frozen_by_itself(model)
    try:
        with modes_kept(model):
            model.train()  # what is frozen then only is frozen by the model itself too
        for target, part in zip(targets, parts, strict=True):
            try:
                method.prepare(part)
            except ValueError as error:
                raise ValueError(f"TuningHook, target '{target}': {error}") from error
        _check_rules(model, plain, frozen, type(method).__name__)
        if new := [name for name, parameter in model.named_parameters() if id(parameter) not in own]:
            _check_hooks(runner, type(method).__name__)
            _check_optimizers(runner, model, new, type(method).__name__)
        check_train_keeps(model)
    except Exception:
        for part in parts:
            with suppress(Exception):  # a method of the user's own may be half done; the first error is what is told
                method.merge(part)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(as_built.get(name, parameter.requires_grad))
        raise
    for optimizer in optimizers_of(runner.optim_wrapper):
        hold_what_trains(optimizer, model)


def check_same_parameters(model: nn.Module) -> None:
    """Check that the same parameters of a model train in all processes.

    Raises:
        RuntimeError: They do not; in all processes.
    """
    every = all_gather_object({name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad})
    for rank, other in enumerate(every):
        if other != every[0]:
            names = [name for name in {**every[0], **other} if every[0].get(name) != other.get(name)]
            raise RuntimeError(
                f"rank {rank} would train other parameters than rank 0: {quoted(names, 3)} differ; give every rank the "
                "same model and method"
            )


def _check_rules(model: nn.Module, plain: dict[str, tuple], frozen: set[str], method: str) -> None:
    now = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    if others := [name for name in {**plain, **now} if plain.get(name) != now.get(name)]:
        raise ValueError(
            f"{method}: the state dict of what it prepares is not the plain model's, as checkpoints would not be: "
            f"{quoted(others, 3)} differ; see LoRALinear in apla_mm/methods for a layer whose state dict is plain"
        )
    if thawed := [name for name, trains in requires_grad_of(model).items() if trains and name in frozen]:
        raise ValueError(
            f"{method} has {quoted(thawed, 3)} train, which the model has frozen itself: nothing is thawed unsaid"
        )


def _check_hooks(runner: Runner, method: str) -> None:
    for hook in runner.hooks:
        if isinstance(hook, EMAHook) and (hook.begin_iter or hook.begin_epoch):
            raise ValueError(
                f"{method} adds parameters, and until it begins EMAHook copies the plain model's alone: leave "
                "begin_iter and begin_epoch of EMAHook out"
            )


def _check_optimizers(runner: Runner, model: nn.Module, new: Sequence[str], method: str) -> None:
    groups = [group for optimizer in optimizers_of(runner.optim_wrapper) for group in optimizer.param_groups]
    held = {parameter for group in groups for parameter in group["params"]}
    if lost := [name for name in new if beside_which(model, name, held) is None]:
        raise ValueError(
            f"{method}: the optimizer holds nothing beside which {quoted(lost, 3)} stand, and they would not train: "
            "have it hold the target's parameters"
        )
