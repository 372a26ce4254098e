import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmseg.models  # noqa: F401  they register themselves
import pytest
import torch
from helpers import ROOT
from helpers.data_sets import write_photos
from helpers.optional import needs
from helpers.processes import run, run_ranks
from helpers.small_run import CONFIG, OPTIONS, TEST, TRAIN, run_small
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader

from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.loading.weights_check_hook import WeightsCheckHook, add_weights_check

pytestmark = pytest.mark.slow

SIZE = 64
SWIN = dict(
    pretrain_img_size=SIZE, embed_dims=16, depths=(2, 2), num_heads=(2, 4), strides=(4, 2), out_indices=(0, 1),
    window_size=4,
)  # fmt: skip
MMSEG_VIT = dict(
    type="mmseg.VisionTransformer", img_size=SIZE, patch_size=16, embed_dims=32, num_layers=3, num_heads=2,
    out_indices=(2,),
)  # fmt: skip
MMSEG_SWIN = dict(type="mmseg.SwinTransformer", **SWIN)
MMDET_SWIN = dict(type="mmdet.SwinTransformer", **SWIN)
MMPRETRAIN_VIT = dict(
    type="mmpretrain.VisionTransformer", img_size=SIZE, patch_size=16, out_type="featmap", out_indices=(1,),
    arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
)  # fmt: skip
MMDET_PVT = dict(
    type="mmdet.PyramidVisionTransformer", pretrain_img_size=SIZE, embed_dims=16, num_stages=2, num_layers=(1, 2),
    num_heads=(1, 2), patch_sizes=(4, 2), strides=(4, 2), paddings=(0, 0), sr_ratios=(4, 1), out_indices=(0, 1),
    mlp_ratios=(2, 2),
)  # fmt: skip
BEIT = dict(
    type="mmseg.BEiT", img_size=SIZE, patch_size=16, embed_dims=32, num_layers=2, num_heads=2, out_indices=(1,),
    init_values=0.1,
)  # fmt: skip

#: what of the names differs from timm's ViT's and from the original Swin's
TIMM = {
    r"^layers\.": "blocks.", r"\.ln(\d)": r".norm\1", r"ffn\.layers\.0\.0": "mlp.fc1", r"ffn\.layers\.1": "mlp.fc2",
    r"attn\.attn\.in_proj_": "attn.qkv.", r"attn\.attn\.out_proj": "attn.proj", "projection": "proj",
}  # fmt: skip
ORIGINAL_SWIN = {
    r"^stages\.": "layers.", r"attn\.w_msa\.": "attn.", r"ffn\.layers\.0\.0": "mlp.fc1", r"ffn\.layers\.1": "mlp.fc2",
    "projection": "proj",
}  # fmt: skip


def build(backbone: dict[str, Any]) -> nn.Module:
    if backbone["type"].startswith("mmpretrain."):
        needs("mmpretrain")
    return MODELS.build(ConfigDict(backbone))


class Model(BaseModel):
    def __init__(self, backbone: dict[str, Any], classes: int = 3) -> None:
        super().__init__()
        self.backbone = build(backbone)
        with torch.no_grad():
            channels = self.backbone(torch.zeros(1, 3, SIZE, SIZE))[-1].shape[1]
        self.head = nn.Linear(channels, classes)
        self.norm = nn.BatchNorm1d(classes)  # makes up num_batches_tracked while it loads

    def forward(self, inputs: Tensor, mode: str = "tensor", **_: Any) -> Any:
        y = self.norm(self.head(self.backbone(inputs)[-1].mean((-2, -1))))
        return {"loss": (y - 1).square().mean()} if mode == "loss" else [y]


class Trained(Exception):
    pass


class StopsAtFirstStep(Hook):
    """What it stops has passed all checks before training."""

    def before_train_iter(self, *args: Any, **kwargs: Any) -> None:
        raise Trained


def weights_of(backbone: dict[str, Any], names: dict[str, str] | None = None, prefix: str = "") -> dict[str, Tensor]:
    """Weights of a backbone that no initialiser gives, under other names."""
    torch.manual_seed(5)
    state = {}
    for name, tensor in build(backbone).state_dict().items():
        for pattern, new in (names or {}).items():
            name = re.sub(pattern, new, name)
        state[prefix + name] = torch.randn_like(tensor) if tensor.is_floating_point() else tensor
    return state


