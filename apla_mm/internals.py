"""What this package uses of mmengine's and torch's privates, and adds to them.

Checked with mmengine 0.10.7, onedl-mmengine 0.10.12 and torch 2.13.0.

Nothing of theirs is replaced: no function, no default, no loader, no file backend. What is added, under names of its
own, by :mod:`apla_mm.registration`: entries in mmengine's registries; the package's name in ``MODULE2PACKAGE``, for
``apla_mm::`` in ``_base_``; the file backend ``apla_mm.atomic``, used where AtomicCheckpointHook asks for it; a loader
of checkpoints whose names end in ``.safetensors``, which mmengine cannot read, and one of those whose names begin with
``apla-mm:``, as CheckpointReaderHook has its runner's begin; and the types that mmengine's own checkpoints hold, which
torch would refuse and mmengine does not allow, or not all of them, to torch's list of what ``weights_only=True`` may
read.

What is reached into, and why:

- ``Runner._resume``, ``Runner._load_from``: what a run begins with, before it does. There is no public name.
  CheckpointReaderHook puts the scheme of this package's loader before a path there.
- ``CheckpointLoader._get_checkpoint_loader``: whether mmengine takes a name for a local file's.
- ``Runner._train_dataloader``: how the training data's sampler is built, for one of the same order. A Runner need not
  have been made from a whole config.
- ``Runner._randomness_cfg``: whether ranks draw different seeds, which decides about a rank's random numbers.
- ``OptimWrapper._accumulative_counts``: between steps of the optimizer nothing may be saved or stopped.
- ``EMAHook._swap_ema_parameters``: a run that is stopped in a validation has the EMA in its model's place.
- ``CheckpointHook._save_checkpoint_with_step``, ``_save_best_checkpoint``: overridden by AtomicCheckpointHook, which
  removes after it saves; called by StopSignalHook, to save as the config's hook would.
- ``DefaultScope._instance_dict``: the scopes that are entered, of which :mod:`apla_mm.registry` takes the last but its
  own.
- ``Visualizer._vis_backends``: a back end is added to a visualizer that is there already.
- ``mmengine._strategy``: FlexibleRunner's strategies have no public module.
- ``torch.utils.data._utils.signal_handling._error_if_any_worker_fails``: the only way to ask for a worker's death.
- ``DataLoader._iterator``: mmengine's loop starts an iterator, and its workers, that are not used.
- the frame of mmengine's ``load_state_dict``: see :func:`model_being_loaded`.
- ``nn.Module._parameters``, ``_buffers``, ``_modules``, ``_non_persistent_buffers_set``, ``_load_from_state_dict`` and
  ``_save_to_state_dict``: what torch's own modules override and read, throughout ``method``, ``methods`` and ``delta``.
- ``Tensor._make_wrapper_subclass``, ``torch._C._disabled_torch_function_impl``, ``Parameter``'s ``_is_param`` and
  ``torch._has_compatible_shallow_copy_type``: what torch's own tensor subclasses and ``nn.Module.to`` use, in
  ``method.held_weight``.
- ``torch._C._jit_set_onnx_log_enabled``: the only way to keep torch's ONNX exporter from printing a whole graph.

``measure`` also counts by what torch's profilers use (``_cdata`` of storages, ``torch.utils._python_dispatch``), and
tells bytes apart by the frames of methods (``sys._getframe``). ``models.heads.lean_detectors`` overrides what mmdet and
mmseg have Mask2Former heads call of themselves: ``_get_targets_single``, ``_loss_by_feat_single`` and
``_seg_data_to_instance_data``.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

SCHEME = "apla-mm:"  #: before a path, for mmengine: that this package reads the file


def resumes(runner: Any) -> bool:
    """Whether a runner will go on from a checkpoint, or has."""
    return bool(getattr(runner, "_resume", False))


def load_path(runner: Any) -> str | None:
    """Where a runner loads weights from, or the checkpoint that it resumes, without :data:`SCHEME`.

    None if it loads nothing, or still has to look for the latest checkpoint.
    """
    path = getattr(runner, _place_of_path(runner), None)
    return None if path is None else without_scheme(path)


def set_load_path(runner: Any, path: str) -> None:
    """Have a runner load from, or resume, something else."""
    setattr(runner, _place_of_path(runner), path)


def _place_of_path(runner: Any) -> str:
    # FlexibleRunner may have the path in either
    return "_resume" if isinstance(getattr(runner, "_resume", None), str) else "_load_from"


def without_scheme(path: Any) -> str:
    """A path as it was before :data:`SCHEME` was put before it."""
    return str(path).removeprefix(SCHEME)


def is_local_file(path: str) -> bool:
    """Whether mmengine's CheckpointLoader takes this for the path of a local file, or this package's does."""
    from mmengine.runner import CheckpointLoader
    from mmengine.runner.checkpoint import load_from_local

    loader = CheckpointLoader._get_checkpoint_loader(path)
    return loader is load_from_local or loader.__module__.partition(".")[0] == __name__.partition(".")[0]


def train_dataloader_config(runner: Any) -> Mapping[str, Any] | None:
    """The config of a runner's training data; None if it was given a DataLoader."""
    config = getattr(runner, "_train_dataloader", None)
    return config if isinstance(config, Mapping) else None


