"""Chooses the channels of a runner's adapted model by score, once its weights are loaded and before it trains.

What the scores are, says :mod:`~..method.scores`. Gradients are computed by a copy of the model, on the batches that
training begins with, augmented as there, in the model's training mode and under the run's autocast. So nothing else of
training changes: random numbers, the order of the data, statistics of norms and gradients are as if nothing was scored.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from mmengine.dist import all_reduce, broadcast_object_list, get_rank
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ..internals import train_dataloader_config
from ..loading.delta_meta import CHANNELS_KEY
from ..method import PartialLinear, Report
from ..method.channels.late_channels import awaiting, choose_channels
from ..method.channels.scores import gradient_statistics, row_norms, scores_of, scoring_copy
from ..method.channels.selection import ChannelLists, Selection, top_channels
from ..method.wrappers import unwrapped
from ..processes import in_every_process
from ..runs.seeding import generators_kept, seed_all, seed_of_rank
from ..runs.training_batches import TrainingBatches, batch_sampler_anew

#: losses under float16 autocast are scaled by a power of two, which leaves the order of scores as it is
_LOSS_SCALE = 2.0**12


def check_can_select(runner: Any, selections: Iterable[Selection]) -> None:
    """Check, before a run, that it can choose channels so.

    Args:
        runner: A runner that is about to train.
        selections: What channels are to be chosen by.

    Raises:
        ValueError: It cannot.
    """
    for selection in selections:
        by, instead = f"selection='{selection.type}'", "give channels='<file>', as of a run of one process"
        if selection.type != "random" and not isinstance(runner, Runner):
            raise ValueError(f"{by} needs whole weights, and {type(runner).__name__} may shard them: {instead}")
        if not selection.reads_data:
            continue
        if not isinstance(runner.optim_wrapper, OptimWrapper):
            raise ValueError(f"{by} goes by one loss, and the run has several optimizers: {instead}")
        if not isinstance((train_dataloader_config(runner) or {}).get("sampler"), dict):
            raise ValueError(
                f"{by} reads train_dataloader by a sampler of its own, and no config tells this one's: set "
                f"train_dataloader=dict(sampler=dict(type=...), ...), or {instead}"
            )


def select_channels_of(runner: Runner, evaluated: Collection[nn.Module]) -> None:
    """Choose the channels that are still to be chosen, in all processes alike.

    Args:
        runner: The runner.
        evaluated: Modules of its model that training runs as in evaluation.

    Raises:
        ValueError: There are no gradients to go by.
        RuntimeError: Another process failed so.
    """
    model = unwrapped(runner.model)
    for selection, names in awaiting(model).items():
        with generators_kept():
            statistics = in_every_process(_Scoring(runner, model, selection, names, evaluated))
        lists: dict[str, list[int]] = {}
        for name, statistic in statistics.items():
            all_reduce(statistic, "mean")
            r = len(model.get_submodule(name).trained.chosen)
            lists[name] = top_channels(scores_of(selection.type, statistic), r, name)
        shared = [lists]
        broadcast_object_list(shared)  # of the first process, should rounding differ
        _choose(runner, shared[0])
        data = f" on {selection.batches} batches of training data" if selection.reads_data else ""
        print_log(f"the channels of {len(names)} projections are chosen by {selection.type}{data}", logger="current")


def take_recorded_channels(runner: Runner, meta: Mapping[str, Any]) -> None:
    """Take the channels that are still to be chosen from the checkpoint that is resumed.

    Args:
        runner: The runner.
        meta: The checkpoint's.

    Raises:
        ValueError: It has not all of them, or they do not fit.
    """
    names = [name for several in awaiting(unwrapped(runner.model)).values() for name in several]
    recorded = meta.get(CHANNELS_KEY)
    recorded = recorded if isinstance(recorded, dict) else {}
    if missing := [name for name in names if not isinstance(recorded.get(name), list)]:
        raise ValueError(
            f"the checkpoint that is resumed does not record the channels of '{missing[0]}', being of a run without "
            "selection=...: resume with the settings of then; to start anew from its weights leave out --resume and "
            "set load_from"
        )
    if names:
        _choose(runner, {name: recorded[name] for name in names})


def _choose(runner: Runner, lists: ChannelLists) -> None:
    choose_channels(unwrapped(runner.model), lists)
    for hook in runner.hooks:
        if isinstance(hook, EMAHook) and isinstance(average := getattr(hook, "ema_model", None), nn.Module):
            choose_channels(unwrapped(average.module), lists)  # a copy of the model, adapted as that was
    for module in unwrapped(runner.model).modules():
        if isinstance(report := getattr(module, "report", None), Report):
            module.report = report.with_channels_of(module)


class _Scoring:
    """What a process does by itself to score channels; it gives a statistic by projection."""

    def __init__(
        self,
        runner: Runner,
        model: nn.Module,
        selection: Selection,
        names: list[str],
        evaluated: Collection[nn.Module],
    ) -> None:
        self.runner, self.model, self.selection, self.names = runner, model, selection, names
        self.evaluated = [name for name, module in model.named_modules() if module in evaluated]

    def __call__(self) -> dict[str, Tensor]:
        if not self.selection.reads_data:
            linears = {name: self.model.get_submodule(name) for name in self.names}
            return {name: row_norms(linear) for name, linear in linears.items() if isinstance(linear, PartialLinear)}
        copy = scoring_copy(self.model)
        copy.train()
        for name in self.evaluated:
            copy.get_submodule(name).training = False
        wrapper: Any = _BackwardOnly(self.runner.optim_wrapper)

        def backward(copy: Any, batch: Any) -> None:
            type(copy).train_step(copy, batch, wrapper)  # not a compiled one, which is the model's own

        return gradient_statistics(copy, self.names, self.selection.type, self._batches(), backward)

    def _batches(self) -> Iterator[Any]:
        seed = seed_of_rank(self.runner)
        for number, batch in enumerate(islice(_training_batches(self.runner, seed), self.selection.batches)):
            seed_all(seed, 2, number, get_rank())
            yield batch


class _BackwardOnly:
    """In place of an optimizer wrapper, for a model's ``train_step``: the run's autocast, and no step."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper

    def optim_context(self, model: nn.Module) -> AbstractContextManager[None]:
        return self._wrapper.optim_context(model)

    def update_params(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        (loss * (_LOSS_SCALE if hasattr(self._wrapper, "loss_scaler") else 1)).backward()


def _training_batches(runner: Runner, seed: int) -> Iterable[Any]:
    loop: Any = runner.train_loop
    sampler = batch_sampler_anew(loop.dataloader, train_dataloader_config(runner), seed)
    assert sampler is not None  # checked before the run
    skip = getattr(loop, "skip_unreadable", False)
    return TrainingBatches(loop.dataloader, sampler, seed, start=0, skip_unreadable=skip, apart=True)
