"""Serves two tasks, segmentation and detection, from one ViT in memory.

From the repository's root::

    python demo/two_tasks.py

A segmentor of mmseg and a detector of mmdet hold one backbone, each with its own head, and take turns on it; both are
compared with two models of their own. Weights are random unless --weights names some; deltas too, unless --seg and
--det name files that --save has written. The image is one that scikit-learn brings along.
"""

import argparse
import copy
import ctypes
import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.structures import BaseDataElement
from mmseg.structures import SegDataSample
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

import apla_mm
from apla_mm.delta import Delta, apply_delta, extract_delta, load_delta, save_delta
from apla_mm.models import APLAViT

MIB = 2**20
STUB = dict(model_name="vit_tiny_patch16_224", pretrained=False, model_kwargs=dict(depth=1, embed_dim=1, num_heads=1))
PICTURE = dict(mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=False)


def segmentor(backbone: dict[str, Any], width: int) -> dict[str, Any]:
    loss = dict(type="CrossEntropyLoss", avg_non_ignore=True)
    head = dict(type="FCNHead", in_channels=width, channels=256, num_classes=150, num_convs=2, in_index=-1)
    return dict(
        type="EncoderDecoder",
        data_preprocessor=dict(type="SegDataPreProcessor", test_cfg=dict(size_divisor=32), **PICTURE),
        backbone=backbone,
        decode_head=dict(head, norm_cfg=dict(type="BN"), align_corners=False, loss_decode=loss),
        test_cfg=dict(mode="whole"),
    )


def detector(backbone: dict[str, Any], width: int) -> dict[str, Any]:
    return dict(
        type="FCOS",
        data_preprocessor=dict(type="DetDataPreprocessor", pad_size_divisor=32, **PICTURE),
        backbone=backbone,
        neck=dict(type="SimpleFeaturePyramid", in_channels=width, scale_factors=(2, 1, 0.5), num_outs=5),
        bbox_head=dict(type="FCOSHead", num_classes=80, in_channels=256, stacked_convs=2, feat_channels=256),
        test_cfg=dict(nms_pre=100, score_thr=0.0, nms=dict(type="nms", iou_threshold=0.5), max_per_img=20),
    )


def build(scope: str, make: Any, backbone: nn.Module) -> BaseModel:
    """A model on a backbone that exists already."""
    init_default_scope(scope)
    with DefaultScope.overwrite_default_scope(scope):
        model: BaseModel = MODELS.build(ConfigDict(make(dict(type="APLAViT", **STUB), backbone.embed_dims)))
    model.backbone = backbone
    return model.eval()


def trained_from(model: BaseModel, r: int | str, seed: int) -> Delta:
    """What training might leave: a copy's channels, and the whole of its heads, moved at random."""
    trained = copy.deepcopy(model)
    apla_mm.adapt(trained.backbone.vit, r=r, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return extract_delta(trained, r=r, seed=seed)


def run(model: BaseModel, image: Tensor) -> BaseDataElement:
    sample = (SegDataSample if hasattr(model, "decode_head") else DetDataSample)()
    size = tuple(image.shape[1:])
    sample.set_metainfo(dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0)))
    with torch.no_grad():
        return model.test_step(dict(inputs=[image], data_samples=[sample]))[0]


def tensors_of(result: BaseDataElement) -> list[Tensor]:
    if "pred_sem_seg" in result:
        return [result.pred_sem_seg.data, result.seg_logits.data]
    return [result.pred_instances.bboxes, result.pred_instances.scores, result.pred_instances.labels]


def told(result: BaseDataElement) -> str:
    if "pred_sem_seg" in result:
        labels = result.pred_sem_seg.data
        return f"a label map of {labels.shape[-2]} x {labels.shape[-1]} with {len(labels.unique())} classes"
    return f"{len(result.pred_instances)} boxes, the best with a score of {result.pred_instances.scores.max():.3f}"


def weights_mib(*models: nn.Module) -> float:
    return sum({t.data_ptr(): t.nbytes for model in models for t in model.state_dict().values()}.values()) / MIB


