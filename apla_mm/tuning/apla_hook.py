"""The hook that adapts a model."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from ..internals import resumes
from ..loading.base_from_config import prepare_to_load
from ..loading.delta_meta import APLA_KEY, CHANNELS_KEY, as_json
from ..loading.weights_check_hook import add_weights_check
from ..method import Report
from ..method.channels.late_channels import awaiting
from ..method.channels.selection import Selection
from ..method.channels.trained import channels_of
from ..method.memory.frozen_dtype import held_names
from ..method.wrappers import is_wrapper, unwrapped
from ..processes import in_every_process
from ..text import quoted
from .adapt_runner import adapt_runner, adapted_by_itself, check_adapted, check_checkpointing, find_target, wrap_anew
from .apla_options import check_options
from .channel_selection import check_can_select, select_channels_of, take_recorded_channels
from .frozen_parts import frozen_by_itself, requires_grad_of, trainable_names
from .fsdp import check_strategy
from .trained.kept_training_hook import KeptTrainingHook, check_method_was_read
from .trained.trainable_check_hook import is_training


class APLAHook(KeptTrainingHook):
    """Adapts a model by APLA before it trains, logs what trains, and proves on the first step that nothing else moved.

    One line in the config of any mmseg or mmdet model with a transformer backbone::

        custom_imports = dict(imports=['apla_mm'])
        custom_hooks = [dict(type='APLAHook', r=64)]

    Checkpoints stay plain: testing and inference need neither the hook nor this package. Weights are loaded as ever,
    after the model was adapted. With none of ``r``, ``channels`` and ``blocks`` the hook adapts nothing, for backbones
    that adapted themselves, and takes no other option of adapting. ``blocks='none'`` freezes the targets, which leaves
    the heads to train; with ``train_bias`` that is BitFit (arXiv 2106.10199).

    A model may freeze parts of itself, as by ``frozen_stages``, but none of what would train: that is an error, and so
    is a change of what trains by the model's own ``train()``, ``init_weights()`` or forward.

    An argument that is None is not given.

    Args:
        r: How many output channels of each projection train; see :func:`apla_mm.adapt`, also for the next five and
            ``attentions``.
        seed: Draws the channels; 0 by default.
        channels: The channels by projection instead, or a JSON file of them. With one target only.
        blocks: Which attentions are adapted; ``'all'`` by default.
        trainable: Patterns of further parameters of the targets that train.
        recompute: What the targets' blocks compute again in backward, to save memory.
        target: Dotted path of the part of the model to adapt, or several; ``'backbone'`` by default.
        attentions: Further kinds of attention in the targets: ``{'package.module.Class': 'path.of.projection'}``.
        frozen_dtype: What frozen weights of the targets' linear layers and convolutions are held in: ``'bfloat16'`` for
            training under bfloat16 autocast, as of BFloat16OptimWrapper.
        selection: What chooses the channels: ``'random'``, by the seed, which is the default; or, once weights are
            loaded, the ``r`` highest scores by ``'magnitude'``, ``'gradient'`` or ``'fisher'``, see
            :mod:`~..method.scores`. The last two read 8 batches, or as of ``dict(type='fisher', batches=32)``. A
            resumed run keeps the channels of its checkpoint.
        train_norm: Train the norms of the targets too, but for those that the model has frozen itself, as of the next
            two.
        train_bias: Train all biases of the targets too.
        train_pos_embed: Train their position embeddings too, relative ones included.
        frozen_eval: Run what is frozen in the targets as in evaluation: statistics of norms stand still, nothing is
            dropped; True by default.
        drop_path: With ``frozen_eval``, whether stochastic depth goes on; True by default.
        **check: Arguments of :class:`TrainableCheckHook`: depth, prove, patience.

    Raises:
        ValueError: An argument is given that nothing reads.
    """

    def __init__(
        self,
        r: int | float | str | None = None,
        seed: int | None = None,
        channels: Mapping[str, Sequence[int]] | str | None = None,
        blocks: str | int | Sequence[int] | None = None,
        trainable: Sequence[str] | None = None,
        recompute: str | None = None,
        target: str | Sequence[str] | None = None,
        attentions: Mapping[str, str | None] | None = None,
        frozen_dtype: str | None = None,
        selection: str | Mapping[str, Any] | None = None,
        train_norm: bool | None = None,
        train_bias: bool | None = None,
        train_pos_embed: bool | None = None,
        frozen_eval: bool | None = None,
        drop_path: bool | None = None,
        **check: Any,
    ) -> None:
        super().__init__(**check)
        options = dict(
            r=r, channels=channels, blocks=blocks, seed=seed, selection=selection, trainable=trainable,
            recompute=recompute, target=target,
            train_norm=train_norm, train_bias=train_bias, train_pos_embed=train_pos_embed, frozen_eval=frozen_eval,
            drop_path=drop_path, attentions=attentions, frozen_dtype=frozen_dtype,
        )  # fmt: skip
        self.adapts = check_options({name: value for name, value in options.items() if value is not None})
        how = Selection.of(selection or "random")
        self.targets = [target] if isinstance(target, str) else list(target or ["backbone"])
        if channels is not None and len(self.targets) > 1:
            raise ValueError("APLAHook: channels are listed for one target; give each target a hook of its own")
        self.arguments: dict[str, Any] = dict(
            r=r, seed=(seed or 0) if how.type == "random" else None, channels=channels,
            blocks="all" if blocks is None else blocks, recompute=recompute or "none",
        )  # fmt: skip
        if how.type != "random":
            self.arguments["selection"] = how.as_argument()
        if attentions is not None:
            self.arguments["attentions"] = dict(attentions)
        if frozen_dtype is not None:
            self.arguments["frozen_dtype"] = frozen_dtype
        self.trainable = list(trainable or ())
        self.train = dict(norm=bool(train_norm), bias=bool(train_bias), pos_embed=bool(train_pos_embed))
        self.frozen_eval = frozen_eval is not False
        self.drop_path = drop_path is not False

    def before_run(self, runner: Runner) -> None:
        """Adapt the targets of a runner that is about to train.

        Raises:
            ValueError: A target does not exist, cannot be adapted as asked or freezes itself what would train, or the
                config asks for mmengine's activation checkpointing.
            FileNotFoundError: The file of channels does not exist.
            RuntimeError: Another process failed so, or trains other channels.
        """
        add_weights_check(runner, self.priority)  # with this one's it is called next
        check_strategy(runner, self.adapts)
        check_method_was_read(runner)
        prepare_to_load(runner)
        if not is_training(runner):
            return  # checkpoints are plain, and so is the model
        check_checkpointing(
            runner,
            "APLAHook(r=..., recompute='block') or, of a backbone that adapts itself, apla=dict(r=..., "
            "recompute='block') saves memory",
        )
        model, wrapped = unwrapped(runner.model), is_wrapper(runner.model)
        if not self.adapts:
            parts, before = adapted_by_itself(model), requires_grad_of(model)
            in_every_process(lambda: check_adapted(model, parts))
            self.keep(model, parts, frozen_eval=False, drop_path=True)
            in_every_process(lambda: check_can_select(runner, awaiting(model)))
            super().before_run(runner)
            _warn_without_autocast(runner, model)
            if wrapped and requires_grad_of(model) != before and isinstance(runner, Runner):
                wrap_anew(runner, model)
            return
        # not wrapped until the ranks are known to agree: where shapes differ DDP fails in some, and the others wait
        runner.model = model
        selections = [Selection.of(self.arguments.get("selection", "random"))]
        in_every_process(lambda: check_can_select(runner, selections))
        reports = in_every_process(lambda: adapt_runner(runner, self.options(model)))
        for target, report in reports.items():
            print_log(f"{target}: {report}", logger="current")
        self.keep(model, [find_target(model, target) for target in self.targets], self.frozen_eval, self.drop_path)
        super().before_run(runner)
        _warn_without_autocast(runner, model)
        if wrapped:
            wrap_anew(runner, model)

    def after_load_checkpoint(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Take the channels that were to be chosen from the checkpoint, if the run is resumed.

        Raises:
            ValueError: It does not record them.
            RuntimeError: So it is in another process.
        """
        if resumes(runner) and is_training(runner):
            meta = checkpoint.get("meta") or {}
            in_every_process(lambda: take_recorded_channels(runner, meta))

    def before_train(self, runner: Runner) -> None:
        """As :class:`KeptTrainingHook`; then choose the channels that are still to be chosen.

        Raises:
            ValueError: As there, or channels cannot be chosen.
            RuntimeError: As there.
        """
        super().before_train(runner)
        hooks = [hook for hook in runner.hooks if isinstance(hook, APLAHook)]
        select_channels_of(runner, {module for hook in hooks for module in hook._evaluated})

    def options(self, model: nn.Module) -> dict[str, dict[str, Any]]:
        """What to do to a model.

        Args:
            model: A plain model.

        Returns:
            Dotted path of each target to the arguments of :func:`apla_mm.adapt` for it.

        Raises:
            ValueError: A target does not exist, or has none of what else shall train, or has frozen that itself.
        """
        frozen, options = frozen_by_itself(model), {}
        for target in self.targets:
            part = find_target(model, target)
            own = {name.removeprefix(f"{target}.") for name in frozen if name.startswith(f"{target}.")}
            further = trainable_names(part, own, **self.train)
            if left_out := [name for name in trainable_names(part, (), **self.train) if name in own]:
                print_log(
                    f"{target}: {len(left_out)} parameters of the kinds that train stay frozen, as the model has "
                    f"frozen them itself: {quoted(left_out, 4)}",
                    logger="current",
                )
            options[target] = {**self.arguments, "trainable": [*self.trainable, *further]}
        return options

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Write into the checkpoint's ``meta`` what of APLA the run was asked for."""
        chosen: dict[str, Any] = {}
        if self.adapts:
            chosen = {**self.arguments, "target": self.targets, "trainable": self.trainable, "train": self.train}
        else:
            reports = [r for m in runner.model.modules() if isinstance(r := getattr(m, "report", None), Report)]
            chosen = dict(reports[0].arguments) if reports else {}
        if chosen:
            own = as_json({key: value for key, value in chosen.items() if value is not None})
            before = checkpoint["meta"].get(APLA_KEY)  # of another APLAHook, for another target
            hooks = before.get("hooks", [before]) if before else []
            if own not in hooks:  # mmengine's hook saves several checkpoints with one meta
                checkpoint["meta"][APLA_KEY] = dict(hooks=[*hooks, own]) if hooks else own
        if "selection" in chosen:
            checkpoint["meta"][CHANNELS_KEY] = channels_of(unwrapped(runner.model))


def _warn_without_autocast(runner: Runner, model: nn.Module) -> None:
    if type(runner.optim_wrapper) is OptimWrapper and (names := held_names(model)):
        print_log(
            f"{len(names)} frozen weights that are held in another dtype act so under autocast alone, and OptimWrapper "
            "has none: results are right, and slow on a GPU; use optim_wrapper=dict(type='BFloat16OptimWrapper', ...), "
            "or leave frozen_dtype out",
            logger="current",
            level=logging.WARNING,
        )
