"""Two processes that train one model together, each with half the batch, against one process with all of it."""

import json
import os
import time
import uuid
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apla_mm

# isort: split
import mmseg.datasets
import mmseg.models  # noqa: F401
import numpy as np
import pytest
import torch
from helpers.comparisons import assert_same, changed_rows, clone
from helpers.nets import tiny_vit
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.measure import CountedBuckets
from apla_mm.method.channels.trained import channels_of
from apla_mm.options.launching import join_processes, prepare_launch
from apla_mm.runs.hooks.saved_buffers_hook import SavedBuffersHook
from apla_mm.tuning.adapt_runner import unwrapped

pytestmark = pytest.mark.slow
BATCH, ITERATIONS = 4, 10
ALONE = 2  # the third process, beside ranks 0 and 1
VIT = dict(img_size=32, patch_size=8, embed_dims=32, num_layers=2, num_heads=2, out_indices=(1,))
OWN_VIT = dict(
    _delete_=True,
    type="APLAViT",
    model_name="vit_tiny_patch16_224",
    pretrained=False,
    img_size=32,
    model_kwargs=dict(depth=3, embed_dim=32, num_heads=2, patch_size=8),
    out_indices=(1,),
)
SAVING = dict(_delete_=True, type="AtomicCheckpointHook", by_epoch=False, interval=ITERATIONS)

#: what is unusual in a scenario -> what it changes in the config
TRAINING: dict[str, dict[str, Any]] = {
    "nothing": {},
    "AdamW": {"optim_wrapper.optimizer": dict(_delete_=True, type="AdamW", lr=1e-3, weight_decay=0.05)},
    "accumulation": {"optim_wrapper.accumulative_counts": 2},
    "clipping": {"optim_wrapper.clip_grad": dict(max_norm=0.05)},
    "EMA": {
        "custom_hooks": [dict(type="APLAHook", r=8), dict(type="DeltaHook"), dict(type="EMAHook", momentum=0.1)],
        "default_hooks.checkpoint": dict(
            _delete_=True, type="AtomicCheckpointHook", by_epoch=False, interval=ITERATIONS
        ),
    },
    "static graph": {"model_wrapper_cfg": dict(static_graph=True)},
    "recompute block": {"custom_hooks": [dict(type="APLAHook", r=8, recompute="block")]},
    "recompute linear, static graph": {
        "custom_hooks": [dict(type="APLAHook", r=8, recompute="linear")],
        "model_wrapper_cfg": dict(static_graph=True),
    },
    "last block": {"custom_hooks": [dict(type="APLAHook", r=8, blocks=[1])]},
    "head only": {"custom_hooks": [dict(type="APLAHook", blocks="none")]},
    "APLAViT": {"model.backbone": dict(OWN_VIT, apla=dict(r=8)), "custom_hooks": [dict(type="APLAHook")]},
    "APLAViT, last block": {
        "model.backbone": dict(OWN_VIT, apla=dict(r=8, blocks=[1])),
        "custom_hooks": [dict(type="APLAHook")],
    },
    "APLAViT, head only": {"model.backbone": dict(OWN_VIT, frozen=True), "custom_hooks": [dict(type="APLAHook")]},
    "bfloat16": {"optim_wrapper.type": "BFloat16OptimWrapper"},
}


