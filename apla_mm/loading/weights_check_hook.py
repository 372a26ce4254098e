"""The hook that stops a run whose weights are not those of the files that it names."""

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from ..internals import load_path, resumes
from ..method.wrappers import unwrapped
from ..models import APLAViT
from ..processes import in_every_process
from ..text import listed, printable
from .fit import Fit, fit_of
from .named_files import NamedFile, named_files
from .strict_delta import _StrictMetadata
from .values import is_constant, names_from

_POSITION = re.compile(r"(^|[._])pos(ition|itional)?(_|\.|$)")  # tables, resized to the image's size
_CURE = "to load what fits and go on, set strict=False of the WeightsCheckHook (default_hooks.weights_check)"


class WeightsCheckHook(Hook):
    """Stops a run whose weights are not those of the files that it names, which mmengine's loading lets through.

    mmengine loads what fits of a file, leaves the rest at random, and goes on. What a checkpoint would load is found
    out before it is loaded: to test, to validate or to resume, all of the model; to begin training from
    (``load_from``), some of it, and what is new is logged. What ``init_cfg`` loads is found out afterwards, before the
    first step, and by values, since backbones rename, permute and resize what they load: the frozen tensors of two
    dimensions or more must be in the files. Position tables, which are resized, and constants are left out.

    Reading the files again and comparing takes some 2 s for ViT-B, on one core.

    Args:
        strict: Whether to stop; False warns instead.
    """

    priority = "VERY_HIGH"

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict
        self._loaded: set[str] = set()
        self._source = ""

    def after_load_checkpoint(self, runner: Runner, checkpoint: Any) -> None:
        """Look at a checkpoint before it is loaded.

        Raises:
            ValueError: It does not fit the model.
            RuntimeError: So it is in another process.
        """
        if not isinstance(checkpoint, dict) or _is_deepspeed(runner):
            return
        model: Any = runner.model if _is_sharded(runner) else unwrapped(runner.model)
        model = model.module if isinstance(model, BaseTTAModel) else model
        given = checkpoint.get("state_dict", checkpoint)
        if isinstance(getattr(given, "_metadata", None), _StrictMetadata):
            self._loaded, self._source = set(given), load_path(runner) or "a delta"  # whole, or refused
            return
        state = _state(given)
        self._source = f"'{load_path(runner)}'" if load_path(runner) else "the latest checkpoint"
        in_every_process(lambda: self._check_fit(runner, fit_of(model, state), len(state)))

    def before_train(self, runner: Runner) -> None:
        """Look for the model's weights in the files that it names.

        Raises:
            ValueError: Frozen ones are in none.
            RuntimeError: So it is in another process.
        """
        if _is_deepspeed(runner):
            return
        # of shards all processes together make the whole
        state = (runner.model if _is_sharded(runner) else unwrapped(runner.model)).state_dict()
        in_every_process(lambda: self._check_values(runner, unwrapped(runner.model), state))

    def _check_fit(self, runner: Runner, fit: Fit, keys: int) -> None:
        begins = isinstance(runner.optim_wrapper, OptimWrapper | OptimWrapperDict) and not resumes(runner)
        self._loaded = set(fit.loaded)
        told = f"{fit.count} of the model are in it"
        more = f"; {len(fit.unexpected):,} keys are not the model's: {listed(fit.unexpected, 3)}"
        more = more if fit.unexpected else ""
        if fit.kept and (not begins or not fit.loaded):
            what = "nothing of it fits the model" if not fit.loaded else "it does not fit the model"
            cure = f"{fit.prefix}: save it with such keys" if fit.prefix else _what_fits(fit, begins)
            self._fail(
                f"checkpoint {self._source}: {what}, and nothing was loaded. {told}; {fit.kept}{more}. {cure}; {_CURE}"
            )
        elif fit.kept:
            print_log(f"load_from {self._source}: {told}; new are {fit.kept}{more}", logger="current")
        elif more:
            print_log(f"checkpoint {self._source}: {told}{more}", logger="current")

    def _check_values(self, runner: Runner, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        files = named_files(model)
        naming = {file.part for file in files}
        own = {
            part
            for part, module in model.named_modules()
            if part not in naming and _brings_its_own(runner, part, module)
        }
        training = {_plain(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
        parameters = {_plain(name) for name, _ in model.named_parameters()}
        sought: dict[str, list[str]] = {}
        for name in state.keys() & parameters:
            part = next((part for part in _parts_above(name) if part in own or part in naming), None)
            counts = part in naming or (part is None and name not in training)
            if counts and state[name].ndim >= 2 and state[name].is_floating_point():
                sought.setdefault(name.split(".")[0] if part is None else part, []).append(name)
        absent = {}
        for part, names in sought.items():
            new = {name: state[name] for name in names if name not in self._loaded and not is_constant(state[name])}
            sought[part] = [name for name in names if name in self._loaded or name in new]
            absent.update(new)
        if not absent:
            return
        readable = [file for file in files if _can_read(file)]
        for name in names_from(absent, (tensor for file in readable for tensor in file.tensors())):
            del absent[name]
        random = []
        for part, names in sought.items():
            named = [file for file in files if file.part == part]
            if not named and not self._source:
                random += [part] if any(name in absent for name in names) else []
            elif not named or all(file in readable for file in named):
                self._judge(part, names, state, absent, training, named)
        if random:
            _warn(
                f"what is frozen of {listed(random)} is random: no file of weights is named; name one in its init_cfg "
                "or in load_from"
            )

    def _judge(
        self,
        part: str,
        names: list[str],
        state: Mapping[str, Tensor],
        absent: Collection[str],
        training: set[str],
        files: list[NamedFile],
    ) -> None:
        """Decide about the tensors of one part."""
        gone = sorted(name for name in names if name in absent)
        resized = [name for name in gone if _POSITION.search(name)]
        frozen = [name for name in gone if name not in training and name not in resized]
        matrices = [name for name in frozen if _is_matrix(state[name])]
        whole = f"the model's '{part}'" if part else "the model"
        # some names, as cls_token, are the same everywhere
        core = [name for name in names if _is_matrix(state[name])] or names
        core = [name for name in core if not _POSITION.search(name)]
        if matrices or (core and all(name in absent for name in core)):
            stands = frozen or [name for name in gone if name not in resized]
            total = sum(name not in training for name in names) if frozen else len(names)
            kind = "frozen tensors" if frozen else "tensors"
            places = "; ".join(file.compared() for file in files) or f"not in {self._source}, which has others"
            self._fail(
                f"{whole} has random weights: {len(stands):,} of its {total:,} {kind} of two dimensions or more came "
                f"from no file: {listed(matrices or stands, 3)}. Compared: {places}; {_CURE}"
            )
        elif frozen:
            _warn(
                f"{len(frozen):,} frozen tensors of {whole} came from none of the files named, and are random unless "
                f"they were changed while they were loaded: {listed(frozen, 4)}"
            )
        elif new := [name for name in gone if name in training and name not in resized]:
            print_log(f"{len(new):,} tensors of {whole} that train came from no file: {listed(new, 4)}", "current")
        if resized:
            print_log(f"{len(resized):,} position tables of {whole} are not as in a file: resized, or new", "current")

    def _fail(self, text: str) -> None:
        if self.strict:
            raise ValueError(text)
        _warn(text)


def add_weights_check(runner: Runner, priority: Any = WeightsCheckHook.priority) -> None:
    """Give a runner the hook, if its config has none."""
    if not any(isinstance(hook, WeightsCheckHook) for hook in runner.hooks):
        runner.register_hook(WeightsCheckHook(), priority)


def _state(given: Any) -> Any:
    """A state dict as mmengine will load it."""
    state: Any = type(given)()
    state.update({re.sub(r"^module\.", "", key): value for key, value in given.items() if isinstance(key, str)})
    if hasattr(given, "_metadata"):
        state._metadata = given._metadata
    return state


def _what_fits(fit: Fit, begins: bool) -> str:
    if begins or not fit.loaded:
        return "Name a file of this model, or, of a backbone's own weights, in init_cfg of the backbone"
    if fit.reshaped and not fit.missing:
        return "Use the config that it was trained with, with as many classes as then"
    return "Use the config that it was trained with"


def _brings_its_own(runner: Runner, part: str, module: nn.Module) -> bool:
    """Whether a part checks its own pretrained weights, or was asked for random ones."""
    if isinstance(module, APLAViT):
        return True
    cfg: Any = runner.cfg.get("model")
    for step in part.split("."):
        cfg = cfg.get(step) if isinstance(cfg, Mapping) else None
    # True is timm's: it loads all or nothing
    return isinstance(cfg, Mapping) and (isinstance(cfg.get("pretrained"), bool) or bool(cfg.get("checkpoint_path")))


def _parts_above(name: str) -> Iterator[str]:
    """Dotted paths of the modules around a tensor, from the innermost."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _plain(name: str) -> str:
    return name.replace("_fsdp_wrapped_module.", "")


def _is_matrix(tensor: Tensor) -> bool:
    """Whether this is a linear layer's or a 1 x 1 convolution's."""
    return all(size == 1 for size in tensor.shape[2:])


def _can_read(file: NamedFile) -> bool:
    try:
        return bool(file.content)
    except Exception as error:  # of networks, disks and pickles
        _warn(
            f"'{file.path}', named by '{file.part}', cannot be read again, and whether its weights are the model's was "
            f"not checked: {type(error).__name__}: {printable(error)}"
        )
        return False


def _is_sharded(runner: Any) -> bool:
    return any(cls.__name__ == "FullyShardedDataParallel" for cls in type(runner.model).__mro__)


def _is_deepspeed(runner: Any) -> bool:
    """Whether the strategy reads checkpoints of its own kind, of shards."""
    return type(getattr(runner, "strategy", None)).__name__ == "DeepSpeedStrategy"


def _warn(text: str) -> None:
    print_log(text, logger="current", level=logging.WARNING)
