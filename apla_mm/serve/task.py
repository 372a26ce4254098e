"""One task: a delta's model on the base that all tasks share."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..api.loading import config_of, in_scope_of, load_whole, predictor_of, without_sources
from ..api.prediction import Prediction
from ..api.predictor import Prepared
from ..delta import Delta, apply_delta
from ..delta.apply import check_delta
from ..loading.base_from_config import provide_base
from ..loading.delta_meta import meta_of, with_versions
from ..tasks import task as task_block
from .base import Base


def base_of(delta: Delta, device: str) -> Base:
    """The base of a delta: of its file, which is made of the weights that the delta's config names if there is none.

    Args:
        delta: The delta.
        device: Where to keep it.

    Raises:
        DeltaError: It is not found, and cannot be made.
        ValueError: The delta holds no config that can be read.
    """
    cfg = config_of(delta.header.config, delta.source)
    with in_scope_of(cfg, delta.source):
        provide_base(delta.source, cfg)
    return Base.of_delta(delta, device)


class Task:
    """Predicts as :func:`apla_mm.load` of the delta does, on weights that other tasks share.

    The model is one of its own, of which every frozen parameter is the base's. What trained whole, such as heads, is
    the model's own; the channels of the projections are copied into the shared ones for the time of a batch, and the
    base's back behind it (:func:`apla_mm.task`). All that runs models or makes tasks on one base must do so in turn.

    Args:
        name: The task's.
        delta: The delta, of a file.
        base: The base, with no task switched in.
        device: Where it runs; the base's.
        separate: Whether the base is this task's alone: then the channels are put into it for good.

    Attributes:
        name: The task's.
        kind: ``'segmentation'``, ``'detection'``, ``'classification'`` by the config's scope.
        classes: Names.
        nbytes: Size in bytes of what only this task has.

    Raises:
        BaseMismatchError: The delta was trained on another base.
        DeltaError: It does not fit the model of its config.
        ValueError: It holds no config that can be read.
    """

    def __init__(self, name: str, delta: Delta, base: Base, device: str, separate: bool = False) -> None:
        self.name = name
        shared = base.below(delta)
        cfg = config_of(delta.header.config, delta.source)
        with in_scope_of(cfg, delta.source):
            model: Any = MODELS.build(without_sources(cfg.model))
        load_whole(model, with_versions({**shared, **delta.tensors}, delta.header), delta.source)
        model.to(device).eval()
        owned = _share(model, shared)
        if separate:
            apply_delta(model, delta, check_base=False)
        else:
            check_delta(model, delta, check_base=False)
        self._predictor = predictor_of(model, cfg, meta_of(delta.header))
        # the rest is in the model for good
        self._rows = replace(delta, tensors={}) if delta.rows and not separate else None
        self.kind = dict(mmseg="segmentation", mmdet="detection", mmpretrain="classification")[cfg.default_scope]
        self.classes = self._predictor.classes
        with self._block():  # what it fits is found out now
            pass
        self.nbytes = owned + (self._rows.nbytes if self._rows else 0)

    def prepare(self, pixels: Any) -> Prepared:
        """Do to an image, (H, W, 3) uint8 RGB, what the model's test pipeline does."""
        return self._predictor.prepare(pixels)

    def predict(self, images: Sequence[Prepared]) -> list[Prediction]:
        """Predict for images of :meth:`prepare`; nothing else may run on the base meanwhile."""
        with self._block():
            return self._predictor.predict_prepared(images)

    def _block(self) -> AbstractContextManager[None]:
        if self._rows is None:
            return nullcontext()
        return task_block(self._predictor.model, self._rows, check_base=False)


@torch.no_grad()
def _share(model: nn.Module, shared: Mapping[str, Tensor]) -> int:
    """Put shared parameters into a model where its own are equal to them; gives how many bytes are its own."""
    for path, module in model.named_modules(remove_duplicate=False):
        for name, own in module._parameters.items():
            other = shared.get(f"{path}.{name}" if path else name)
            # of other types, or changed while loading: not the base's tensor any more
            if other is not None and type(own) is nn.Parameter and own.dtype == other.dtype and torch.equal(own, other):
                assert isinstance(other, nn.Parameter)
                module._parameters[name] = other
    ids = {id(tensor) for tensor in shared.values()}
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for key, tensor in tensors.items() if key not in ids)
