"""A trained model of a checkpoint or a delta, ready to predict."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import import_modules_from_strings

from ..config_files import find_config, read_config
from ..convert.config_text import read_config as settings_of
from ..data.folders import datasets_of
from ..delta import load_delta
from ..delta.weights_file import Kind, kind_of
from ..devices import find_device
from ..hub.fetch import SCHEME, fetch, weights_in
from ..loading.base_from_config import provide_base
from ..loading.checkpoint_reader import load_from_safetensors, read_checkpoint
from .predictor import Predictor

_SCOPES = ("mmseg", "mmdet", "mmpretrain")
#: packages whose modules a config out of a file of weights may have imported
_TRUSTED = (*_SCOPES, "apla_mm", "mmcv", "mmengine")


def load(path: str | Path, *, config: str | Path | None = None, device: str | None = None) -> Predictor:
    """Load a model to predict with.

    Args:
        path: A checkpoint of training, or a delta, whose base file must be found, beside it or in ``bases``, or the
            weights that its config names must be had; or a folder with one of these, or ``hf://user/name`` of the
            Hugging Face hub.
        config: Its config; None for the one in the file, of which only values are read and nothing is run.
        device: Such as ``'cuda:0'``; None for a GPU where there is one.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds no config, or one that only its author's code can read, or the weights are not the
            model's; or there is no such device.
        DeltaError: It is a delta, and damaged, or its base was not found or is another one.
    """
    device = find_device(device)
    path = fetch(str(path)) if str(path).startswith(SCHEME) else Path(path)
    if path.is_dir():
        path = weights_in(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint or delta '{path}' (looked in {Path.cwd()})")
    delta = kind_of(path) is Kind.DELTA
    checkpoint = None if delta else read_checkpoint(str(path))
    cfg = read_config(find_config(str(config))) if config is not None else _config_in(path, checkpoint)
    with in_scope_of(cfg, path, trusted=config is not None):
        if delta:
            provide_base(path, cfg)
            checkpoint = load_from_safetensors(path)
        model: Any = MODELS.build(without_sources(cfg.model))
    assert checkpoint is not None
    load_whole(model, checkpoint.get("state_dict", checkpoint), path)
    return predictor_of(model.to(device).eval(), cfg, checkpoint.get("meta", {}))


def config_of(text: Any, path: str | Path) -> Config:
    """The config in a file of weights, of which only values are read.

    Args:
        text: The config's.
        path: The file, for messages.

    Raises:
        ValueError: There is none, or only its author's code can read it.
    """
    settings = settings_of(text) if isinstance(text, str) else {}
    if not isinstance(settings.get("model"), dict):
        raise ValueError(f"'{path}' holds no config: name it by config=")
    _check_types(settings, str(path))
    return Config(settings)


@contextmanager
def in_scope_of(cfg: Config, path: str | Path, *, trusted: bool = False) -> Iterator[None]:
    """A block in which a config's models can be built.

    Args:
        cfg: The config.
        path: The file that it comes from, for messages.
        trusted: Whether it may import modules of its author's.

    Raises:
        ValueError: It is of a scope that is not known, or imports what it may not.
    """
    scope = str(cfg.get("default_scope"))
    if scope not in _SCOPES:
        raise ValueError(f"'{path}' has a config of scope {scope!r}: expected one of {', '.join(_SCOPES)}")
    _import(cfg, trusted)
    with DefaultScope.overwrite_default_scope(scope):
        yield


def load_whole(model: Any, state: Mapping[str, Any], path: str | Path) -> None:
    """Load a state dict into a model, all of it.

    Raises:
        ValueError: It is another model's.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"'{path}' does not fit the model of its config: {error}") from error


def predictor_of(model: Any, cfg: Config, meta: Mapping[str, Any]) -> Predictor:
    """What predicts by a model.

    Args:
        model: With its weights, in evaluation mode.
        cfg: Its config.
        meta: Of the checkpoint, with the classes that it was trained for.

    Raises:
        ValueError: The config does not say how images are prepared.
    """
    classes, palette = _classes_of(meta, cfg)
    return Predictor(model, str(cfg.default_scope), _pipeline_of(cfg), classes, palette)


def _config_in(path: Path, checkpoint: Mapping[str, Any] | None) -> Config:
    text = load_delta(path).header.config if checkpoint is None else checkpoint.get("meta", {}).get("cfg")
    return config_of(text, path)


def _check_types(node: Any, path: str) -> None:
    """Refuse types that are no plain names of registries: a dotted one would have mmengine import any class.

    Raises:
        ValueError: One is not.
    """
    if isinstance(node, dict):
        kind = node.get("type")
        if isinstance(kind, str) and not re.fullmatch(rf"(({'|'.join(_TRUSTED)})\.)?\w+", kind):
            raise ValueError(
                f"'{path}' has a config with the type {kind!r}, which is code of its author's: if you trust it, name "
                "the config file by config="
            )
        node = list(node.values())
    for child in node if isinstance(node, list | tuple) else ():
        _check_types(child, path)


def _import(cfg: Config, trusted: bool) -> None:
    modules = (cfg.get("custom_imports") or {}).get("imports") or []
    modules = [modules] if isinstance(modules, str) else list(modules)
    strange = [name for name in modules if name.partition(".")[0] not in _TRUSTED]
    if strange and not trusted:
        raise ValueError(
            f"the config in the file imports {', '.join(strange)}, which is code of its author's: if you trust it, "
            "name the config file by config="
        )
    import_modules_from_strings([*modules, f"{cfg.default_scope}.models"])


def without_sources(model: Any) -> Any:
    """A model's config in which nothing names weights: they come from the file."""
    model = model.copy()
    backbone = model.get("backbone") or {}
    if backbone.get("type") == "APLAViT":
        backbone["pretrained"] = False
    else:
        backbone.pop("init_cfg", None)
    model.pop("pretrained", None)
    return model


def _pipeline_of(cfg: Config) -> list[Any]:
    datasets = datasets_of(cfg, "test_dataloader")
    if not datasets or not datasets[0].get("pipeline"):
        raise ValueError("the config has no test_dataloader with a pipeline, which says how images are prepared")
    return list(datasets[0]["pipeline"])


def _classes_of(meta: Mapping[str, Any], cfg: Config) -> tuple[tuple[str, ...], Any]:
    found = meta.get("dataset_meta") or {}
    if not found.get("classes"):
        found = next((d["metainfo"] for d in datasets_of(cfg, "test_dataloader") if d.get("metainfo")), {})
    classes = found.get("classes") or ()
    return tuple(map(str, classes)), found.get("palette")
