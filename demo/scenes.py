"""Cluttered scenes of handwritten digits, with the class of every pixel.

The digits are scikit-learn's ``load_digits``: 1797 grey 8 x 8 images of real handwriting, shipped with the package.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from sklearn.datasets import load_digits

CLASSES = ("background", *"0123456789")

# The share of all digits that each pool gets.
POOLS = {"pretrain": 0.5, "train": 0.3, "val": 0.2}


@dataclass(frozen=True)
class Digits:
    """Handwritten digits.

    Attributes:
        images: float32 (N, 8, 8) in [0, 1], the strokes bright.
        labels: int64 (N,) in 0..9.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Scene:
    """An image of digits, and what is known of it.

    Attributes:
        image: uint8 (size, size, 3), RGB.
        mask: The classes of its pixels, uint8 (size, size), 0 for background and ``d + 1`` for the strokes of digit
            ``d``.
        members: Which digits of the pool it holds.
        centres: Where they lie, (x, y) in pixels each.
    """

    image: np.ndarray
    mask: np.ndarray
    members: list[int]
    centres: list[tuple[float, float]]


def digit_pools(seed: int = 0) -> dict[str, Digits]:
    """Splits the handwritten digits into disjoint pools, each with all ten classes.

    Args:
        seed: decides which digit goes where.

    Returns:
        One :class:`Digits` for each name in ``POOLS``.
    """
    data = load_digits()
    images, labels = (data.images / 16).astype(np.float32), data.target.astype(np.int64)
    rng = np.random.default_rng(seed)
    members: dict[str, list[np.ndarray]] = {name: [] for name in POOLS}
    for label in range(10):
        indices = rng.permutation(np.flatnonzero(labels == label))
        cuts = np.round(np.cumsum(list(POOLS.values()))[:-1] * len(indices)).astype(int)
        for name, part in zip(POOLS, np.split(indices, cuts), strict=True):
            members[name].append(part)
    return {name: Digits(images[(i := np.concatenate(parts))], labels[i]) for name, parts in members.items()}


def make_scene(rng: np.random.Generator, digits: Digits, size: int = 96, count: int = 4, clutter: int = 5) -> Scene:
    """Draws one scene: digits among distractors of the same strokes and colours, so that only shape tells them apart.

    Args:
        rng: all randomness comes from here.
        digits: the pool that digits and distractors are taken from.
        size: height and width of the scene.
        count: how many digits are placed; fewer where there is no room.
        clutter: how many distractors lie beneath the digits.
    """
    image = _background(rng, size)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(clutter):
        alpha = _scribble(rng, size) if rng.random() < 0.5 else _scrambled_digit(rng, digits, size)
        _paint(rng, image, alpha)
    occupied = np.zeros((size, size), bool)
    members: list[int] = []
    centres: list[tuple[float, float]] = []
    for _ in range(count * 10):
        if len(members) == count:
            break
        index = int(rng.integers(len(digits.labels)))
        scale = rng.uniform(3, 5)
        centre = rng.uniform(3.2 * scale, size - 3.2 * scale, 2)
        alpha = _place(rng, digits.images[index], size, scale, centre)
        stroke = alpha > 0.5
        if occupied[stroke].mean() > 0.1:  # partly hidden is welcome, unreadable is not
            continue
        _paint(rng, image, alpha)
        mask[stroke] = digits.labels[index] + 1
        occupied |= cv2.dilate(stroke.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        members.append(index)
        centres.append((centre[0], centre[1]))
    for _ in range(rng.integers(3)):
        alpha = _scribble(rng, size, thickness=(1, 1))
        _paint(rng, image, alpha)
        mask[alpha > 0.5] = 0
    image += rng.normal(0, 0.03, image.shape)
    return Scene((image.clip(0, 1) * 255).astype(np.uint8), mask, members, centres)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A gradient with coarse and fine texture, float64 (size, size, 3)."""
    image = np.full((size, size, 3), rng.uniform(0.05, 0.35, 3))
    for cells, strength in ((3, 0.15), (size // 8, 0.06), (size // 3, 0.05)):
        noise = rng.uniform(-strength, strength, (cells, cells, 3))
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    return image.clip(0, 1)


def _place(rng: np.random.Generator, glyph: np.ndarray, size: int, scale: float, centre: np.ndarray) -> np.ndarray:
    """Enlarges, turns and slants a glyph (8, 8) about a place in a scene: its opacity, float32 (size, size)."""
    angle, shear = rng.uniform(-0.25, 0.25), rng.uniform(-0.15, 0.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[1, shear], [0, 1]]) * scale
    affine = np.column_stack([linear, centre - linear @ [3.5, 3.5]])
    field = cv2.warpAffine(glyph, affine, (size, size), flags=cv2.INTER_CUBIC)
    return ((field - 0.35) / 0.25).clip(0, 1)


def _scrambled_digit(rng: np.random.Generator, digits: Digits, size: int) -> np.ndarray:
    """A digit whose quarters changed places: strokes like any digit's, yet none."""
    glyph = digits.images[rng.integers(len(digits.labels))]
    quarters = [glyph[r : r + 4, c : c + 4] for r in (0, 4) for c in (0, 4)]
    a, b, c, d = (np.flip(quarters[i], axis=1) for i in rng.permutation(4))
    scale = rng.uniform(3, 5)
    return _place(rng, np.block([[a, b], [c, d]]), size, scale, rng.uniform(0, size, 2))


def _scribble(rng: np.random.Generator, size: int, thickness: tuple[int, int] = (2, 5)) -> np.ndarray:
    """A bent line: its opacity, float32 (size, size)."""
    start, step = rng.uniform(0, size, 2), rng.normal(0, 10, 2)
    points = [start]
    for _ in range(rng.integers(2, 6)):
        step = step + rng.normal(0, 8, 2)
        points.append(points[-1] + step)
    alpha = np.zeros((size, size), np.float32)
    cv2.polylines(alpha, [np.int32(points)], False, 1.0, int(rng.integers(*thickness, endpoint=True)), cv2.LINE_AA)
    return alpha


def _paint(rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray) -> None:
    """Paints on ``image`` in place, like chalk: brighter than the background, each stroke of its own colour."""
    alpha = alpha[..., None] * rng.uniform(0.85, 1)
    colour = max(rng.uniform(0.4, 1, (2, 3)), key=np.sum)
    image *= 1 - alpha
    image += alpha * colour
