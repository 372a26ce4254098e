"""What becomes of every transformer that ships: adapted, or refused with which reason.

apla-mm sweep mmseg mmdet mmpretrain timm --json sweep.json
Each distinct backbone of a package's configs, or each architecture of timm, is built without values and adapted as
APLAHook(r=0.125, target='backbone') does; a config without a backbone is built whole. Convolutional networks are
refused too, for having no attention. "Passed over" are adapted models with a module that is called an attention, holds
linear layers, and has no projection that is known: there should be none.
"""

import os

# each file of a hub would be asked for, and waited for; read when timm is imported
os.environ["HF_HUB_OFFLINE"] = os.environ.get("HF_HUB_OFFLINE", "1")

import contextlib
import copy
import importlib
import io
import json
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from torch import nn
from torch.overrides import TorchFunctionMode

from ..method import find_projections
from ..method.attention.recognition import attends
from ..method.projections import left_frozen
from ..text import table
from ..tuning.adapt_runner import adapt_parts
from . import command_parser, file_to_write

OUTCOMES = ("adapted", "no attention", "refused", "passed over", "not built")
_MAKERS = {torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand, torch.full}


@dataclass
class Outcome:
    """Of one backbone: what became of it, why, how many projections, and the configs that have it."""

    outcome: str
    reason: str
    projections: int
    configs: list[str]


class Hollow(TorchFunctionMode):
    """Makes large tensors without values; what constructors compute from small ones, as rates, has them."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in _MAKERS and kwargs.get("device") in (None, "cpu", torch.device("cpu")):
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


class Whole(nn.Module):
    """A backbone where a model has it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone


def sweep_package(package: str, only: str) -> list[Outcome]:
    """Every config of an OpenMMLab package whose path has a pattern."""
    importlib.import_module(f"{package}.models")
    folder = Path(importlib.import_module(package).__file__ or "").parent / ".mim/configs"
    found: dict[str, list[str]] = defaultdict(list)
    unread: list[Outcome] = []
    for path in sorted(folder.rglob("*.py")):
        name = str(path.relative_to(folder))
        if "_base_" in path.parts or not re.search(only, name):
            continue
        try:
            cfg = Config.fromfile(path)
        except Exception as error:  # of configs that need other packages
            unread.append(Outcome("not built", said(error), 0, [name]))
            continue
        if "model" in cfg:
            model = without_weights(cfg.model.to_dict() if isinstance(cfg.model, ConfigDict) else dict(cfg.model))
            part = dict(backbone=model["backbone"]) if isinstance(model.get("backbone"), dict) else dict(whole=model)
            found[json.dumps([part, cfg.get("default_scope") or package], default=str, sort_keys=True)].append(name)
    outcomes = []
    for key, names in found.items():
        part, scope = json.loads(key, object_hook=ConfigDict)
        init_default_scope(package)
        with DefaultScope.overwrite_default_scope(scope):
            outcomes.append(outcome_of(partial(build, part), names))
    return [*outcomes, *unread]


def build(part: dict[str, Any]) -> nn.Module:
    if "whole" in part:
        whole: nn.Module = MODELS.build(part["whole"])
        return whole
    return Whole(MODELS.build(part["backbone"]))


def sweep_timm(only: str) -> list[Outcome]:
    """Every architecture of timm whose name has a pattern."""
    return [outcome_of(partial(timm_backbone, name), [name]) for name in timm.list_models() if re.search(only, name)]


def timm_backbone(name: str) -> nn.Module:
    return Whole(timm.create_model(name))


def outcome_of(make: Any, names: list[str]) -> Outcome:
    output = io.StringIO()
    try:
        with Hollow(), contextlib.redirect_stdout(output), torch.no_grad():
            model = make()
    except Exception:
        try:
            with contextlib.redirect_stdout(output):
                model = make()  # a constructor that looks at values
        except Exception as error:
            return Outcome("not built", said(error), 0, names)
    try:
        report = adapt_parts(model, dict(backbone=dict(r=0.125)))["backbone"]
    except ValueError as error:
        none = "no attention was found" in str(error)
        return Outcome("no attention" if none else "refused", said(error), 0, names)
    if missed := sorted(passed_over(model)):
        return Outcome("passed over", f"adapted without {', '.join(missed)}", len(report.projections), names)
    return Outcome("adapted", "", len(report.projections), names)


def passed_over(model: nn.Module) -> Iterator[str]:
    """Classes of modules that look like attention and of which no projection is known."""
    known = {module for one in find_projections(model) for module in one.attention.modules()}
    for module in model.modules():
        holds_one = any(child in known for child in module.modules())
        if not (module in known or holds_one or left_frozen(module)) and attends(module, known):
            yield type(module).__name__


def without_weights(settings: Any) -> Any:
    """A config in which nothing names a file of weights, and SyncBN is BN."""
    if isinstance(settings, dict):
        kept = {k: v for k, v in settings.items() if k not in ("pretrained", "init_cfg")}
        return {k: "BN" if k == "type" and v == "SyncBN" else without_weights(v) for k, v in kept.items()}
    return [without_weights(one) for one in settings] if isinstance(settings, list | tuple) else copy.copy(settings)


def said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def kind_of_reason(reason: str) -> str:
    """A reason without what differs between models of one kind."""
    return re.sub(r"'[^']*\d[^']*'", "'...'", re.sub(r"\d+", "n", reason))[:160]


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("sweep", __doc__)
    parser.add_argument("packages", nargs="+", choices=["mmseg", "mmdet", "mmpretrain", "timm"])
    parser.add_argument("--only", default="", metavar="PATTERN", help="of the configs' paths or timm's names")
    parser.add_argument("--json", type=file_to_write, help="write each outcome here")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    outcomes = {
        package: sweep_timm(args.only) if package == "timm" else sweep_package(package, args.only)
        for package in args.packages
    }
    rows = []
    for package, each in outcomes.items():
        configs, models = Counter[str](), Counter[str]()
        for one in each:
            configs[one.outcome] += len(one.configs)
            models[one.outcome] += 1
        rows.append([package, f"{configs.total()}", *(f"{configs[o]} ({models[o]})" for o in OUTCOMES)])
    print(table(["configs (distinct models)", "all", *OUTCOMES], rows))
    for package, each in outcomes.items():
        for outcome in OUTCOMES[2:]:
            reasons: dict[str, list[str]] = defaultdict(list)
            for one in each:
                if one.outcome == outcome:
                    reasons[kind_of_reason(one.reason)] += one.configs
            for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
                print(f"{package}, {outcome}, {len(names)}, such as {names[0]}: {reason}")
    if args.json:
        content = {package: [asdict(one) for one in each] for package, each in outcomes.items()}
        args.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
