"""What a model found in an image."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model found in an image, at the image's own size. It draws itself in a notebook.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        classes: Names.
        label_map: A class for each pixel, int64 (H, W), of segmentors and panoptic models, -1 for none; None of others.
        segments: Of a panoptic model, int64 (H, W): pixels of one object, or of one kind of stuff, have one number.
        class_scores: Of a classifier, float32 (number of classes,), 0 to 1.
        boxes: (N, 4) float32 of a detector: left, top, right, bottom in pixels; the surest first.
        scores: (N,) float32, 0 to 1.
        labels: (N,) int64, a class of each box.
        masks: (N, H, W) bool; None without masks.
        palette: RGB of each class.
    """

    image: np.ndarray
    classes: tuple[str, ...]
    label_map: np.ndarray | None = None
    segments: np.ndarray | None = None
    class_scores: np.ndarray | None = None
    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None
    labels: np.ndarray | None = None
    masks: np.ndarray | None = None
    palette: np.ndarray | None = None

    @classmethod
    def of(
        cls, image: np.ndarray, sample: Any, classes: tuple[str, ...], palette: np.ndarray | None = None
    ) -> "Prediction":
        """Read a data sample of mmseg, mmdet or mmpretrain.

        Args:
            image: (H, W, 3) uint8, RGB.
            sample: What ``test_step`` gives for it.
            classes: Names.
            palette: RGB of each class, as of :func:`colours_of`; None to make one.
        """
        colours = colours_of(classes, None) if palette is None else palette
        if "pred_sem_seg" in sample:
            labels = sample.pred_sem_seg.data.squeeze(0).cpu().numpy().astype(np.int64)
            return cls(image, classes, label_map=labels, palette=colours)
        if "pred_panoptic_seg" in sample:
            from mmdet.structures import INSTANCE_OFFSET

            segments = sample.pred_panoptic_seg.sem_seg.squeeze(0).cpu().numpy().astype(np.int64)
            labels = segments % INSTANCE_OFFSET
            labels[labels >= len(classes)] = -1
            return cls(image, classes, label_map=labels, segments=segments, palette=colours)
        if "pred_score" in sample:
            return cls(image, classes, class_scores=sample.pred_score.cpu().numpy(), palette=colours)
        found = sample.pred_instances.cpu()
        order = found.scores.argsort(descending=True, stable=True)
        masks = found.masks[order].numpy().astype(bool) if "masks" in found else None
        return cls(
            image,
            classes,
            boxes=found.bboxes[order].numpy(),
            scores=found.scores[order].numpy(),
            labels=found.labels[order].numpy(),
            masks=masks,
            palette=colours,
        )

    def draw(self, threshold: float = 0.3, opacity: float = 0.5) -> Image.Image:
        """The image with what was found drawn over it.

        Args:
            threshold: Boxes with a lower score are left out.
            opacity: Of label maps and masks, 0 to 1.
        """
        if self.label_map is not None:
            assert self.palette is not None
            colours = self.palette[self.label_map % len(self.palette)]
            share = np.where(self._edges() | (self.label_map < 0), 0.0, opacity)[..., None]
            mixed = (1 - share) * self.image + share * colours
            return Image.fromarray(mixed.round().astype(np.uint8))
        if self.class_scores is not None:
            drawn = Image.fromarray(self.image)
            ImageDraw.Draw(drawn).text((4, 4), self._named_scores(), fill="white", stroke_width=2, stroke_fill="black")
            return drawn
        return self._draw_objects(threshold, opacity)

    def _edges(self) -> np.ndarray:
        """Where one segment of a panoptic model meets another, bool (H, W)."""
        edges = np.zeros(self.image.shape[:2], bool)
        if self.segments is not None:
            edges[1:] |= self.segments[1:] != self.segments[:-1]
            edges[:, 1:] |= self.segments[:, 1:] != self.segments[:, :-1]
        return edges

    def _draw_objects(self, threshold: float, opacity: float) -> Image.Image:
        from mmengine.visualization import Visualizer

        assert self.boxes is not None and self.scores is not None and self.labels is not None
        assert self.palette is not None
        shown = self.scores >= threshold
        drawer = Visualizer(image=self.image)
        colours = [tuple(map(int, self.palette[label % len(self.palette)])) for label in self.labels[shown]]
        if self.masks is not None and shown.any():
            drawer.draw_binary_masks(self.masks[shown], colors=colours, alphas=opacity)
        if shown.any():
            drawer.draw_bboxes(self.boxes[shown], edge_colors=colours, line_widths=2)
            texts = [
                f"{self._name(label)} {score:.2f}".replace("$", r"\$")  # which begins a formula
                for label, score in zip(self.labels[shown], self.scores[shown], strict=True)
            ]
            drawer.draw_texts(
                texts, self.boxes[shown, :2], colors="w", bboxes=[dict(facecolor="black", alpha=0.6)] * len(texts)
            )
        return Image.fromarray(drawer.get_image())

    def save(self, path: str | Path, **how: float) -> None:
        """Write the drawn image; arguments of :meth:`draw`."""
        self.draw(**how).save(path)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.draw().save(buffer, "PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        if self.label_map is not None:
            found = ", ".join(self._name(label) for label in np.unique(self.label_map) if label >= 0)
            return f"Prediction of {width} x {height} pixels: {found}"
        if self.class_scores is not None:
            return f"Prediction of {width} x {height} pixels: {self._named_scores()}"
        assert self.labels is not None and self.scores is not None
        surest = zip(self.labels[:3], self.scores[:3], strict=True)
        best = ", ".join(f"{self._name(label)} {score:.2f}" for label, score in surest)
        return f"Prediction of {width} x {height} pixels: {len(self.labels)} objects{f': {best}' if best else ''}"

    def _named_scores(self) -> str:
        assert self.class_scores is not None
        best = np.argsort(-self.class_scores, kind="stable")[:3]
        return ", ".join(f"{self._name(label)} {self.class_scores[label]:.2f}" for label in best)

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else str(label)


def colours_of(classes: Sequence[str], palette: Any) -> np.ndarray:
    """The colours that classes are drawn in.

    Args:
        classes: Names.
        palette: RGB of each; None for hues a golden ratio apart.

    Returns:
        uint8 (N, 3), of at least one colour.

    Raises:
        ValueError: The palette is none.
    """
    import colorsys

    if palette is None or not len(palette):
        hues = [colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.75, 0.95) for i in range(max(1, len(classes)))]
        return (255 * np.array(hues)).round().astype(np.uint8)
    colours = np.asarray(palette)
    right = colours.ndim == 2 and colours.shape[1] == 3 and colours.dtype.kind in "iu"
    if not right or not 0 <= colours.min() <= colours.max() <= 255:
        raise ValueError(f"the palette is no list of colours, three whole numbers from 0 to 255 each: {palette!r:.80}")
    return colours.astype(np.uint8)
