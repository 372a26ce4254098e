"""The plain model of a config and a checkpoint or delta, and the module of it that is exported."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import Tensor, nn

from ..data.folders import datasets_of
from ..loading.checkpoint_reader import load_from_apla_mm
from ..method import merge
from ..text import listed
from .modules.images import prepare_images


def load_model(cfg: Config, checkpoint: str | Path, merged: bool = True) -> tuple[nn.Module, Mapping[str, Any]]:
    """Build a config's model and load its weights.

    Args:
        cfg: The config.
        checkpoint: A checkpoint, or a delta whose base is found beside it.
        merged: Whether adapted layers become the plain ones.

    Returns:
        The model in evaluation, without gradients, and the checkpoint's ``meta``.

    Raises:
        FileNotFoundError: No such checkpoint.
        ValueError: It lacks weights of the model, or they are of other shapes.
    """
    init_default_scope(cfg.get("default_scope") or "mmengine")
    content = load_from_apla_mm(checkpoint, "cpu")
    state: Mapping[str, Tensor] = content.get("state_dict", content)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model)))  # some detectors write to it
    own = model.state_dict()
    missing = own.keys() - state.keys()
    others = [name for name, tensor in own.items() if name in state and state[name].shape != tensor.shape]
    if missing or others:
        raise ValueError(
            f"checkpoint '{checkpoint}' does not fit the config's model: it lacks {listed(missing) or 'nothing'}, "
            f"and of other shapes it has {listed(others) or 'nothing'}. Give the config that it was trained with"
        )
    model.load_state_dict(state, strict=False)
    if merged:
        merge(model)
    return model.eval().requires_grad_(False), content.get("meta") or {}


def class_names(cfg: Config, meta: Mapping[str, Any]) -> list[str]:
    """Names of a model's classes: those of the checkpoint, of the config's data set, or of its class; else none."""
    dataset = next(iter(datasets_of(cfg, "test_dataloader")), {})
    for given in (meta.get("dataset_meta") or {}, dataset.get("metainfo") or {}):
        names = given.get("classes") or given.get("CLASSES")
        if names:
            return [str(name) for name in names]
    cls = dataset.get("type")
    if isinstance(cls, str):
        with DATASETS.switch_scope_and_registry(None) as registry:  # the default scope's
            cls = registry.get(cls)
    return [str(name) for name in getattr(cls, "METAINFO", {}).get("classes") or ()]


def exported_module(cfg: Config, model: nn.Module) -> Any:
    """The module of images and results that is exported.

    Args:
        cfg: The config.
        model: Its model, plain.

    Returns:
        A module with ``outputs``, the names of what it gives, and ``batch``, the only size of a batch, if there is one.

    Raises:
        ValueError: A model, part or setting that cannot be exported; says what can.
    """
    prepare = prepare_images(cfg, getattr(model, "data_preprocessor", None))
    module = _kind(model)(model, prepare)
    return module.eval().requires_grad_(False)


def _kind(model: nn.Module) -> Any:
    scope = type(model).__module__.partition(".")[0]
    if scope == "mmseg":
        from mmseg.models.segmentors import EncoderDecoder

        from .modules.segmentor import ExportedSegmentor

        if isinstance(model, EncoderDecoder):
            return ExportedSegmentor
    if scope == "mmdet":
        from mmdet.models.detectors import FasterRCNN, Mask2Former, MaskRCNN
        from mmdet.models.detectors.base_detr import DetectionTransformer

        if type(model) in (FasterRCNN, MaskRCNN):
            from .modules.two_stage import ExportedTwoStage

            return ExportedTwoStage
        if type(model) is Mask2Former:
            from .modules.mask_queries import ExportedMaskQueries

            return ExportedMaskQueries
        if isinstance(model, DetectionTransformer):
            from .modules.detr import ExportedDETR

            return ExportedDETR
    raise ValueError(
        f"{type(model).__name__} cannot be exported: EncoderDecoder and CascadeEncoderDecoder of mmseg can, and "
        "FasterRCNN, MaskRCNN, Mask2Former (EoMT) and DETRs (DINO) of mmdet"
    )