def differing(rank: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Scenarios in which ranks are told different things."""
    channels = {f"layers.{i}.attn.attn.out_proj": [1, 5 + (rank == 1 and i == 1), 9] for i in range(2)}
    file = folder / f"channels{rank}.json"
    file.write_text(json.dumps(channels))
    missing = folder / "missing.json"
    if rank == 0:
        missing.write_text(json.dumps(channels))
    path = str(missing if rank == 0 else folder / "missing on rank 1.json")
    return {
        "channels file": {"custom_hooks": [dict(type="APLAHook", channels=str(file))]},
        "r": {"custom_hooks": [dict(type="APLAHook", r=8 + rank)]},
        "seed of APLAViT": {
            "model.backbone": dict(OWN_VIT, apla=dict(r=8, seed=rank)),
            "custom_hooks": [dict(type="APLAHook")],
        },
        "missing file": {"custom_hooks": [dict(type="APLAHook", channels=path)]},
        "file in the base's place": {
            "custom_hooks": [dict(type="APLAHook", r=8), dict(type="DeltaHook", base_dir=str(file))],
            "default_hooks.checkpoint": SAVING,
        },
    }


class Watch(Hook):
    """Notes which images come, how the weights were at the start, and what is all-reduced in a step."""

    priority = "LOWEST"

    def __init__(self, counts: bool) -> None:
        self.counts = counts
        self.images: list[list[str]] = []
        self.bytes: list[int] = []

    def before_train(self, runner: Runner) -> None:
        self.start = clone(unwrapped(runner.model).state_dict())
        self.buckets = CountedBuckets(runner.model) if self.counts and is_model_wrapper(runner.model) else None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.images.append(sorted(Path(sample.img_path).stem for sample in data_batch["data_samples"]))

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if self.buckets is not None:
            self.bytes.append(self.buckets.bytes)
            self.buckets.reset()


def write_data_set(root: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for i in range(3 * BATCH - 1):
        labels = rng.integers(0, 3, (4, 4), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        image = labels[..., None] * 80 + rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
        labels[: 8 * (i % 3)] = 255  # ignored
        Image.fromarray(image).save(root / f"images/{i}.png")
        Image.fromarray(labels).save(root / f"labels/{i}.png")


def make_config(folder: Path, process: int, changes: dict[str, Any]) -> Config:
    pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
    cfg = Config(
        dict(
            default_scope="mmseg",
            model=dict(
                type="EncoderDecoder",
                data_preprocessor=dict(type="SegDataPreProcessor", mean=[127.5] * 3, std=[127.5] * 3, size=(32, 32)),
                backbone=dict(type="VisionTransformer", **VIT),
                decode_head=dict(
                    type="FCNHead",
                    in_channels=32,
                    channels=16,
                    num_convs=1,
                    concat_input=False,
                    num_classes=3,
                    dropout_ratio=0,
                    norm_cfg=dict(type="GN", num_groups=4),
                ),
            ),
            train_dataloader=dict(
                batch_size=BATCH if process == ALONE else BATCH // 2,
                num_workers=0,
                sampler=dict(type="InfiniteSampler", shuffle=True),
                dataset=dict(
                    type="BaseSegDataset",
                    data_root=str(folder / "data"),
                    data_prefix=dict(img_path="images", seg_map_path="labels"),
                    img_suffix=".png",
                    metainfo=dict(classes=("a", "b", "c")),
                    pipeline=pipeline,
                    serialize_data=False,  # it takes half a second
                ),
            ),
            optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.05, momentum=0.9)),
            train_cfg=dict(by_epoch=False, max_iters=ITERATIONS),
            custom_hooks=[dict(type="APLAHook", r=8)],
            randomness=dict(seed=0),
            env_cfg=dict(dist_cfg=dict(timeout=60)),
            default_hooks=dict(checkpoint=None),
            visualizer=dict(type="Visualizer", vis_backends=[]),
            work_dir=str(folder / f"work{process}"),
            experiment_name=uuid.uuid4().hex,
        )
    )
    cfg.merge_from_dict(changes)
    return cfg


def train(folder: Path, process: int, changes: dict[str, Any], files: str) -> dict[str, Any]:
    """Train, write the weights, and give what else there is to tell."""
    cfg = make_config(folder, process, changes)
    prepare_launch(cfg, "none" if process == ALONE else "pytorch")
    join_processes(cfg)
    runner = Runner.from_cfg(cfg)
    watch = Watch(counts=bool(changes))  # one scenario reduces gradients without a communication hook of ours
    runner.register_hook(watch)
    runner.train()
    model = unwrapped(runner.model)
    state = model.state_dict()
    save_file(watch.start, f"{files}.start.safetensors")
    save_file(state, f"{files}.safetensors")
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            save_file(hook.ema_model.module.state_dict(), f"{files}.ema.safetensors")
    wrapped = isinstance(runner.model, DistributedDataParallel)
    return dict(
        images=watch.images,
        bytes=watch.bytes,
        changed=changed_rows(watch.start, state),
        channels=channels_of(model),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        find_unused=runner.model.find_unused_parameters if wrapped else None,
        static_graph=runner.model.static_graph if wrapped else None,
    )


def train_with_loss_scaling(rank: int) -> dict[str, Any]:
    """Six steps in float16 under DDP; in the second the loss of rank 1 alone overflows."""
    torch.manual_seed(0)
    model = tiny_vit(patch_size=8)
    apla_mm.adapt(model, r=3, trainable=["head.*"])
    wrapped = DistributedDataParallel(model.train())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=1000)
    states, scales = [], []
    for step in range(6):
        states.append(clone(model.state_dict()))
        scales.append(scaler.get_scale())
        torch.manual_seed(10 * step + rank)
        images, labels = torch.randn(4, 3, 32, 32), torch.randint(5, (4,))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = nn.functional.cross_entropy(wrapped(images), labels)
        scaler.scale(loss * (1e10 if (step, rank) == (1, 1) else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    states.append(model.state_dict())
    return dict(
        changed=[changed_rows(*pair) for pair in pairwise(states)],
        scales=scales,
        weights={key: tensor.flatten().tolist() for key, tensor in states[-1].items()},
        channels=channels_of(model),
    )


def buffers_at_validation(rank: int) -> dict[str, list[float]]:
    """Those of a BN whose statistics differ from rank to rank, when a validation begins."""
    model = nn.Sequential(nn.BatchNorm2d(2))
    model[0].running_mean.fill_(1.0 + rank)
    model[0].num_batches_tracked.fill_(5 + rank)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    SavedBuffersHook().before_val_epoch(SimpleNamespace(model=wrapped))
    return {name: buffer.flatten().tolist() for name, buffer in model.named_buffers()}


def work(process: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    if process != ALONE:
        rank = str(process)
        os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        # as of torchrun: no rank opens the port, which is open
        os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
    told: dict[str, Any] = {}
    for number, (name, changes) in enumerate(TRAINING.items()):
        told[name] = train(folder, process, changes, f"{folder}/{number}.{process}")
    if process != ALONE:
        for name, changes in differing(process, folder).items():
            start = time.perf_counter()
            try:
                train(folder, process, changes, f"{folder}/none")
                error = None
            except Exception as failure:
                error = f"{type(failure).__name__}: {failure}"
            told[f"other {name}"] = dict(error=error, seconds=time.perf_counter() - start)
        told["buffers"] = buffers_at_validation(process)
        told["loss scaling"] = train_with_loss_scaling(process)
        distributed.destroy_process_group()
    (folder / f"{process}.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ranks 0 and 1, and a process that trains alone, have left what they got."""
    folder = tmp_path_factory.mktemp("processes")
    write_data_set(folder / "data")
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(work, (store.port, folder), nprocs=3)
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{process}.json").read_text()) for process in range(3)]


def weights(folder: Path, name: str, kind: str = "") -> list[dict[str, Tensor]]:
    """Of rank 0, rank 1 and the process alone."""
    number = list(TRAINING).index(name)
    return [load_file(f"{folder}/{number}.{process}{kind}.safetensors") for process in range(3)]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[key].double() - other[key].double()).abs().max().item() for key in one)