def saved(state: Any, path: Path) -> str:
    torch.save(state, path)
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


@pytest.fixture
def runner_of(tmp_path: Path) -> Callable[..., Runner]:
    """Makes a runner of stock hooks and APLAHook alone."""

    def make(backbone: dict[str, Any], *, hooks: Any = None, classes: int = 3, **settings: Any) -> Runner:
        samples = [dict(inputs=torch.randn(3, SIZE, SIZE)) for _ in range(2)]
        hooks = [dict(type="APLAHook", r=4)] if hooks is None else hooks
        model = Model(backbone, classes)
        loader = DataLoader(samples, batch_size=2)
        defaults: dict[str, Any] = dict(
            work_dir=str(tmp_path / "work"),
            train_dataloader=loader,
            train_cfg=dict(by_epoch=False, max_iters=1),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
            custom_hooks=[*hooks, StopsAtFirstStep()],
            experiment_name=f"run{time.time_ns()}",
            log_processor=dict(by_epoch=False),
        )
        return Runner(model=model, **{**defaults, **settings})

    return make


ALARMS = ("no file", "from none", "not checked", "random weights", "does not fit")


def quiet(text: str) -> bool:
    """Whether a log has none of the hook's warnings."""
    return not any(alarm in text for alarm in ALARMS)


@pytest.fixture
def log(tmp_path: Path) -> Callable[[], str]:
    return lambda: "".join(path.read_text() for path in sorted((tmp_path / "work").glob("*/*.log")))


def passes(runner: Runner) -> None:
    with pytest.raises(Trained):
        runner.train()


def pretrained(backbone: dict[str, Any], path: str, **more: Any) -> dict[str, Any]:
    return dict(backbone, init_cfg=dict(type="Pretrained", checkpoint=path, **more))


