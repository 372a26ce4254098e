"""The key `method`, on the command line and in config files, in every config."""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
from helpers.tools import read_config
from mmengine.config import Config
from mmengine.registry import HOOKS

from apla_mm.methods import METHODS
from apla_mm.options.method import CHECKS, HOOK_ALONE, set_method
from apla_mm.tuning.apla_hook import APLAHook
from apla_mm.tuning.trained.trainable_check_hook import TrainableCheckHook

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(path for kind in ("cls", "det", "seg") for path in (FOLDER / kind).glob("*.py"))
CUSTOM = FOLDER / "seg/apla_vitb_custom.py"
SWIN = FOLDER / "seg/upernet_swin-t_apla_8xb2-160k_ade20k-512x512.py"
LORA = dict(type="lora", r=8, layers="qkv")


def hook_of(cfg: Config) -> dict[str, Any]:
    (hook,) = [dict(h) for h in cfg.custom_hooks if h["type"] in ("APLAHook", "TuningHook")]
    return hook


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_takes_every_method(path: Path) -> None:
    for name in METHODS:
        cfg = Config.fromfile(path)
        others = [h.type for h in cfg.custom_hooks if h.type != "APLAHook"]
        before = copy.deepcopy(cfg.to_dict())
        set_method(cfg, dict(type=name, **(dict(r=4) if name == "apla" else {})))
        vit = cfg.model.backbone.type == "APLAViT"
        if name == "apla":
            assert hook_of(cfg) == (dict(type="APLAHook") if vit else dict(type="APLAHook", r=4))
            assert cfg.model.backbone.get("apla") == (dict(r=4) if vit else None)
        else:
            assert hook_of(cfg) == dict(type="TuningHook", method=dict(type=name))
            assert "apla" not in cfg.model.backbone
        assert "frozen" not in cfg.model.backbone
        assert [h["type"] for h in cfg.custom_hooks if h["type"] not in ("APLAHook", "TuningHook")] == others
        after = cfg.to_dict()
        for one in (before, after):  # nothing else changes
            del one["custom_hooks"]
            for key in ("apla", "frozen"):
                one["model"]["backbone"].pop(key, None)
        assert before == after


@pytest.mark.parametrize(
    ("options", "method"),
    [
        (["method=head"], dict(type="head")),
        (["method=lora:r=8,layers=qkv"], LORA),
        (["method=lora:r=8,layers=[qkv,attn.proj]"], dict(type="lora", r=8, layers=["qkv", "attn.proj"])),
        (["method.type=lora", "method.r=8", "method.layers=qkv"], LORA),
    ],
)
@pytest.mark.parametrize("path", [CUSTOM, SWIN], ids=["APLAViT", "Swin"])
def test_on_the_command_line(path: Path, options: list[str], method: dict) -> None:
    cfg = read_config(path, *options)
    assert hook_of(cfg) == dict(type="TuningHook", method=method)
    assert "method" not in cfg and "apla" not in cfg.model.backbone


def test_in_a_config_file_and_changed_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(f"_base_ = {str(SWIN)!r}\nmethod = dict(type='lora', r=8, layers='qkv')\n")
    assert hook_of(read_config(path)) == dict(type="TuningHook", method=LORA)
    assert hook_of(read_config(path, "method.r=2")) == dict(type="TuningHook", method=dict(LORA, r=2))
    assert hook_of(read_config(path, "method=bitfit")) == dict(type="TuningHook", method=dict(type="bitfit"))
    path.write_text(f"_base_ = {str(SWIN)!r}\nmethod = 'wo'\n")
    assert hook_of(read_config(path)) == dict(type="TuningHook", method=dict(type="wo"))


def test_apla_by_the_backbone_or_by_the_hook() -> None:
    cfg = read_config(CUSTOM, "method=apla:r=16,recompute=mlp,prove=False")
    assert cfg.model.backbone.apla == dict(r=16, recompute="mlp")
    assert hook_of(cfg) == dict(type="APLAHook", prove=False)
    cfg = read_config(CUSTOM, "method=apla:blocks=none,train_norm=True")  # which the hook alone takes
    assert "apla" not in cfg.model.backbone
    assert hook_of(cfg) == dict(type="APLAHook", blocks="none", train_norm=True)
    cfg = read_config(SWIN, "method=apla:r=0.25,frozen_eval=False,seed=3")
    assert hook_of(cfg) == dict(type="APLAHook", r=0.25, seed=3, frozen_eval=False)
    for cfg in (read_config(CUSTOM, "method=apla:r=4"), read_config(SWIN, "method=apla:r=4,train_bias=True")):
        HOOKS.build(hook_of(cfg))


def test_what_the_hook_had_to_check_and_where_stays() -> None:
    for given, expected in (("head", dict(type="TuningHook", method=dict(type="head"))), ("apla:r=1", dict(r=1))):
        cfg = Config(
            dict(custom_hooks=[dict(type="APLAHook", r=3, target="neck", prove=False), dict(type="DeltaHook")])
        )
        set_method(cfg, given)
        assert hook_of(cfg) == {"type": "APLAHook", **expected, "target": "neck", "prove": False}
        assert cfg.custom_hooks[1] == dict(type="DeltaHook")
    cfg = Config(dict(model=dict(backbone=dict(type="SwinTransformer"))))
    set_method(cfg, "head")
    assert cfg.custom_hooks == [dict(type="TuningHook", method=dict(type="head"))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["method=lor"], "there is no method 'lor'; there are full, head, norm, bitfit, lora, wo, apla"),
        (["method=lora:rank=8"], "method 'lora': .*'rank'; it takes r, alpha, layers, seed, recompute"),
        (["method=apla:k=8"], "method 'apla': .*'k'; it takes r, seed, channels"),
        (["method=apla"], "apla needs r, channels or blocks"),
        (["method=head:train_norm=True"], "method 'head': .*'train_norm'; it takes nothing"),
    ],
)
def test_what_is_no_method_is_an_error(options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_config(CUSTOM, *options)


def test_two_hooks_are_not_guessed_at() -> None:
    hooks = [dict(type="APLAHook", r=3), dict(type="APLAHook", r=3, target="neck")]
    cfg = Config(dict(custom_hooks=copy.deepcopy(hooks)))
    with pytest.raises(ValueError, match="the config has 2 hooks that say what trains"):
        set_method(cfg, "head")
    assert cfg.custom_hooks == hooks


def test_options_of_what_is_gone_are_errors() -> None:
    """What is set in one place by name has the last word, and what nothing reads then is refused."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'r'"):
        HOOKS.build(hook_of(read_config(SWIN, "method=head", "custom_hooks.1.r=4")))
    cfg = read_config(CUSTOM, "method=head", "model.backbone.apla.r=4")
    assert cfg.model.backbone.apla == dict(r=4)  # which TuningHook refuses


def test_arguments_of_the_hook_are_all_known() -> None:
    taken = set(inspect.signature(APLAHook).parameters) - {"check"}
    assert taken == set(inspect.signature(METHODS["apla"]).parameters) | set(HOOK_ALONE)
    assert set(inspect.signature(TrainableCheckHook).parameters) == set(CHECKS)
