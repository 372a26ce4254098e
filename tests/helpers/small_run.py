"""A config and a data set small enough to train by the tools within seconds."""

import re
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from apla_mm.loading.checkpoint_reader import read_checkpoint

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/seg/apla_vitb_custom.py"
TRAIN, TEST = ROOT / "tools/train.py", ROOT / "tools/test.py"

VIT = dict(depth=4, embed_dim=32, num_heads=2)
OPTIONS = [
    "classes=dark,bright",
    "crop_size=64",
    "model.backbone.model_name=vit_tiny_patch16_224",
    "model.backbone.pretrained=False",
    "model.backbone.out_indices=0,1,2,3",
    "model.backbone.apla.r=8",
    *(f"model.backbone.model_kwargs.{key}={value}" for key, value in VIT.items()),
    *(f"model.{head}.in_channels=32" for head in ("decode_head", *(f"auxiliary_head.{i}" for i in range(3)))),
    *(f"model.{head}.channels=16" for head in ("decode_head", *(f"auxiliary_head.{i}" for i in range(3)))),
    "train_dataloader.batch_size=2",
    *(f"{split}_dataloader.num_workers=0" for split in ("train", "val", "test")),
    *(f"{split}_dataloader.persistent_workers=False" for split in ("train", "val", "test")),
    "optim_wrapper.optimizer.lr=1e-3",
    "param_scheduler.0.start_factor=0.5",
    "param_scheduler.0.end=1",
    "param_scheduler.1.begin=1",
    "param_scheduler.1.end=8",
    "train_cfg.max_iters=4",
    "train_cfg.val_interval=4",
    "default_hooks.checkpoint.interval=2",
    "default_hooks.logger.interval=1",
    "randomness.seed=0",
]


def write_data_set(root: Path) -> Path:
    """Parts of two photos, with the bright pixels as one class and the first two rows ignored."""
    china, flower = load_sample_images().images
    boxes = [(0, 0, 420, 420), (200, 0, 620, 420), (100, 0, 420, 320), (220, 100, 540, 420)]
    for split, photos in (("training", (china, flower)), ("validation", (china[:, ::-1],))):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i, photo in enumerate(photos):
            for j, box in enumerate(boxes):
                part = Image.fromarray(photo).crop(box).resize((72, 64))
                labels = (np.asarray(part).mean(-1) > 110).astype(np.uint8)
                assert 0.1 < labels.mean() < 0.9
                labels[:2] = 255
                part.save(root / "images" / split / f"{i}_{j}.jpg", quality=95)
                Image.fromarray(labels).save(root / "annotations" / split / f"{i}_{j}.png")
    return root


def saved_iteration(work_dir: Path, output: str) -> int:
    """The iteration after which the only checkpoint was saved, by the log, its name and its content."""
    (path,) = work_dir.glob("*.pth")
    (told,) = re.findall(r"stopped after iteration (\d+): saved (\S+); ", output)
    assert told == (str(read_checkpoint(path)["meta"]["iter"]), str(path)) and path.name == f"iter_{told[0]}.pth"
    assert (work_dir / "last_checkpoint").read_text() == str(path)
    return int(told[0])


def miou(output: str, each: int) -> float:
    """The score in a log, of so many iterations of validation or test."""
    (value,) = re.findall(rf"Iter\((?:val|test)\) \[{each}/{each}\].* mIoU: ([\d.]+)", output)
    return float(value)