WRONG = {
    "timm's keys, mmseg ViT": (MMSEG_VIT, TIMM, "", "mmseg/.mim/tools/model_converters/vit2mmseg.py"),
    "original keys, mmseg Swin": (
        MMSEG_SWIN, ORIGINAL_SWIN, "", "mmseg/.mim/tools/model_converters/swin2mmseg.py",
    ),
    "original keys, mmdet PVT": (dict(MMDET_PVT, convert_weights=False), {}, "", "convert_weights=True"),
    "timm's keys, mmpretrain ViT": (
        MMPRETRAIN_VIT, TIMM, "", "mmpretrain/.mim/tools/model_converters/deit3_to_mmpretrain.py",
    ),
    "encoder.*, mmpretrain ViT": (MMPRETRAIN_VIT, {}, "encoder.", "give prefix='encoder.' in its init_cfg"),
    "model.*, mmseg ViT": (MMSEG_VIT, {}, "model.", "without 'model.': save the file with such keys"),
    "backbone.*, mmseg ViT": (MMSEG_VIT, {}, "backbone.", "without 'backbone.': save the file with such keys"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_frozen_backbone_whose_file_has_other_keys_is_not_trained(
    case: str, file: Path, runner_of: Callable[..., Runner]
) -> None:
    backbone, names, prefix, cure = WRONG[case]
    state = weights_of(backbone, names, prefix)
    state = original_pvt(state) if "PVT" in case else state
    with pytest.raises(ValueError, match="'backbone' has random weights") as error:
        runner_of(pretrained(backbone, saved(state, file))).train()
    text = str(error.value)
    own = MODELS.build(ConfigDict(backbone)).state_dict()
    assert cure in text and str(file) in text
    assert re.search(rf"of the {len(state)} keys in '.*' \d+ are names of its {len(own)} tensors", text)
    assert any(f"'{key}'" in text for key in state) and any(f"'{key}'" in text for key in own)
    (count, total) = map(int, re.findall(r"(\d+) of its (\d+) frozen tensors", text)[0])
    assert 4 <= count <= total


RIGHT: dict[str, Any] = {
    "mmseg ViT": (MMSEG_VIT, {}, "", {}),
    "mmseg ViT of timm's size of images": (MMSEG_VIT, {}, "", dict(img_size=96)),
    "mmseg Swin": (MMSEG_SWIN, {}, "", {}),
    "mmseg Swin of another window": (MMSEG_SWIN, {}, "", dict(window_size=7)),
    "mmdet Swin": (MMDET_SWIN, {}, "backbone.", {}),
    "mmdet Swin, original keys, converted": (dict(MMDET_SWIN, convert_weights=True), ORIGINAL_SWIN, "", {}),
    "mmdet PVT, original keys, converted": (dict(MMDET_PVT, convert_weights=True), {}, "", {}),
    "mmpretrain ViT": (MMPRETRAIN_VIT, {}, "", {}),
    "mmpretrain ViT of another size of images": (MMPRETRAIN_VIT, {}, "", dict(img_size=96)),
    "BEiT": (BEIT, {}, "", {}),
}


def original_pvt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names weights as PVT's authors do, who keep q apart from k and v."""
    new = {}
    for name, tensor in state.items():
        _, stage, kind, *rest = name.split(".")
        number = int(stage) + 1
        if kind == "0":
            new[f"patch_embed{number}.{'.'.join(rest).replace('projection', 'proj')}"] = tensor
        elif rest[-1] == "pos_embed":
            new[f"pos_embed{number}"] = tensor
        else:
            block, inner = f"block{number}.{int(rest[0]) - 1}", ".".join(rest[1:])
            if ".in_proj_" in inner:
                third, end = len(tensor) // 3, inner.rpartition("_")[2]
                new[f"{block}.attn.q.{end}"], new[f"{block}.attn.kv.{end}"] = tensor[:third], tensor[third:]
                continue
            for old, text in (("attn.attn.out_proj", "attn.proj"), ("ffn.layers.0", "mlp.fc1"),
                              ("ffn.layers.3", "mlp.fc2")):  # fmt: skip
                inner = inner.replace(old, text)
            new[f"{block}.{inner}"] = tensor[..., 0, 0] if tensor.shape[2:] == (1, 1) else tensor
    return new


@pytest.mark.parametrize("case", RIGHT)
def test_the_right_file_passes_without_a_warning(
    case: str, file: Path, runner_of: Callable[..., Runner], log: Callable[[], str]
) -> None:
    backbone, names, prefix, other = RIGHT[case]
    state = weights_of(dict(backbone, **other), names, prefix)
    state = {name: tensor for name, tensor in state.items() if "position_index" not in name}  # converters drop it
    if "PVT" in case:
        state = original_pvt(state)
    passes(runner_of(pretrained(backbone, saved(state, file))))
    assert quiet(log())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_file_of_another_dtype_passes(
    dtype: torch.dtype, file: Path, runner_of: Callable[..., Runner], log: Callable[[], str]
) -> None:
    state = {name: tensor.to(dtype) for name, tensor in weights_of(MMSEG_VIT).items()}
    passes(runner_of(pretrained(MMSEG_VIT, saved(state, file))))
    assert quiet(log())


def test_init_cfg_with_a_prefix_and_a_wrapped_state_dict_pass(
    file: Path, runner_of: Callable[..., Runner], log: Callable[[], str]
) -> None:
    state = dict(state_dict=weights_of(MMPRETRAIN_VIT, prefix="backbone."), meta={})
    passes(runner_of(pretrained(MMPRETRAIN_VIT, saved(state, file), prefix="backbone")))
    assert quiet(log())


def test_a_model_half_of_which_is_from_no_file_is_not_trained(file: Path, runner_of: Callable[..., Runner]) -> None:
    state = {name: tensor for name, tensor in weights_of(MMSEG_VIT).items() if not name.startswith("layers.2.ffn")}
    with pytest.raises(ValueError, match=r"2 of its \d+ frozen tensors.*'backbone.layers.2.ffn.layers.0.0.weight'"):
        runner_of(pretrained(MMSEG_VIT, saved(state, file))).train()


def test_odd_tensors_from_no_file_are_counted_in_a_warning(
    file: Path, runner_of: Callable[..., Runner], log: Callable[[], str]
) -> None:
    state = weights_of(dict(MMSEG_VIT, patch_size=8))
    passes(runner_of(pretrained(MMSEG_VIT, saved(state, file))))
    assert "1 frozen tensors of the model's 'backbone' came from none" in log()
    assert "'backbone.patch_embed.projection.weight'" in log()


def test_a_trained_backbone_of_whose_file_nothing_fits_is_not_trained_either(
    file: Path, runner_of: Callable[..., Runner]
) -> None:
    path = saved(weights_of(MMSEG_VIT, TIMM), file)
    with pytest.raises(ValueError, match="vit2mmseg"):
        runner_of(pretrained(MMSEG_VIT, path), hooks=[dict(type="WeightsCheckHook")]).train()


def test_random_frozen_weights_of_no_file_are_warned_about_once(
    runner_of: Callable[..., Runner], log: Callable[[], str]
) -> None:
    passes(runner_of(MMSEG_VIT))
    assert log().count("what is frozen of 'backbone' is random: no file of weights is named") == 1


def test_random_weights_that_were_asked_for_are_not(runner_of: Callable[..., Runner], log: Callable[[], str]) -> None:
    vit = dict(type="APLAViT", model_name="vit_tiny_patch16_224", pretrained=False, img_size=SIZE, apla=dict(r=4),
               model_kwargs=dict(depth=2, embed_dim=32, num_heads=2))  # fmt: skip
    passes(runner_of(vit, hooks=[dict(type="APLAHook")]))
    assert quiet(log())


def test_a_file_that_cannot_be_read_again_is_told_of(
    file: Path, runner_of: Callable[..., Runner], log: Callable[[], str]
) -> None:
    class Removes(Hook):
        priority = "HIGHEST"

        def before_train(self, runner: Runner) -> None:
            file.unlink()

    saved(weights_of(MMSEG_VIT), file)
    passes(runner_of(pretrained(MMSEG_VIT, str(file)), hooks=[Removes(), dict(type="APLAHook", r=4)]))
    assert "cannot be read again" in log() and "FileNotFoundError" in log()


def test_load_from_of_which_nothing_fits_is_refused_with_the_prefix_to_change(
    file: Path, runner_of: Callable[..., Runner]
) -> None:
    state = weights_of(MMSEG_VIT)
    runner = runner_of(MMSEG_VIT, load_from=saved(state, file))
    before = {}
    runner.register_hook(Remembers(before), "HIGHEST")
    with pytest.raises(ValueError, match="nothing of it fits the model, and nothing was loaded") as error:
        runner.train()
    assert f"{len(state)} of its {len(state)} keys would be the model's with 'backbone.' before them" in str(
        error.value
    )
    now = runner.model.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())


class Remembers(Hook):
    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def after_load_checkpoint(self, runner: Runner, checkpoint: Any) -> None:
        self.state.update({name: tensor.clone() for name, tensor in runner.model.state_dict().items()})


def test_load_from_with_another_head_is_counted_in_the_log(
    file: Path, runner_of: Callable[..., Runner], log: Callable[[], str]
) -> None:
    torch.manual_seed(3)
    model = Model(MMSEG_VIT, classes=5)
    model.init_weights()
    total = len(model.state_dict()) - 1
    passes(runner_of(MMSEG_VIT, load_from=saved(dict(state_dict=model.state_dict(), meta={}), file)))
    assert f"{total - 6} of {total} tensors of the model are in it; new are 6 of another shape: " in log()
    assert "head.weight ((5, 32) in the file, not (3, 32))" in log() and quiet(log())


def test_load_from_of_the_head_alone_does_not_make_a_frozen_backbone_pass(
    file: Path, runner_of: Callable[..., Runner]
) -> None:
    head = {name: tensor for name, tensor in Model(MMSEG_VIT).state_dict().items() if name.startswith("head.")}
    with pytest.raises(ValueError, match="'backbone' has random weights"):
        runner_of(MMSEG_VIT, load_from=saved(head, file)).train()


def test_load_from_stands_in_for_the_files_of_init_cfg(
    file: Path, tmp_path: Path, runner_of: Callable[..., Runner], log: Callable[[], str]
) -> None:
    other = saved(weights_of(MMSEG_VIT, TIMM), tmp_path / "timm.pth")
    state = weights_of(MMSEG_VIT, prefix="backbone.")
    passes(runner_of(pretrained(MMSEG_VIT, other), load_from=saved(state, file)))
    assert quiet(log())


def test_a_run_is_resumed_and_only_from_all_of_its_weights(
    tmp_path: Path, runner_of: Callable[..., Runner], log: Callable[[], str]
) -> None:
    hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=1))
    runner_of(MMSEG_VIT, default_hooks=hooks, custom_hooks=[dict(type="APLAHook", r=4, prove=False)]).train()
    path = tmp_path / "work/iter_1.pth"
    further = dict(train_cfg=dict(by_epoch=False, max_iters=2), resume=True)
    passes(runner_of(MMSEG_VIT, load_from=str(path), **further))
    passes(runner_of(MMSEG_VIT, **further))
    assert log().count("is random") == 1  # in the first run
    checkpoint = read_checkpoint(path)
    del checkpoint["state_dict"]["head.weight"]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="1 missing: 'head.weight'"):
        runner_of(MMSEG_VIT, load_from=str(path), **further).train()


