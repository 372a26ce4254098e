"""Drawn models that freeze parts of themselves: refused by name, or what is said to train moves, and nothing else."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import backbones
from helpers.backbones import BACKBONES, Model, make_runner
from helpers.optional import needs
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from apla_mm.tuning.trained.trainable import trainable_table

pytestmark = pytest.mark.slow

SEEDS = range(48)
SIZE = backbones.SIZE
#: settings by which a family freezes parts of itself
FREEZING: dict[str, list[dict[str, Any]]] = {
    "mmseg Swin": [dict(frozen_stages=i) for i in (0, 1, 2)],
    "mmdet Swin": [dict(frozen_stages=i) for i in (0, 1, 2)],
    "mmseg ViT": [dict(frozen_stages=1), dict(norm_eval=True), dict(with_cp=True)],
    "mmpretrain ViT": [dict(frozen_stages=1), dict(frozen_stages=2)],
    "mmpretrain SwinV2": [dict(frozen_stages=0), dict(frozen_stages=1)],
    "MiT": [],
    "PVT": [],
    "BEiT": [dict(norm_eval=True)],
    "timm": [],
}
TIMES = ("init", "train", "eval", "init_weights", "forward", "forward in training", "never")


class Timm(nn.Module):
    """timm's ViT that gives maps."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=SIZE, embed_dim=32, depth=3, num_heads=2, num_classes=0
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.vit.forward_intermediates(x, indices=[2], intermediates_only=True)


def acting(cls: type, when: str, what: list[str], to: bool) -> type:
    """A class derived from another that does something to what trains, or to statistics, at a certain time."""

    class Acting(cls):  # type: ignore[misc, valid-type]
        def act(self, now: str) -> None:
            if now != when:
                return
            for name, module in self.named_modules():
                if name in what:
                    module.requires_grad_(to)

        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.act("train" if mode else "eval")
            return self

        def init_weights(self) -> None:
            if hasattr(cls, "init_weights"):
                super().init_weights()
            self.act("init_weights")

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self.act("forward")
            if self.training:
                self.act("forward in training")
            return super().forward(*args, **kwargs)

    return Acting


def draw_model(draw: random.Random) -> tuple[Model, str]:
    """A model, and what was drawn."""
    family = draw.choice(sorted(FREEZING))
    scope, settings, _ = BACKBONES.get(family, ("mmseg", {}, 0))
    needs(scope)
    __import__(f"{scope}.models")
    if not DefaultScope.check_instance_created(scope):
        DefaultScope.get_instance(scope, scope_name=scope)
    own = draw.choice([{}, *FREEZING[family]])
    torch.manual_seed(draw.randrange(1000))
    with DefaultScope.overwrite_default_scope(scope):
        backbone = Timm() if family == "timm" else MODELS.build(ConfigDict({**copy.deepcopy(settings), **own}))
        model = Model.__new__(Model)
        super(Model, model).__init__()
    model.backbone, model.head, model.head_norm = backbone, nn.LazyLinear(2), nn.LayerNorm(2)
    with torch.no_grad():
        model(torch.zeros(1, 3, SIZE, SIZE))
    when = draw.choice(TIMES)
    names = [name for name, module in backbone.named_modules() if name and any(True for _ in module.parameters())]
    what = draw.sample(names, min(len(names), draw.choice([1, 1, 2, 4])))
    if draw.random() < 0.4:  # what most concerns
        attentions = [name for name in names if name.endswith(("proj", "attn", "attn.out_proj"))]
        what = draw.sample(attentions or names, 1)
    to = draw.random() < 0.25
    backbone.__class__ = acting(type(backbone), when, what, to)
    if when == "init":
        backbone.act("init")
    if draw.random() < 0.2:
        model.head_norm.requires_grad_(False)
    return model, f"{family} {own} {when}: {what} to {to}"


def draw_hook(draw: random.Random) -> dict[str, Any]:
    hook: dict[str, Any] = dict(r=draw.choice([3, 0.25, "full"]), blocks=draw.choice(["all", "all", 1, 2, [1], "none"]))
    if hook["blocks"] == "none":
        del hook["r"]
    for kind in ("train_norm", "train_bias", "train_pos_embed"):
        if draw.random() < 0.2:
            hook[kind] = True
    if draw.random() < 0.25:
        hook["trainable"] = [draw.choice(["*norm*", "*ffn*", "*mlp*", "*ln1*", "*qkv*", "*patch_embed*"])]
    if draw.random() < 0.2:
        hook["frozen_eval"] = False
    if draw.random() < 0.2:
        hook["recompute"] = "block"
    return hook


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_said_to_train_moves_alone_or_the_run_is_refused_before_it_trains(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    model, drawn = draw_model(draw)
    hook = draw_hook(draw)
    said: list[Any] = []

    def see(module: nn.Module, *_: Any) -> None:
        if module.training and not said:
            said.append({name for name, parameter in module.named_parameters() if parameter.requires_grad})
            said.append(trainable_table(module, 1)[-1].trained)
            said.append(copy.deepcopy(module.state_dict()))  # initialised

    frozen_when_built = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    model.register_forward_pre_hook(see)
    plain = list(model.state_dict())
    runner = make_runner(model, tmp_path, hook, iters=2, optim_wrapper=OPTIMIZER)
    try:
        runner.train()
    except (ValueError, RuntimeError, KeyError) as error:
        text = f"{drawn} {hook}: {error}"
        steps = len(list(tmp_path.glob("*.pth"))) + runner.iter
        assert steps == 0, text
        assert any(name.removeprefix("backbone.") in str(error) for name in plain) or hook_is_wrong(str(error)), text
        return
    names, count, before = said
    rows = {
        f"{name.removesuffix('.trained')}.{kind}": module.channels
        for name, module in model.named_modules()
        if hasattr(module, "channels") and name.endswith(".trained")
        for kind, _ in module.named_parameters()
    }
    moved = 0
    for name, tensor in model.state_dict().items():
        differs = tensor != before[name]
        trained = name in names or name in rows
        if name in rows:
            others = torch.ones(len(tensor), dtype=torch.bool)
            others[rows[name]] = False
            assert not differs[others].any(), f"{drawn} {hook}: other channels of {name} moved"
            differs = differs[~others]
            moved += differs.numel()
        elif name in names:
            moved += differs.numel()
        if trained:
            assert differs.any(), f"{drawn} {hook}: {name} is said to train and has not moved"
        elif name in dict(model.named_parameters()):
            assert not differs.any(), f"{drawn} {hook}: {name} moved and is not said to train"
    assert moved == count, f"{drawn} {hook}"
    thawed = {name.replace(".trained.", ".") for name in names} & frozen_when_built
    assert not thawed, f"{drawn} {hook}: {thawed} was frozen when it was built, and trains"


OPTIMIZER = dict(optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.1))


def hook_is_wrong(error: str) -> bool:
    """The hook's own options ask for what there is not."""
    return any(f"{kind}=True, and " in error for kind in ("train_norm", "train_bias", "train_pos_embed")) or (
        "match" in error and "trainable" in error
    )