def ranks_differ(runner: Any) -> bool:
    """Whether each rank draws other random numbers."""
    return bool(runner._randomness_cfg.get("diff_rank_seed", False))


def accumulated_iterations(runner: Any) -> int:
    """How many iterations' gradients make one step of the optimizer."""
    return getattr(runner.optim_wrapper, "_accumulative_counts", 1)


def swap_ema(hook: Any) -> None:
    """Exchange a model's parameters with those of an EMAHook."""
    hook._swap_ema_parameters()


def save_at(hook: Any, runner: Any, step: int, meta: dict[str, Any]) -> None:
    """Have a CheckpointHook save as it does at its own intervals."""
    hook._save_checkpoint_with_step(runner, step, meta=meta)


def add_backend(visualizer: Any, name: str, backend: Any) -> None:
    """Give a visualizer another back end."""
    visualizer._vis_backends[name] = backend


def raise_if_worker_died() -> None:
    """Raise torch's error if a data loader's worker has died, which torch raises once."""
    from torch.utils.data._utils.signal_handling import _error_if_any_worker_fails

    _error_if_any_worker_fails()


def drop_iterator(loop: Any) -> None:
    """Forget the iterator that mmengine's loop has made of its data loader; its workers end."""
    del loop.dataloader_iterator
    loop.dataloader._iterator = None


def model_being_loaded(frame: FrameType | None) -> tuple[nn.Module, Mapping[str, Tensor]] | None:
    """The model that mmengine's ``load_state_dict`` is about to write to, and the state dict, as it was renamed.

    It loads what fits and leaves the rest, and calls nothing that knows the model before it writes. So whoever must
    know looks at the local variables of the function that asks for the state dict's metadata.

    Args:
        frame: Of the caller of ``metadata.get``.

    Returns:
        The model and the state dict; None if another function than mmengine's asks.

    Raises:
        RuntimeError: mmengine's function has changed.
    """
    module = sys.modules.get("mmengine.runner.checkpoint")
    if frame is None or module is None or frame.f_globals is not vars(module):
        return None
    model, state = frame.f_locals.get("module"), frame.f_locals.get("local_state_dict")
    if not isinstance(model, nn.Module) or not isinstance(state, Mapping):
        raise RuntimeError("this mmengine loads state dicts in another way than apla_mm knows: a delta is not loaded")
    return model, state


@contextlib.contextmanager
def without_graphs() -> Iterator[None]:
    """While it is open, torch's ONNX exporter prints no graph where it fails; its log is C++'s, not Python's."""
    before = torch._C._jit_is_onnx_log_enabled()
    torch._C._jit_set_onnx_log_enabled(False)
    try:
        yield
    finally:
        torch._C._jit_set_onnx_log_enabled(before)
