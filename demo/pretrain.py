"""Pretrains the demo's small ViT on another task of the same domain: naming digits that are pointed at.

Of a scene the model is told where its four digits lie. From the mean of the nine tokens there it tells a digit's class,
and its 8 x 8 pixels as they were before it was enlarged, turned and set into the scene. It never sees a label map, and
no digit of the scenes that the demo trains and tests on.

``demo/vit_digits.safetensors`` was made by::

    python demo/pretrain.py
"""

import argparse
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scenes import Digits, digit_pools, make_scene
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor

MODEL_NAME = "vit_tiny_patch16_224"
MODEL_KWARGS = dict(img_size=96, patch_size=8, embed_dim=128, depth=6, num_heads=4)
SIZE, PATCH = 96, 8
GRID = SIZE // PATCH  # patches along each side
DIGITS = 4
MEAN, STD = 127.5, 64.0  # as in the configs' data preprocessor
GLYPH_WEIGHT = 30.0  # both losses then start alike
FADE = 0.2  # the share of training until scenes are as they are
NONE = -100  # in place of the class where a scene has fewer digits: cross-entropy ignores it


@dataclass(frozen=True)
class Scenes:
    """Scenes of up to four digits.

    Attributes:
        images: uint8 (N, 3, 96, 96).
        strokes: Of the digits, 0 or 255, uint8 (N, 1, 96, 96).
        patches: Which patch each digit's centre lies in, int64 (N, 4).
        labels: Their classes, int64 (N, 4); ``NONE`` where there is no digit.
        glyphs: How they were written, float32 (N, 4, 64).
    """

    images: Tensor
    strokes: Tensor
    patches: Tensor
    labels: Tensor
    glyphs: Tensor


def make_scenes(digits: Digits, count: int, seed: int) -> Scenes:
    """Draws scenes with digits of a pool."""
    rng = np.random.default_rng(seed)
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    strokes = np.empty((count, 1, SIZE, SIZE), np.uint8)
    patches, labels = np.zeros((count, DIGITS), np.int64), np.full((count, DIGITS), NONE)
    glyphs = np.zeros((count, DIGITS, 64), np.float32)
    for i in range(count):
        scene = make_scene(rng, digits, SIZE, DIGITS)
        images[i], strokes[i, 0] = scene.image.transpose(2, 0, 1), (scene.mask > 0) * np.uint8(255)
        found = len(scene.members)
        columns, rows = (np.array(scene.centres) // PATCH).astype(int).T
        patches[i, :found], labels[i, :found] = rows * GRID + columns, digits.labels[scene.members]
        glyphs[i, :found] = digits.images[scene.members].reshape(found, 64)
    return Scenes(*map(torch.from_numpy, (images, strokes, patches, labels, glyphs)))


def read_digits(model: torch.nn.Module, images: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """The logits (B, 4, 10) and pixels (B, 4, 64) of the digits at these patches (B, 4) of images (B, 3, 96, 96)."""
    tokens = model.forward_features((images - MEAN) / STD)[:, 1:]
    maps = tokens.transpose(1, 2).unflatten(2, (GRID, GRID))
    around = F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False).flatten(2)
    there = around.gather(2, patches[:, None].expand(-1, around.shape[1], -1)).transpose(1, 2)
    logits, glyphs = model.head(there).float().split([10, 64], 2)
    return logits, glyphs


@torch.no_grad()
def accuracy(model: torch.nn.Module, scenes: Scenes, batch_size: int) -> float:
    """The share of digits that are named correctly."""
    model.eval()
    parts = zip(scenes.images.split(batch_size), scenes.patches.split(batch_size), strict=True)
    predictions = torch.cat([read_digits(model, *part)[0].argmax(2) for part in parts])
    model.train()
    return (predictions == scenes.labels)[scenes.labels != NONE].float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("vit_digits.safetensors"))
    parser.add_argument("--scenes", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    digits = digit_pools()["pretrain"]
    held_out = np.arange(len(digits.labels)) % 10 == 0
    train_digits, val_digits = (Digits(digits.images[part], digits.labels[part]) for part in (~held_out, held_out))
    scenes = make_scenes(train_digits, args.scenes, args.seed)
    val_scenes = make_scenes(val_digits, 500, args.seed + 1)

    model = timm.create_model(MODEL_NAME, num_classes=10 + 64, **MODEL_KWARGS)
    with torch.no_grad():  # tokens know their neighbours from the start
        model.pos_embed[0, 1:] = build_sincos2d_pos_embed([GRID, GRID], MODEL_KWARGS["embed_dim"], temperature=100.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    steps = args.epochs * (args.scenes // args.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, steps, pct_start=0.1)
    start, step = time.perf_counter(), 0
    for _ in range(args.epochs):
        for batch in torch.randperm(args.scenes)[: steps // args.epochs * args.batch_size].split(args.batch_size):
            # Digits are first seen bare, then fade into their scenes, each at its own pace: from scenes alone the
            # model learns next to nothing for a long time.
            fade = (step / (FADE * steps) + torch.rand(len(batch), 1, 1, 1) * 0.5 - 0.25).clamp(0, 1)
            seen = scenes.images[batch] * fade + scenes.strokes[batch] * (1 - fade)
            with torch.autocast("cpu", torch.bfloat16):
                logits, drawn = read_digits(model, seen, scenes.patches[batch])
            there = scenes.labels[batch] != NONE
            loss = F.cross_entropy(logits[there], scenes.labels[batch][there])
            loss = loss + GLYPH_WEIGHT * F.mse_loss(drawn[there], scenes.glyphs[batch][there])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step % 200 == 0 or step == steps:
                correct, seconds = accuracy(model, val_scenes, args.batch_size), time.perf_counter() - start
                print(f"step {step}/{steps}  loss {loss:.3f}  accuracy {correct:.3f}  {seconds:.0f} s", flush=True)

    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    command = shlex.join(["python", *sys.argv])
    save_file(weights, args.out, {"command": command, "seed": str(args.seed), "accuracy": f"{correct:.4f}"})


if __name__ == "__main__":
    main()
