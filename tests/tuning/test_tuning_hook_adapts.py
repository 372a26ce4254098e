"""TuningHook on whole models of mmseg and mmdet, and in several processes."""

import copy
from pathlib import Path

import pytest
import torch
from helpers.backbones import BACKBONES, build, make_runner
from helpers.comparisons import assert_same, changed_rows
from helpers.optional import needs
from helpers.processes import run_ranks
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.options.method import set_method
from apla_mm.tuning import prepare_runner

pytestmark = pytest.mark.slow

METHODS = ("full", "head", "norm", "bitfit", "lora:r=2,layers=all", "wo", "apla:r=4")


@pytest.mark.parametrize(
    ("kind", "key"),
    [*(("segmentation", key) for key in METHODS), *(("detection", key) for key in ("norm", "lora:r=2,layers=all"))],
)
def test_segmentors_and_detectors_train_and_their_checkpoints_are_plain(
    kind: str, key: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    needs("mmdet" if kind == "detection" else "mmseg")
    cfg: Config = request.getfixturevalue(f"{kind}_config")
    set_method(cfg, key)
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook["type"] != "DataCheckHook"]
    cfg.train_cfg.val_interval = 10
    cfg.default_hooks.checkpoint = dict(type="AtomicCheckpointHook", by_epoch=False, interval=1)
    if key != "full":
        cfg.custom_hooks.append(dict(type="DeltaHook"))
    runner = Runner.from_cfg(cfg)
    runner.train()
    state = read_checkpoint(tmp_path / "work/iter_1.pth")["state_dict"]
    plain_cfg = copy.deepcopy(cfg.model)
    plain_cfg.backbone.pop("apla", None)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        plain = MODELS.build(plain_cfg)
    assert [(k, v.shape, v.dtype) for k, v in plain.state_dict().items()] == [
        (k, v.shape, v.dtype) for k, v in state.items()
    ]
    plain.load_state_dict(state)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for one, other in zip(plain.eval().backbone(x), runner.model.eval().backbone(x), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert key == "full" or (tmp_path / "work/iter_1.delta.safetensors").is_file()


@pytest.mark.parametrize(("family", "key"), [("mmseg ViT", "bitfit"), ("mmseg Swin", "lora:r=2")])
def test_two_processes_with_a_wrapped_model(family: str, key: str, tmp_path: Path) -> None:
    code = f"""
        import os, pathlib, torch
        from helpers.backbones import BACKBONES, build, make_runner
        from helpers.comparisons import clone
        from mmengine.hooks import Hook
        class Start(Hook):
            def before_train(self, runner):
                self.state = clone(model.state_dict())
        start = Start()
        rank = os.environ["RANK"]
        torch.distributed.init_process_group("gloo")  # mmengine's own start wants a GPU
        scope, backbone, _ = BACKBONES["{family}"]
        model = build(scope, backbone)
        runner = make_runner(
            model, pathlib.Path("work").absolute(), {{}}, launcher="pytorch", randomness=dict(seed=0),
            custom_hooks=[dict(type="TuningHook", method="{key}"), start],
            cfg=dict(model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None)),
        )
        runner.train()
        assert type(runner.model).__name__ == "MMDistributedDataParallel"
        torch.save((start.state, model.state_dict(), dict(model.named_parameters())), f"rank{{rank}}.pth")
    """
    run_ranks(code, tmp_path)
    (before, state, parameters), other = (torch.load(tmp_path / f"rank{r}.pth", weights_only=True) for r in (0, 1))
    assert any(".lora." in name for name in parameters) is (key != "bitfit")
    assert_same((before, state, parameters), other)
    changed = changed_rows(before, state)
    assert {name for name in changed if name.startswith("backbone.")} == {
        name.replace(".lora.b", ".weight")
        for name, p in parameters.items()
        if name.startswith("backbone.") and p.requires_grad and not name.endswith(".lora.a")
    }


def test_processes_that_would_train_other_parameters_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scope, backbone, _ = BACKBONES["mmseg Swin"]
    monkeypatch.setattr(prepare_runner, "all_gather_object", lambda own: [own, {**own, "more": (3,)}])
    runner = make_runner(build(scope, backbone), tmp_path, {}, custom_hooks=[dict(type="TuningHook", method="norm")])
    with pytest.raises(RuntimeError, match="rank 1 would train other parameters than rank 0: 'more' differ"):
        runner.train()
