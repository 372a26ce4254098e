"""Pretrains the demo's small ViT on another task of the same domain: naming digits and writing them anew.

Each image is four small scenes side by side with one digit each, of the ``pretrain`` pool. From the mean of a
quarter's tokens the model tells the class of its digit, and its 8 x 8 pixels as they were before it was enlarged,
turned and set into the scene. Where the digit lies it is never told.

``demo/vit_digits.safetensors`` was made by::

    python demo/pretrain.py
"""

import argparse
import shlex
import sys
import time
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
GRID = 12  # patches along each side of an image
QUARTER = 48  # pixels along each side of a quarter
MEAN, STD = 127.5, 64.0  # as in the configs' data preprocessor
GLYPH_WEIGHT = 30.0  # both losses then start alike
FADE = 0.2  # the share of training until scenes are as they are


def make_quarters(digits: Digits, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws scenes of one digit each.

    Returns:
        The images, uint8 (count, 3, 48, 48); the digits' strokes, 0 or 255, uint8 (count, 1, 48, 48); their
        classes, int64 (count,); and how they were written, float32 (count, 64).
    """
    rng = np.random.default_rng(seed)
    images = torch.empty(count, 3, QUARTER, QUARTER, dtype=torch.uint8)
    strokes = torch.empty(count, 1, QUARTER, QUARTER, dtype=torch.uint8)
    members = torch.empty(count, dtype=torch.long)
    for i in range(count):
        image, mask, [members[i]] = make_scene(rng, digits, QUARTER, count=1, clutter=rng.integers(3))
        images[i], strokes[i, 0] = torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask > 0) * 255
    glyphs = torch.from_numpy(digits.images).flatten(1)
    return images, strokes, torch.from_numpy(digits.labels)[members], glyphs[members]


def read_digits(model: torch.nn.Module, quarters: Tensor) -> tuple[Tensor, Tensor]:
    """Puts quarters (4 B, 3, 48, 48) together by fours; gives each digit's logits (4 B, 10) and pixels (4 B, 64)."""
    images = quarters.unflatten(0, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    tokens = model.forward_features((images - MEAN) / STD)[:, 1:]
    means = tokens.unflatten(1, (2, GRID // 2, 2, GRID // 2)).mean((2, 4))
    logits, glyphs = model.head(means.flatten(0, 2)).split([10, 64], 1)
    return logits, glyphs


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of quarters whose digit is named correctly."""
    model.eval()
    predictions = torch.cat([read_digits(model, batch)[0].argmax(1) for batch in images.split(256)])
    model.train()
    return (predictions == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("vit_digits.safetensors"))
    parser.add_argument("--scenes", type=int, default=40_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64, help="in quarters")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    digits = digit_pools()["pretrain"]
    held_out = np.arange(len(digits.labels)) % 10 == 0
    train_digits, val_digits = (Digits(digits.images[part], digits.labels[part]) for part in (~held_out, held_out))
    images, strokes, labels, glyphs = make_quarters(train_digits, args.scenes, args.seed)
    val_images, _, val_labels, _ = make_quarters(val_digits, 2048, args.seed + 1)

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
            seen = images[batch] * fade + strokes[batch] * (1 - fade)
            logits, drawn = read_digits(model, seen)
            loss = F.cross_entropy(logits, labels[batch]) + GLYPH_WEIGHT * F.mse_loss(drawn, glyphs[batch])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if step % 200 == 0 or step == steps:
                correct, seconds = accuracy(model, val_images, val_labels), time.perf_counter() - start
                print(f"step {step}/{steps}  loss {loss:.3f}  accuracy {correct:.3f}  {seconds:.0f} s", flush=True)

    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}
    command = shlex.join(["python", *sys.argv])
    save_file(weights, args.out, {"command": command, "seed": str(args.seed), "accuracy": f"{correct:.4f}"})


if __name__ == "__main__":
    main()