class Wrapper(BaseTTAModel):
    def merge_preds(self, data_samples_list: Any) -> Any:
        return data_samples_list


def that_tests(runner_of: Callable[..., Runner], path: str, hooks: Any = None, tta: bool = False) -> Runner:
    runner = runner_of(
        MMSEG_VIT,
        train_dataloader=None, train_cfg=None, optim_wrapper=None,
        test_dataloader=DataLoader([dict(inputs=torch.randn(3, SIZE, SIZE))]), test_cfg=dict(), test_evaluator=[],
        load_from=path, hooks=hooks,
    )  # fmt: skip
    if tta:
        runner.model = Wrapper(module=runner.model)
    return runner


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("hook", ["APLAHook", "WeightsCheckHook"])
def test_a_checkpoint_of_other_classes_is_not_tested(
    hook: str, tta: bool, file: Path, runner_of: Callable[..., Runner]
) -> None:
    state = Model(MMSEG_VIT, classes=2).state_dict()
    runner = that_tests(runner_of, saved(state, file), [dict(type=hook)], tta)
    before = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    with pytest.raises(ValueError, match="as many classes as then") as error:
        runner.test()
    assert f"{len(state) - 7} of {len(state) - 1} tensors" in str(error.value)
    assert "head.weight ((2, 32) in the file, not (3, 32))" in str(error.value)
    after = runner.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("prefix", ["model.", "encoder.model.", "ema."])