def test_both_halves_of_each_batch_are_the_whole(told: list[dict[str, Any]]) -> None:
    seen = set()
    for first, second, alone in zip(*(told[process]["nothing"]["images"] for process in range(3)), strict=True):
        assert len(first) == len(second) == BATCH // 2
        assert sorted(first + second) == alone
        seen.update(alone)
    assert len(seen) == 3 * BATCH - 1


@pytest.mark.parametrize("name", TRAINING)
def test_ranks_end_bit_equal_and_with_the_weights_of_one_process(folder: Path, name: str) -> None:
    rank0, rank1, alone = weights(folder, name)
    *_, start = weights(folder, name, ".start")
    assert_same(rank0, rank1)
    moved = distance(alone, start)
    assert moved > 5e-3
    assert distance(rank0, alone) <= (0.02 * moved if name == "bfloat16" else 1e-6)


def test_what_is_unusual_made_a_difference(folder: Path) -> None:
    usual = weights(folder, "nothing")[ALONE]
    for name in ("AdamW", "accumulation", "clipping", "bfloat16", "last block", "head only"):
        assert distance(weights(folder, name)[ALONE], usual) > 1e-4, name


def test_means_of_weights_are_those_of_one_process(folder: Path) -> None:
    rank0, rank1, alone = weights(folder, "EMA", ".ema")
    assert_same(rank0, rank1)
    assert distance(rank0, alone) <= 1e-6
    for other in (weights(folder, "EMA"), weights(folder, "EMA", ".start")):
        assert distance(alone, other[ALONE]) > 1e-3


