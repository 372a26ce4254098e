"""Makes the demo's data set in ADE20K's layout: ``{images,annotations}/{training,validation}/*.png``.

Label maps hold 0 for background and ``d + 1`` for the strokes of digit ``d``: background is a class of its own, so
``reduce_zero_label`` stays False.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from scenes import digit_pools, make_scene

# The pool of digits and the scenes of each split: few are labelled, which is what pretrained models are for.
SPLITS = {"training": ("train", 48), "validation": ("val", 120)}


def make_dataset(root: Path, seed: int = 0) -> None:
    """Writes all scenes, the same ones for the same seed.

    Args:
        root: folder of the data set, created where missing.
        seed: of the scenes and of the digits' division into pools.
    """
    pools = digit_pools(seed)
    for split_id, (split, (pool, count)) in enumerate(SPLITS.items()):
        images, annotations = root / "images" / split, root / "annotations" / split
        for folder in (images, annotations):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob("*_[0-9][0-9][0-9][0-9].png"):  # of a time when there were more scenes
                left.unlink()
        for i in range(count):
            # one generator per scene: more scenes leave the others as they are
            scene = make_scene(np.random.default_rng([seed, split_id, i]), pools[pool])
            name = f"{pool}_{i:04d}.png"
            _write(images / name, cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR))
            _write(annotations / name, scene.mask)


def _write(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image):
        raise OSError(f"'{path}' could not be written")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", default=Path("data/digits"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make_dataset(args.root, args.seed)


if __name__ == "__main__":
    main()