def test_a_checkpoint_under_a_prefix_is_not_tested(prefix: str, file: Path, runner_of: Callable[..., Runner]) -> None:
    state = {prefix + name: tensor for name, tensor in Model(MMSEG_VIT).state_dict().items()}
    with pytest.raises(ValueError, match="nothing of it fits the model") as error:
        that_tests(runner_of, saved(state, file)).test()
    assert f"{len(state)} of its {len(state)} keys would be the model's without '{prefix}'" in str(error.value)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("hook", ["APLAHook", "WeightsCheckHook"])
def test_keys_that_the_model_has_not_are_counted_in_the_log(
    hook: str, prefix: str, file: Path, runner_of: Callable[..., Runner], log: Callable[[], str]
) -> None:
    state = {prefix + name: tensor for name, tensor in Model(MMSEG_VIT).state_dict().items()}
    state["auxiliary_head.weight"] = torch.zeros(3)
    that_tests(runner_of, saved(state, file), [dict(type=hook)]).test()
    assert "1 keys are not the model's: 'auxiliary_head.weight'" in log()


def test_a_model_that_resizes_while_it_loads_is_tested(
    file: Path, runner_of: Callable[..., Runner], log: Callable[[], str]
) -> None:
    state = Model(dict(MMPRETRAIN_VIT)).state_dict()
    state["backbone.pos_embed"] = torch.randn(1, 37, 32)
    runner = runner_of(
        MMPRETRAIN_VIT, train_dataloader=None, train_cfg=None, optim_wrapper=None,
        test_dataloader=DataLoader([dict(inputs=torch.randn(3, SIZE, SIZE))]), test_cfg=dict(), test_evaluator=[],
        load_from=saved(state, file),
    )  # fmt: skip
    runner.test()
    assert quiet(log())


def test_what_does_not_fit_is_a_warning_where_that_was_asked_for(
    file: Path, runner_of: Callable[..., Runner], log: Callable[[], str]
) -> None:
    lenient = [dict(type="WeightsCheckHook", strict=False)]
    that_tests(runner_of, saved(Model(MMSEG_VIT, classes=2).state_dict(), file), lenient).test()
    assert "it does not fit the model" in log()
    path = saved(weights_of(MMSEG_VIT, TIMM), file)
    passes(runner_of(pretrained(MMSEG_VIT, path), hooks=[*lenient, dict(type="APLAHook", r=4)]))
    assert "'backbone' has random weights" in log()


