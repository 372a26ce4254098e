"""What the processes of a job send one another in a training step: the gradients of what trains, counted.

apla-mm traffic configs/seg/apla_vitb_ade.py --full
Measured on backward passes under DDP, in one process on the CPU. Weights and data are random, and images are small:
the gradients' size does not depend on theirs. MB are 10^6 bytes.
"""

import argparse
import gc
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import HOOKS, MODELS, init_default_scope
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from ..config_files import config_argument, read_model_config
from ..data.synthetic_batch import synthetic_batch
from ..measure import Traffic, gradient_traffic
from ..method import adapt
from ..options.shared_options import apply_shared_options
from ..tuning.adapt_runner import find_target
from ..tuning.apla_hook import APLAHook
from . import at_least_one, command_parser, file_to_write

COLUMNS = ("config", "training", "trains", "backbone, MB a step", "all, MB a step", "all-reduces a step")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("traffic", __doc__)
    parser.add_argument("configs", nargs="+", type=config_argument, metavar="CONFIG", help="config file")
    parser.add_argument("--full", action="store_true", help="measure full fine-tuning of the same models too")
    parser.add_argument(
        "--img-size", type=at_least_one, default=64, help="height and width of the images (default: 64)"
    )
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write the figures here")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Row:
    """One config, as it is or with its backbone trained in full."""

    config: str
    training: str
    traffic: Traffic

    @property
    def backbone(self) -> int:
        return self.traffic.of("backbone")


def build(path: str, img_size: int, full: bool) -> nn.Module:
    cfg = read_model_config(path)
    backbone = cfg.model.backbone
    stored_for = backbone.get("img_size")
    apply_shared_options(cfg, dict(crop_size=img_size))
    if stored_for is not None:
        backbone.img_size = stored_for  # the position embedding trains in its full size, resampled to the images'
    if full:
        for key in ("apla", "frozen"):
            backbone.pop(key, None)
    for settings in (backbone.get("apla") or {}, *cfg.get("custom_hooks", [])):
        settings.pop("selection", None)  # which channels train makes no difference here
    backbone.update(dict(pretrained=False) if backbone.type == "APLAViT" else dict(init_cfg=None))
    init_default_scope(cfg.get("default_scope", "mmengine"))
    model = revert_sync_batchnorm(MODELS.build(cfg.model))  # SyncBN wants a GPU
    for settings in [] if full else cfg.get("custom_hooks", []):
        kind = settings["type"]
        if (HOOKS.get(kind) if isinstance(kind, str) else kind) is not APLAHook:
            continue
        hook = HOOKS.build(settings)
        if hook.adapts:
            for target, arguments in hook.options(model).items():
                adapt(find_target(model, target), **arguments)
    return model.train()


def measure(path: str, img_size: int, full: bool) -> Row:
    torch.manual_seed(0)
    model: Any = build(path, img_size, full)
    data = model.data_preprocessor(synthetic_batch(model, img_size, batch_size=2), training=True)
    traffic = gradient_traffic(model, lambda wrapped: model.parse_losses(wrapped(**data, mode="loss"))[0])
    return Row(Path(path).stem, "full" if full else "as it is", traffic)


def megabytes(count: int, whole: int) -> str:
    share = f" ({count / whole:.2%})" if whole and whole != count else ""
    return f"{count / 1e6:,.2f}{share}"


def format_rows(rows: list[Row]) -> str:
    """A table in Markdown; shares are of full fine-tuning of the same config."""
    full = {row.config: row for row in rows if row.training == "full"}
    table = Table(box=box.MARKDOWN)
    for title in COLUMNS:
        table.add_column(title, justify="left" if title in COLUMNS[:2] else "right", no_wrap=True)
    for row in rows:
        whole = full.get(row.config, row)
        table.add_row(
            row.config,
            row.training,
            f"{row.traffic.trained:,}",
            megabytes(row.backbone, whole.backbone),
            megabytes(row.traffic.bytes, whole.traffic.bytes),
            str(row.traffic.buckets),
        )
    console = Console(file=io.StringIO(), width=1000)  # a table in a file is not folded to a terminal
    with console.capture() as text:
        console.print(table)
    return text.get().strip()


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    rows = []
    for path in args.configs:
        for full in (False, True) if args.full else (False,):
            rows.append(measure(path, args.img_size, full))
            gc.collect()  # the last model goes before the next one comes
    print(format_rows(rows))
    if args.json:
        figures = [
            dict(
                config=row.config,
                training=row.training,
                trained=row.traffic.trained,
                backbone_bytes=row.backbone,
                bytes=row.traffic.bytes,
                buckets=row.traffic.buckets,
            )
            for row in rows
        ]
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
