"""The hook that adapts a model, and says and proves what trains."""

import gc
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from ..measure import format_table, trainable_table
from ..measure.fingerprint import channels_digest, channels_of, trained_and_frozen_digests
from ..method import Report
from ..runs.base_from_config import provide_base
from ..runs.delta_meta import plain
from .adapt_runner import adapt_runner, find_target, unwrapped
from .delta_hook import MODES, DeltaSaver, look_also_in, refuse_to_resume_delta
from .frozen_parts import frozen_modules, trainable_names
from .fsdp import check_strategy, gathered


class APLAHook(Hook):
    """Adapts a model by APLA before it trains, logs what trains, and proves on the first step that nothing else moved.

    One line in the config of any mmseg or mmdet model with a transformer backbone::

        custom_imports = dict(imports=['apla_mm'])
        custom_hooks = [dict(type='APLAHook', r=64)]

    Checkpoints stay plain: testing and inference need neither the hook nor this package. Weights are loaded as ever,
    after the model was adapted. Without ``r``, ``channels`` and ``blocks`` the hook adapts nothing, for backbones that
    adapted themselves. ``blocks='none'`` freezes the targets, which leaves the heads to train; with
    ``train_bias`` that is BitFit (arXiv 2106.10199).

    With ``save='delta'`` or ``'both'`` a delta, ``iter_N.delta.safetensors`` for ``iter_N.pth``, lies beside each
    checkpoint: what trained or moved, which is little. It loads wherever checkpoints do, as long as the base file is
    found, which is written once, before training.

    All processes must train the same channels, which DDP would not notice, since it averages gradients by position. So
    they are compared before training, those of backbones that adapted themselves too; a difference stops all processes.

    Before training it writes a table (module, trained, total, share). At the first step it compares every tensor
    before and after, bit by bit: a frozen one that moved stops the run. A trained one that has not moved
    ``patience`` iterations later is warned about; right at the first step a warm-up may be too small to show.

    Args:
        r: How many output channels of each projection train; see :func:`apla_mm.adapt`, also for the next five.
        seed: Draws the channels.
        channels: The channels by projection instead, or a JSON file of them. With one target only.
        blocks: Which attentions are adapted.
        trainable: Patterns of further parameters of the targets that train.
        recompute: What the targets' blocks compute again in backward, to save memory.
        target: Dotted path of the part of the model to adapt, or several.
        train_norm: Train the norms of the targets too.
        train_bias: Train all biases of the targets too.
        train_pos_embed: Train their position embeddings too, relative ones included.
        frozen_eval: Run what is frozen in the targets as in evaluation: statistics of norms stand still, nothing is
            dropped.
        drop_path: With ``frozen_eval``, whether stochastic depth goes on.
        depth: How far down the table tells parts of the model apart.
        prove: Compare tensors at the first step. It takes about a second for each GB of weights, once.
        patience: Iterations after which everything that trains should have moved.
        save: ``'full'`` for plain checkpoints; ``'both'`` for deltas too; with ``'delta'`` checkpoints keep of the
            weights only what the deltas do, with all that resuming needs, and reading them needs this package and the
            base file. Needs AtomicCheckpointHook.
        base_dir: Folder of the base file, which runs of the same frozen weights can share; None for the checkpoints'
            own. ``bases`` in that folder's parent is found without being named; any other one must be named to tools
            that run no hooks, by the environment variable ``APLA_MM_BASES``.
    """

    priority = "VERY_HIGH"

    def __init__(
        self,
        r: int | float | str | None = None,
        seed: int = 0,
        channels: Mapping[str, Sequence[int]] | str | None = None,
        blocks: str | int | Sequence[int] = "all",
        trainable: Sequence[str] = (),
        recompute: str = "none",
        target: str | Sequence[str] = "backbone",
        train_norm: bool = False,
        train_bias: bool = False,
        train_pos_embed: bool = False,
        frozen_eval: bool = True,
        drop_path: bool = True,
        depth: int = 3,
        prove: bool = True,
        patience: int = 100,
        save: str = "full",
        base_dir: str | None = None,
    ) -> None:
        if save not in MODES:
            raise ValueError(f"APLAHook: save={save!r} must be one of {', '.join(map(repr, MODES))}")
        self.targets = [target] if isinstance(target, str) else list(target)
        if channels is not None and len(self.targets) > 1:
            raise ValueError("APLAHook: channels are listed for one target; give each target a hook of its own")
        self.adapts = r is not None or channels is not None or blocks != "all"
        self.arguments = dict(r=r, seed=seed, channels=channels, blocks=blocks, recompute=recompute)
        self.trainable = list(trainable)
        self.train = dict(norm=train_norm, bias=train_bias, pos_embed=train_pos_embed)
        self.frozen_eval = frozen_eval
        self.drop_path = drop_path
        self.depth = depth
        self.prove = prove
        self.patience = patience
        self.save, self.base_dir = save, base_dir
        self._saver: DeltaSaver | None = None
        self._evaluated: list[nn.Module] = []
        self._frozen: dict[str, str] | None = None
        self._trained: dict[str, str] = {}
        self._check_again_at: int | None = None

    def before_run(self, runner: Runner) -> None:
        """Adapt the targets of a runner that is about to train.

        Raises:
            ValueError: A target does not exist or cannot be adapted as asked, or the config asks for mmengine's
                activation checkpointing.
            FileNotFoundError: The file of channels does not exist.
            RuntimeError: Another process failed so, or trains other channels.
        """
        check_strategy(runner, self.adapts)
        refuse_to_resume_delta(runner)
        if self.base_dir is not None:
            look_also_in(self.base_dir)
        provide_base(runner)
        if not isinstance(runner.optim_wrapper, OptimWrapper | OptimWrapperDict):
            return  # testing: checkpoints are plain, and so is the model
        if runner.cfg.get("activation_checkpointing"):
            raise ValueError(
                "activation_checkpointing: mmengine's gives no gradient to blocks behind a frozen stem, and they would "
                "not train; leave it out; APLAHook(recompute='block') or apla=dict(recompute='block') saves memory"
            )
        model, wrapped = unwrapped(runner.model), is_model_wrapper(runner.model)
        if self.adapts:
            # bare until the ranks are known to agree: of shapes that differ DDP tells some, and the others wait
            runner.model = model
            self._adapt(runner)
        _check_same_channels(model)
        if self.adapts and wrapped:
            gc.collect()  # with the old wrapper go the hooks that it left on the parameters
            runner.model = runner.wrap_model(runner.cfg.get("model_wrapper_cfg"), model)
        if self.save != "full":
            self._saver = DeltaSaver(self.save, self.base_dir, self._about(runner))
            self._saver.attach(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Note the base of a run that is resumed and saves deltas."""
        if self._saver is not None:
            self._saver.after_load_checkpoint(runner, checkpoint)

    def options(self, model: nn.Module) -> dict[str, dict[str, Any]]:
        """What to do to a model.

        Args:
            model: A plain model.

        Returns:
            Dotted path of each target to the arguments of :func:`apla_mm.adapt` for it.

        Raises:
            ValueError: A target does not exist, or has none of what else shall train.
        """
        return {
            target: {
                **self.arguments,
                "trainable": [*self.trainable, *trainable_names(find_target(model, target), **self.train)],
            }
            for target in self.targets
        }

    def _about(self, runner: Runner) -> dict[str, Any]:
        """What a delta's header says of what trains."""
        reports = [r for m in runner.model.modules() if isinstance(r := getattr(m, "report", None), Report)]
        if self.adapts:
            chosen = {**self.arguments, "target": self.targets, "trainable": self.trainable, "train": self.train}
        else:  # backbones adapted themselves, or nothing is
            chosen = dict(reports[0].arguments) if reports else {}
        r, seed = chosen.pop("r", None), chosen.pop("seed", None)
        return dict(r=r, seed=seed, selection=plain({key: value for key, value in chosen.items() if value is not None}))

    def _adapt(self, runner: Runner) -> None:
        failure = None
        try:
            reports = adapt_runner(runner, self.options(runner.model))
        except Exception as error:
            failure = error
        # so that none waits for one that failed
        failures = all_gather_object(failure and f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        for rank, text in enumerate(failures):
            if text:
                raise RuntimeError(f"rank {rank} could not adapt its model: {text}")
        for target, report in reports.items():
            print_log(f"{target}: {report}", logger="current")
        if self.frozen_eval:
            parts = (find_target(runner.model, target) for target in self.targets)
            self._evaluated = [m for part in parts for m in frozen_modules(part, self.drop_path)]

    def before_train(self, runner: Runner) -> None:
        """Log the table."""
        with gathered(runner.model):
            rows = trainable_table(unwrapped(runner.model), self.depth)
        if not rows[-1].trained:
            raise RuntimeError("nothing of the model trains: leave a head trainable, or adapt its backbone")
        print_log(f"what trains:\n{format_table(rows)}", logger="current")

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep frozen modules in evaluation mode; remember the tensors before the first step."""
        for module in self._evaluated:
            module.training = False
        if self.prove and self._frozen is None:
            self._trained, self._frozen = _digests(runner)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Compare after the first step that the optimizer took, and once more for what had not moved by then.

        Raises:
            RuntimeError: A frozen tensor changed.
        """
        if self.prove:
            self._compare(runner)
        elif runner.iter == self._check_again_at:
            now, _ = _digests(runner)
            still = [name for name, digest in self._trained.items() if now[name] == digest]
            if still:
                print_log(
                    f"{len(still)} tensors that should train have not changed in {self.patience} iterations, such as "
                    f"{', '.join(still[:4])}: they get no gradient, or a learning rate of 0",
                    logger="current",
                    level=logging.WARNING,
                )

    def _compare(self, runner: Runner) -> None:
        assert self._frozen is not None
        trained, frozen = _digests(runner)
        moved = [name for name, digest in frozen.items() if self._frozen[name] != digest]
        if moved:
            raise RuntimeError(f"{len(moved)} frozen tensors changed in training, such as {', '.join(moved[:4])}")
        still = {name: digest for name, digest in trained.items() if self._trained[name] == digest}
        if len(still) == len(trained):
            return  # gradients are still accumulated, or a loss scaler skipped the step
        print_log(
            f"first step: {len(trained) - len(still)} of {len(trained)} trained tensors changed, "
            f"0 of {len(frozen)} frozen ones",
            logger="current",
        )
        self.prove, self._frozen, self._trained = False, {}, still
        self._check_again_at = runner.iter + self.patience if still else None


def _digests(runner: Runner) -> tuple[dict[str, str], dict[str, str]]:
    with gathered(runner.model):
        return trained_and_frozen_digests(unwrapped(runner.model))


def _check_same_channels(model: nn.Module) -> None:
    digests = all_gather_object(channels_digest(model))
    usual, _ = Counter(digests).most_common(1)[0]
    others = [rank for rank, digest in enumerate(digests) if digest != usual]
    if not others:
        return
    every = all_gather_object(channels_of(model))
    pair = digests.index(usual), others[0]
    one, other = (every[rank] for rank in pair)
    name = next(name for name in {**one, **other} if one.get(name) != other.get(name))
    told = " and ".join(f"{_shorten(every[rank].get(name))} on rank {rank}" for rank in pair)
    raise RuntimeError(
        f"{'rank' if len(others) == 1 else 'ranks'} {', '.join(map(str, others))} would train other channels than the "
        f"rest, of '{name}' for one: {told}; give every rank the same model, r, seed, blocks and channels"
    )


def _shorten(channels: list[int] | None) -> str:
    if channels is None:
        return "none or all"
    return f"{len(channels)} ({', '.join(map(str, channels[:8]))}{', ...' * (len(channels) > 8)})"