@pytest.mark.parametrize("name", TRAINING)
def test_channels_and_head_alone_move(told: list[dict[str, Any]], name: str) -> None:
    for each in told:
        rows = {f"{proj}.{part}": c for proj, c in each[name]["channels"].items() for part in ("weight", "bias")}
        assert len(rows) == (0 if "head" in name else 2 if "last" in name else 4)
        changed = {key: rows for key, rows in each[name]["changed"].items() if not key.startswith("decode_head.")}
        assert changed == rows
        assert len(each[name]["changed"]) > len(rows)


@pytest.mark.parametrize("name", TRAINING)
def test_gradients_of_what_trains_are_all_that_is_reduced(told: list[dict[str, Any]], name: str) -> None:
    head = 32 * 16 * 9 + 2 * 16 + 16 * 3 + 3
    for each in told[:ALONE]:
        assert each[name]["trained"] == head + 8 * (32 + 1) * len(each[name]["channels"])
        step = 4 * each[name]["trained"]
        expected = [0, step] * (ITERATIONS // 2) if name == "accumulation" else [step] * ITERATIONS
        assert each[name]["bytes"] == ([] if name == "nothing" else expected)


def test_no_scenario_looks_for_unused_parameters(told: list[dict[str, Any]]) -> None:
    for each in told[:ALONE]:
        for name in TRAINING:
            assert each[name]["find_unused"] is False
            assert each[name]["static_graph"] is ("static graph" in name)


@pytest.mark.parametrize(
    ("name", "projection"),
    [
        ("channels file", "'backbone.layers.1.attn.attn.out_proj' for one: 3 (1, 5, 9) on rank 0 and 3 (1, 6, 9) on"),
        ("r", "'backbone.layers.0.attn.attn.out_proj' for one: 8 ("),
        ("seed of APLAViT", "'backbone.vit.blocks.0.attn.proj' for one: 8 ("),
    ],
)
def test_ranks_that_would_train_other_channels_are_an_error_on_each(
    told: list[dict[str, Any]], name: str, projection: str
) -> None:
    for each in told[:ALONE]:
        result = each[f"other {name}"]
        start = f"RuntimeError: rank 1 would train other channels than the rest, of {projection}"
        assert result["error"].startswith(start)
        assert "give every rank the same model, r, seed, blocks and channels" in result["error"]
        assert result["seconds"] < 20


def test_failure_to_adapt_on_one_rank_is_an_error_on_each(told: list[dict[str, Any]]) -> None:
    first, second = (told[rank]["other missing file"] for rank in range(2))
    assert first["error"].startswith("RuntimeError: rank 1 failed: FileNotFoundError: channels='")
    assert second["error"].startswith("FileNotFoundError: channels='")
    assert first["seconds"] < 20


def test_first_rank_writes_the_deltas(folder: Path) -> None:
    assert not list((folder / "work1").glob("*.safetensors"))
    for process, mean in enumerate(weights(folder, "EMA", ".ema")):
        if process != 1:
            path = folder / f"work{process}/iter_{ITERATIONS}.delta.safetensors"
            assert_same(read_checkpoint(path)["state_dict"], mean)


def test_base_that_cannot_be_written_is_an_error_on_each(told: list[dict[str, Any]]) -> None:
    starts = ("FileExistsError: ", "RuntimeError: rank 0 failed: FileExistsError: ")
    for start, each in zip(starts, told[:ALONE], strict=True):
        result = each["other file in the base's place"]
        assert result["error"].startswith(start) and result["seconds"] < 20
        assert "channels0.json" in result["error"]


def test_overflow_in_float16_on_one_rank_skips_the_step_on_each(told: list[dict[str, Any]]) -> None:
    first, second = (told[rank]["loss scaling"] for rank in range(2))
    assert first == second
    assert first["scales"] == [256.0, 256.0, *[128.0] * 4]
    rows = {f"{name}.{part}": c for name, c in first["channels"].items() for part in ("weight", "bias")}
    step = {**rows, "head.weight": [*range(5)], "head.bias": [*range(5)]}
    assert len(step) == 6
    assert first["changed"] == [step, {}, *[step] * 4]


def test_all_ranks_validate_with_the_buffers_that_rank_0_saves(told: list[dict[str, Any]]) -> None:
    expected = {"0.running_mean": [1.0, 1.0], "0.running_var": [1.0, 1.0], "0.num_batches_tracked": [5]}
    assert told[0]["buffers"] == told[1]["buffers"] == expected