def test_a_runner_gets_the_hook_once(runner_of: Callable[..., Runner]) -> None:
    runner = runner_of(MMSEG_VIT)
    for _ in range(2):
        add_weights_check(runner)
    assert sum(isinstance(hook, WeightsCheckHook) for hook in runner.hooks) == 1


def test_tools_train_ends_before_it_trains_a_frozen_random_backbone(file: Path, tmp_path: Path) -> None:
    vit = dict(MMSEG_VIT, type="VisionTransformer", num_layers=4, out_indices=(0, 1, 2, 3))
    path = saved(weights_of(dict(vit, type="mmseg.VisionTransformer"), TIMM), file)
    config = tmp_path / "config.py"
    config.write_text(
        f"_base_ = {str(CONFIG)!r}\n"
        f"model = dict(backbone=dict(_delete_=True, **{pretrained(vit, path)!r}))\n"
        "custom_hooks = [dict(type='DataCheckHook'), dict(type='APLAHook', r=8)]\n"
    )
    options = [option for option in OPTIONS if not option.startswith("model.backbone")]
    data = f"data_root={write_photos(tmp_path / 'data')}"
    done = run(TRAIN, config, "--work-dir", tmp_path / "work", "--cfg-options", *options, data, returncode=1, cwd=ROOT)
    assert "'backbone' has random weights" in done.output and "vit2mmseg.py" in done.output
    assert "Iter(train)" not in done.output


def test_tools_test_ends_before_it_scores_random_weights(tmp_path: Path) -> None:
    data = f"data_root={write_photos(tmp_path / 'data')}"
    run_small(TRAIN, CONFIG, "--work-dir", tmp_path / "work", options=[data, "train_cfg.val_interval=100"])
    path = tmp_path / "work/iter_4.pth"
    three = [data, "classes=dark,bright,other"]
    output = run_small(TEST, CONFIG, path, "--work-dir", tmp_path / "a", options=three, returncode=1)
    assert "it does not fit the model, and nothing was loaded" in output and "mIoU:" not in output
    assert "conv_seg.weight ((2, 16, 1, 1) in the file, not (3, 16, 1, 1))" in output
    state = {f"model.{name}": tensor for name, tensor in read_checkpoint(path)["state_dict"].items()}
    torch.save(dict(state_dict=state, meta={}), path)
    output = run_small(TEST, CONFIG, path, "--work-dir", tmp_path / "b", options=[data], returncode=1)
    assert "keys would be the model's without 'model.'" in output and "mIoU:" not in output


def test_all_ranks_end_where_one_has_the_wrong_file(tmp_path: Path) -> None:
    saved(weights_of(MMSEG_VIT), tmp_path / "rank0.pth")
    # mmengine sends the first rank's weights to all: these are not in the other's file
    saved({name: tensor + 1 for name, tensor in weights_of(MMSEG_VIT).items()}, tmp_path / "rank1.pth")
    code = f"""
    import os
    import torch
    import mmseg.models
    from mmengine.model import BaseModel
    from mmengine.registry import MODELS
    from mmengine.runner import Runner
    from torch import nn
    from helpers import ROOT

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            init = dict(type="Pretrained", checkpoint=f"rank{{os.environ['RANK']}}.pth")
            self.backbone = MODELS.build(dict({MMSEG_VIT!r}, init_cfg=init))
            self.head = nn.Linear(32, 3)

        def forward(self, inputs, mode="loss", **_):
            return dict(loss=self.head(self.backbone(inputs)[-1].mean((-2, -1))).square().mean())

    class Samples(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return dict(inputs=torch.randn(3, {SIZE}, {SIZE}))

    torch.distributed.init_process_group("gloo")
    runner = Runner(
        Model(), "work", dict(dataset=Samples(), batch_size=2, sampler=dict(type="DefaultSampler"),
                              collate_fn=dict(type="default_collate")),
        train_cfg=dict(by_epoch=False, max_iters=1), optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1)),
        custom_hooks=[dict(type="APLAHook", r=4)],
    )
    try:
        runner.train()
    except Exception as error:
        print(f"<{{os.environ['RANK']}}: {{type(error).__name__}}: {{error}}>", flush=True)
    """
    output = run_ranks(code, tmp_path).output
    assert "<0: RuntimeError: rank 1 failed: ValueError: the model's 'backbone' has random weights" in output
    assert "<1: ValueError: the model's 'backbone' has random weights" in output
