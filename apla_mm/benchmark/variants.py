"""Methods with their heads, and a training step of each, of a timm ViT or of a config's model."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..measure import ComparedMethod, TrainingStep

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: heads -> what names of variants say of them
HEADS = {"stock": "", "lean": ", lean heads", "recomputed": ", heads recomputed"}


class Classifier(nn.Module):
    """A timm backbone and a linear classifier of 150 classes."""

    def __init__(self, name: str, img_size: int) -> None:
        super().__init__()
        import timm

        backbone: Any = timm.create_model(name, num_classes=0, img_size=img_size)
        self.backbone, self.head = backbone, nn.Linear(backbone.num_features, 150)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x).clone())  # a view of one token would keep all of them


@dataclass(frozen=True)
class Variant:
    """A method, with which heads, compiled or not."""

    method: ComparedMethod
    compiled: bool = False
    heads: str = "stock"

    @property
    def name(self) -> str:
        return self.method.name + HEADS[self.heads] + ", compiled" * self.compiled


def build(args: argparse.Namespace, variant: Variant) -> TrainingStep:
    """Where a variant changes the model: its parts may become others in place, and the loss is that of the whole."""
    torch.manual_seed(0)
    model, loss = (_build_from_config if args.model.endswith(".py") else _build_timm)(args, variant.compiled)
    variant.method.method.prepare(model.backbone)
    if variant.heads != "stock":
        from ..models.heads.lean_model import make_model_lean

        lean = make_model_lean(model, variant.heads == "recomputed")
        if all(lean.heads.values()) and not lean.parts:
            raise ValueError(f"no head can be lean: {'; '.join(lean.heads.values()) or 'there is none'}")
    return TrainingStep(model.train(), loss, DTYPES[args.dtype], args.fused)


def _build_timm(args: argparse.Namespace, compiled: bool) -> tuple[Any, Callable[[], Any]]:
    model = _on_device(args, lambda: Classifier(args.model, args.img_size))
    x = _random_images(args)
    y = torch.randint(150, (args.batch_size,), device=args.device)
    forward = torch.compile(model) if compiled else model
    return model, lambda: nn.functional.cross_entropy(forward(x), y)


def _build_from_config(args: argparse.Namespace, compiled: bool) -> tuple[Any, Callable[[], Any]]:
    from mmengine.registry import MODELS, init_default_scope

    from ..config_files import read_model_config
    from ..data.synthetic_batch import synthetic_batch
    from ..options.shared_options import apply_shared_options

    cfg = read_model_config(args.model)
    if args.count and not args.backbone_only and "decode_head" not in cfg.model:
        raise SystemExit(
            f"{args.model}: a detector's loss depends on what it finds and cannot be counted without running: "
            "add --backbone-only, or leave out --count and --memory"
        )
    apply_shared_options(cfg, dict(crop_size=args.img_size))
    init_default_scope(cfg.get("default_scope", "mmengine"))
    backbone = cfg.model.backbone
    for key in ("apla", "frozen"):
        backbone.pop(key, None)
    backbone.update(dict(pretrained=False) if backbone.type == "APLAViT" else dict(init_cfg=None))
    model: Any = _on_device(args, lambda: MODELS.build(cfg.model))
    if args.backbone_only:
        x = _random_images(args)
        part: Any = nn.ModuleDict(dict(backbone=model.backbone))
        run = torch.compile(part.backbone) if compiled else part.backbone
        return part, lambda: sum(y.mean() for y in run(x))
    if args.count:
        model.data_preprocessor.to(args.device)
    data = model.data_preprocessor(synthetic_batch(model, args.img_size, args.batch_size), training=True)
    forward = torch.compile(model) if compiled else model

    def loss() -> Tensor:
        return model.parse_losses(forward(**data, mode="loss"))[0]

    return model, loss


def _on_device(args: argparse.Namespace, make: Callable[[], nn.Module]) -> nn.Module:
    if not args.count:
        return make().to(args.device)
    with torch.device(args.device):  # a module of fake tensors cannot be moved
        return make()


def _random_images(args: argparse.Namespace) -> Tensor:
    return torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=args.device)


def options_for(args: argparse.Namespace, variant: Variant, batch_size: int) -> str:
    """What a training is told for this variant: its --cfg-options, or without a config the call."""
    key = variant.method.key
    if not args.model.endswith(".py"):
        return f"apla_mm.methods.build_method({key!r}).prepare(backbone)" if key else ""
    batch = f"train_dataloader.batch_size={batch_size}"
    if variant.heads == "recomputed":
        batch += " default_hooks.lean_heads.recompute=True"
    return f"{batch}; no config has this method" if key is None else f"{batch} method={key}"
