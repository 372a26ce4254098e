"""What label masks cost while losses are computed: mmdet's way, and LeanHeadsHook's.

apla-mm mask-costs

Of Mask R-CNN the mask targets of 128 positive proposals and 20 masks; of Mask2Former the losses of one image, by the
number of its objects. Masks have 1024 x 1024 pixels. Peak memory is above what is held before, each in a process of
its own; times are the smaller of two.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from ..config_files import find_config, read_config
from ..measure import peak_bytes
from ..models.heads.lean_detectors import make_detector_lean
from ..text import table
from . import command_parser

SIZE, PROPOSALS, MASKS = 1024, 128, 20
MASK2FORMER = "apla_mm::seg/mask2former_swin-t_apla_8xb2-160k_ade20k-512x512.py"


def mask_targets(lean: bool) -> Callable[[], Any]:
    """The targets of Mask R-CNN's mask head."""
    head = FCNMaskHead(num_convs=1, in_channels=4, conv_out_channels=4)
    if lean:
        make_detector_lean(head)
    masks = np.zeros((MASKS, SIZE, SIZE), np.uint8)
    masks[:, 200:500, 300:800] = 1
    torch.manual_seed(0)
    corners = torch.rand(PROPOSALS, 2) * 600
    sampled = InstanceData(
        pos_priors=torch.cat([corners, corners + 300], 1), pos_assigned_gt_inds=torch.randint(MASKS, (PROPOSALS,))
    )
    truth = InstanceData(masks=BitmapMasks(masks, SIZE, SIZE))
    return lambda: head.get_targets([sampled], [truth], ConfigDict(mask_size=28)).sum()


def query_losses(lean: bool, objects: int) -> Callable[[], Any]:
    """The losses of Mask2Former's ten predictions, of an image that is cut into as many strips as there are objects."""
    init_default_scope("mmseg")
    cfg = read_config(find_config(MASK2FORMER))
    head = MODELS.build(cfg.model.decode_head)
    if lean:
        make_detector_lean(head)
    labels = (torch.arange(SIZE)[:, None] * objects // SIZE).expand(1, SIZE, SIZE).contiguous()
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    queries, classes = cfg.model.decode_head.num_queries, cfg.model.decode_head.num_classes + 1
    torch.manual_seed(0)
    logits = [torch.randn(1, queries, classes, requires_grad=True) for _ in range(10)]
    masks = [torch.randn(1, queries, SIZE // 4, SIZE // 4, requires_grad=True) for _ in range(10)]

    def losses() -> Any:
        torch.manual_seed(0)
        return sum(head.loss_by_feat(logits, masks, *head._seg_data_to_instance_data([sample])).values())

    return losses


CASES: dict[str, Callable[[bool], Callable[[], Any]]] = {
    f"Mask R-CNN, targets of {PROPOSALS} proposals": mask_targets,
    "Mask2Former, losses of 12 objects": lambda lean: query_losses(lean, 12),
    "Mask2Former, losses of 50 objects": lambda lean: query_losses(lean, 50),
}


def measure(case: str, lean: bool) -> str:
    compute = CASES[case](lean)
    before, times = peak_bytes(torch.device("cpu")), []
    for _ in range(2):
        start = time.perf_counter()
        value = float(compute())
        times.append(time.perf_counter() - start)
    return f"{(peak_bytes(torch.device('cpu')) - before) / 2**20:.0f} {min(times):.2f} {value:.6g}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("mask-costs", __doc__)
    parser.add_argument("--one", nargs=2, metavar=("CASE", "HOW"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        print(measure(args.one[0], args.one[1] == "lean"))
        return
    rows = []
    for case in CASES:
        for how in ("plain", "lean"):
            command = [sys.executable, "-m", "apla_mm.commands.mask_costs", "--one", case, how]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append([case, how, *done.stdout.splitlines()[-1].split()])
    print(table(["", "heads", "peak memory, MiB", "time, s", "value"], rows, left=2, markdown=True))


if __name__ == "__main__":
    main()