def process_mib() -> float:
    """Resident memory."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def swap_times(backbone: nn.Module, delta: Delta, swaps: int) -> tuple[float, float]:
    """Milliseconds into a task and back out of it: median, 99th percentile."""
    switch = apla_mm.TaskSwitch(backbone, {"task": delta}, prefix="backbone.", check_base=False)
    times = []
    for _ in range(swaps):
        start = time.perf_counter()
        with switch("task"):
            pass
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def markdown(*rows: list[str]) -> Table:
    table = Table(box=box.MARKDOWN)
    for i, title in enumerate(rows[0]):
        table.add_column(title, justify="right" if i else "left")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224", help="a ViT of timm (default: %(default)s)")
    parser.add_argument("--weights", type=Path, help="its pretrained weights; random ones otherwise")
    parser.add_argument("--r", default="64", help="channels that the random deltas train (default: %(default)s)")
    parser.add_argument("--seg", type=Path, help="the segmentor's delta")
    parser.add_argument("--det", type=Path, help="the detector's delta")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write both deltas here")
    parser.add_argument("--swaps", type=int, default=1000, help="swaps that are timed (default: %(default)s)")
    args = parser.parse_args()
    r = args.r if args.r == "full" else int(args.r)
    if args.swaps < 2:
        parser.error("--swaps must be at least 2")
    console = Console(width=120)
    torch.manual_seed(0)
    image = torch.from_numpy(load_sample_image("china.jpg")[:416, :640].copy()).permute(2, 0, 1)

    backbone = APLAViT(args.model, pretrained=args.weights or False)
    backbone.init_weights()
    models = {"segmentation": build("mmseg", segmentor, backbone), "detection": build("mmdet", detector, backbone)}
    rest = process_mib() - weights_mib(*models.values())
    switch = apla_mm.TaskSwitch(backbone, prefix="backbone.")
    with tempfile.TemporaryDirectory() as folder:
        files = {name: (args.save or Path(folder)) / f"{name}.safetensors" for name in models}
        for seed, (given, (name, model)) in enumerate(zip((args.seg, args.det), models.items(), strict=True)):
            save_delta(load_delta(given) if given else trained_from(model, r, seed), files[name])
        for name, model in models.items():
            switch.add(name, files[name], whole=model)
        one, one_process = weights_mib(*models.values()) + switch.nbytes / MIB, process_mib()
        # two models, each with a backbone
        own = {name: copy.deepcopy(model) for name, model in models.items()}
        for name, model in own.items():
            apply_delta(model, load_delta(files[name]))
        two, two_process = weights_mib(*own.values()), rest + process_mib() - one_process

    for name, model in models.items():
        with switch(name):
            result = run(model, image)
        alone = run(own[name], image)
        same = all(torch.equal(a, b) for a, b in zip(tensors_of(result), tensors_of(alone), strict=True))
        relation = "equal to the bit to" if same else "NOT EQUAL to"
        console.print(f"{name}: {told(result)}, {relation} that of a model of its own", highlight=False)

    saved = f"{100 * (1 - one / two):.0f} % less"
    console.print(
        markdown(
            ["", "weights and deltas, MiB", "process, MiB"],
            ["two models", f"{two:.0f}", f"{two_process:.0f}"],
            ["two tasks on one backbone", f"{one:.0f} ({saved})", f"{one_process:.0f}"],
        )
    )
    rows = []
    for channels in (8, 64, "full"):
        delta = trained_from(models["segmentation"], channels, seed=0)
        part = sum(t.nbytes for g in (delta.rows, delta.tensors) for n, t in g.items() if n.startswith("backbone."))
        median, p99 = swap_times(backbone, delta, args.swaps)
        rows.append([str(channels), f"{part / MIB:.2f}", f"{median:.2f}", f"{p99:.2f}"])
    console.print(markdown(["r", "of the backbone, MiB", "there and back, ms: median", "p99"], *rows))


if __name__ == "__main__":
    main()
