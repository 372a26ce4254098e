"""The files of weights that parts of a model name, and what makes them fit."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from ..internals import is_local_file, without_scheme
from ..text import listed
from .checkpoint_reader import read_checkpoint
from .fit import prefix_change

_STATES = ("state_dict", "model", "module")
#: how keys of others look, whose they are, and by package the converter to its own keys
_CONVERTERS = (
    (r"layers\.\d+\.blocks\.", "the original Swin's", dict(mmseg="swin2mmseg.py", mmdet="swinv1_to_mmdet.py")),
    (r"block\d\.\d+\.attn\.(q|kv|sr)\.", "the original MiT's or PVT's", dict(mmseg="mit2mmseg.py")),
    (r"blocks\.\d+\.\d+\.attn\.(q|kv|sr)\.", "the original Twins's",
     dict(mmseg="twins2mmseg.py", mmpretrain="twins2mmpretrain.py")),
    (r"blocks\.\d+\.(gamma_1|attn\.(q_bias|relative_position))", "the original BEiT's", dict(mmseg="beit2mmseg.py")),
    (r"blocks\.\d+\.attn\.qkv\.", "timm's ViT's",
     dict(mmseg="vit2mmseg.py", mmpretrain="deit3_to_mmpretrain.py")),
    (r"(visual\.)?transformer\.resblocks\.\d+\.", "CLIP's",
     dict(mmseg="clip2mmseg.py", mmpretrain="clip_to_mmpretrain.py")),
)  # fmt: skip
_NAMES_FIT = "Where names fit and values do not, they were changed after they were loaded, or by whoever loads them"


@dataclass(frozen=True)
class NamedFile:
    """A file of weights that a part of a model names in its ``init_cfg``.

    Attributes:
        part: Dotted path of the part; '' is the whole model.
        module: The part.
        path: The file, or whatever mmengine's CheckpointLoader reads.
        prefix: Of the keys in it that are the part's.
    """

    part: str
    module: nn.Module
    path: str
    prefix: str = ""

    @cached_property
    def content(self) -> Any:
        """What the file holds, on the CPU."""
        if is_local_file(self.path):
            return read_checkpoint(Path(self.path).expanduser())
        return CheckpointLoader.load_checkpoint(self.path, map_location="cpu", logger="silent")

    def tensors(self) -> Iterator[Tensor]:
        """All tensors in the file."""
        return _tensors_in(self.content)

    def compared(self) -> str:
        """How the file's keys and the part's names compare, and what to do, as text."""
        state = {
            key.removeprefix(self.prefix): value
            for key, value in state_in(self.content).items()
            if key.startswith(self.prefix)
        }
        own = {name: tensor.shape for name, tensor in self.module.state_dict().items()}
        same = [key for key, value in state.items() if key in own and own[key] == getattr(value, "shape", None)]
        shapes = [f"{key} {tuple(state[key].shape)}, not {tuple(own[key])}" for key in own.keys() & state.keys()
                  if isinstance(state[key], Tensor) and key not in same]  # fmt: skip
        others = [key for key in state if key not in own]
        return (
            f"of the {len(state):,} keys in '{self.path}' {len(same):,} are names of its {len(own):,} tensors"
            f"{f'; of another shape: {listed(shapes, 2)}' if shapes else ''}"
            f"{f'; others in the file: {listed(others, 3)}' if others else ''}"
            f"; its own: {listed(own.keys() - state.keys() or own, 3)}. "
            + (self._cure(state, own) if 2 * len(same) < len(own) else _NAMES_FIT)
        )

    def _cure(self, state: Mapping[str, Any], own: Mapping[str, Any]) -> str:
        package, name = type(self.module).__module__.split(".")[0], type(self.module).__name__
        if change := prefix_change(own, state):
            if _takes_prefix(self.module) and not change.before:
                return f"{change}: give prefix='{change.off}' in its init_cfg"
            return f"{change}: save the file with such keys"
        for pattern, whose, scripts in _CONVERTERS:
            if not any(re.match(rf"(?:\w+\.){{0,2}}{pattern}", key) for key in state):
                continue
            if getattr(self.module, "convert_weights", None) is False:
                return f"These are {whose} keys: give {name} convert_weights=True"
            if script := scripts.get(package):
                # this one's keys begin with it
                more = ", and name what it writes with prefix='backbone.'" if package == "mmpretrain" else ""
                return f"These are {whose} keys: convert them by {package}/.mim/tools/model_converters/{script}{more}"
            return f"These are {whose} keys, and {package} has no converter of them: rename them as {name} has them"
        return (
            f"Name a file of the weights of this {name}, or convert its keys; converters are in "
            f"{package}/.mim/tools/model_converters"
        )


def named_files(model: nn.Module) -> list[NamedFile]:
    """The files that the parts of a model name in their ``init_cfg``."""
    found = []
    for part, module in model.named_modules():
        settings = getattr(module, "init_cfg", None)
        for setting in settings if isinstance(settings, list | tuple) else [settings]:
            if isinstance(setting, Mapping) and setting.get("checkpoint"):
                prefix = setting.get("prefix") or ""
                prefix += "." if prefix and not prefix.endswith(".") else ""
                found.append(NamedFile(part, module, without_scheme(setting["checkpoint"]), prefix))
    return found


def state_in(checkpoint: Any) -> dict[str, Any]:
    """The state dict in a file, under the keys that OpenMMLab's backbones look under."""
    key = next((key for key in _STATES if isinstance(checkpoint.get(key), Mapping)), None)
    return dict(checkpoint if key is None else checkpoint[key])


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors_in(entry)


def _takes_prefix(module: nn.Module) -> bool:
    """Whether mmengine's own loading, which reads ``prefix``, is what a module uses."""
    return isinstance(module, BaseModule) and not type(module).__module__.startswith(("mmseg.", "mmdet."))
