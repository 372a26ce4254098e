"""Export: write, run, compare, and keep only what agrees with the plain model."""

import copy
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from ..delta.atomic_file import SUFFIX
from ..output_folder import make_output_folder
from .check_images import find_images, flipped_copy, resized_copy, size_of
from .load import class_names, exported_module, load_model
from .modules.ready import fix_positions, make_ready
from .onnx_file import AXES, OPSET, OnnxModel, first_line, write_onnx
from .reference import Comparison, compare, one_of_batch, predict_plain, read_image
from .torch_file import TorchModel, write_program, write_torchscript

FORMATS = dict(onnx=".onnx", torchscript=".pt", torch=".pt2")  #: and how their files end
LEAST_EQUAL = 0.99  #: the share of labels or boxes that must be equal
_SMALL = (
    "images that are smaller than a window once they are resized end in an error of the runtime's, since position "
    "embeddings are stored for whole windows: pad them, or export with the --size of theirs"
)

_NOTHING = (
    "the plain model finds no object in any of the images, so that nothing was compared: give images with objects by "
    "--images, or lower model.test_cfg.rcnn.score_thr"
)


@dataclass
class Exported:
    """A file that was kept.

    Attributes:
        path: The file.
        free: Axes of the images that may be of any size, by name.
        size: (height, width) of the images by which it was made, the only one unless free.
        comparison: With the plain model.
        notes: What could not be had, and why; where the images came from.
    """

    path: Path
    free: list[str]
    size: tuple[int, int]
    comparison: Comparison
    notes: list[str] = field(default_factory=list)


class ExportError(ValueError):
    """A file is not kept, or cannot be made."""


def export_model(
    cfg: Config,
    checkpoint: str | Path,
    out: str | Path,
    kind: str = "onnx",
    images: Sequence[str | Path] = (),
    size: tuple[int, int] | None = None,
    tolerance: float = 1e-4,
    name: str = "",
) -> Exported:
    """Export a config's model with a checkpoint's weights.

    The batch and the images' size are left free where the file then agrees with the plain model at other batches and
    sizes too; where it does not, the size alone is fixed, and then the batch (to one image).

    Args:
        cfg: The config.
        checkpoint: A checkpoint or delta.
        out: The file to write.
        kind: 'onnx', 'torchscript' or 'torch' (a program of torch.export).
        images: Image files to compare by; by default of the test's data set, or generated.
        size: The only (height, width) of images; by default any, or that of the first of ``images``.
        tolerance: The largest difference from the plain model with which the file is kept, see :class:`Comparison`.
        name: Of the config, for the file's metadata.

    Returns:
        The file, and how it compares.

    Raises:
        ExportError: The model cannot be exported, or the file differs by more than the tolerance, or a package is not
            installed.
        FileNotFoundError: The checkpoint or an image is not there.
    """
    out = Path(out)
    if kind not in FORMATS:
        raise ExportError(f"format '{kind}' is none of {', '.join(FORMATS)}")
    if out.suffix != FORMATS[kind]:
        raise ExportError(f"'{out}' must end in {FORMATS[kind]} for format {kind}")
    if kind == "onnx" and (missing := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]):
        raise ExportError(
            f"ONNX files need onnx and onnxruntime; not installed here: {', '.join(missing)}. Both come with "
            "'apla_mm[mm,export]', which the documentation has under Installation"
        )
    if not tolerance >= 0:  # nor is NaN, which no difference is above
        raise ExportError(f"tolerance={tolerance} must be 0 or more")
    if out.is_dir():
        raise ExportError(f"'{out}' is a folder: name a file")
    if problem := make_output_folder(out.parent):
        raise ExportError(f"'{out}' cannot be written: {problem}: name another by --out")
    model, meta = load_model(cfg, checkpoint)
    module = exported_module(cfg, copy.deepcopy(model))
    if kind not in (formats := getattr(module, "formats", tuple(FORMATS))):
        raise ExportError(
            f"{type(model).__name__} needs operators of mmcv's: it can be exported to {', '.join(formats)}"
        )
    classes = class_names(cfg, meta)
    with tempfile.TemporaryDirectory() as folder:
        paths, source = find_images(cfg, images, Path(folder))
        checks = _Checks(cfg, model, paths, size, Path(folder))
        make_ready(module)
        notes = [f"images are {source}"]
        aside = out.with_name(f".{out.name[-50:]}.{secrets.token_hex(8)}{SUFFIX}{out.suffix}")
        try:
            for free in _attempts(module, kind, size):
                metadata = _metadata(module, classes, free, checks.size, name)
                try:
                    if 2 not in free:
                        fix_positions(module, checks.example(1))
                    run = _write(kind, module, checks.example(1 if 0 not in free else 2), aside, free, metadata)
                    comparison = checks.compare(run, free)
                    reason = _reason(comparison, tolerance)
                    if not reason and 2 in free and getattr(module, "windows", False):
                        small = checks.compare_small(run, module.model.test_cfg.crop_size)
                        if small is None:
                            notes.append(_SMALL)
                        else:
                            reason = _reason(small, tolerance)
                except Exception as error:  # what exporters and runtimes raise is of many kinds
                    reason = ": ".join(filter(None, (type(error).__name__, first_line(error))))
                if not reason:
                    if checks.nothing_found:
                        notes.append(_NOTHING)
                    os.replace(aside, out)
                    return Exported(out, [AXES[axis] for axis in free], checks.size, comparison, notes)
                notes.append(f"{_said(free)} was refused: {reason}")
        finally:
            with suppress(OSError):
                aside.unlink()
    raise ExportError(
        f"'{out}' was not kept: {'; '.join(notes[1:])}. Larger differences are taken by --tolerance; an operator that "
        "is missing may be had in another --format"
    )


@contextmanager
def comparing(
    cfg: Config, checkpoint: str | Path, exported: Exported, images: Sequence[str | Path] = ()
) -> Iterator[Callable[[Callable[[np.ndarray], dict[str, np.ndarray]]], Comparison]]:
    """Give what compares results with the plain model's, on the images by which a file was compared.

    Args:
        cfg: The config.
        checkpoint: A checkpoint or delta.
        exported: The file.
        images: As of :func:`export_model`.
    """
    model, _ = load_model(cfg, checkpoint)
    free = [axis for axis, name in AXES.items() if name in exported.free]
    with tempfile.TemporaryDirectory() as folder:
        paths, _ = find_images(cfg, images, Path(folder))
        checks = _Checks(cfg, model, paths, exported.size, Path(folder))
        yield lambda run: checks.compare(run, free)


def _attempts(module: Any, kind: str, size: tuple[int, int] | None) -> list[tuple[int, ...]]:
    batch = () if hasattr(module, "batch") else (0,)
    tries: list[tuple[int, ...]] = [(*batch, 2, 3), batch, ()]
    # torch.export takes minutes where sizes are free
    if size is not None or kind == "torch":
        tries = tries[1:]
    return list(dict.fromkeys(tries))


def _said(free: Sequence[int]) -> str:
    names = {(0, 2, 3): "any batch and size", (2, 3): "any size", (0,): "any batch of one size"}
    return names.get(tuple(free), "one image of one size")


def _reason(comparison: Comparison, tolerance: float) -> str:
    """Why a file is not kept; empty if it is."""
    if comparison.difference > tolerance or comparison.equal < LEAST_EQUAL:
        return f"{comparison} (at most {tolerance:g}, at least {100 * LEAST_EQUAL:g}%)"
    return ""


def _write(
    kind: str, module: Any, images: torch.Tensor, path: Path, free: tuple[int, ...], metadata: dict[str, str]
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    if kind == "onnx":
        write_onnx(module, images, path, module.outputs, free, metadata)
        return OnnxModel(path)
    if kind == "torchscript":
        write_torchscript(module, images, path, metadata)
    else:
        write_program(module, images, path, free, metadata)
    return TorchModel(path, module.outputs, program=kind == "torch")


def _metadata(module: Any, classes: list[str], free: Sequence[int], size: tuple[int, int], name: str) -> dict[str, str]:
    shape = [("batch" if 0 in free else 1), 3, *(("height", "width") if 2 in free else size)]
    return dict(
        config=name,
        classes=json.dumps(classes),
        input=json.dumps(dict(name="images", dtype="uint8", shape=shape, channels="red, green, blue", range=[0, 255])),
        outputs=json.dumps(list(module.outputs)),
        opset=str(OPSET),
        made_by="apla_mm",
    )


class _Checks:
    """Images, alone, in a batch and at other sizes, and what the plain model predicts of them."""

    def __init__(
        self, cfg: Config, model: Any, paths: Sequence[Path], size: tuple[int, int] | None, folder: Path
    ) -> None:
        self.size = size or size_of(paths[0])
        first = [resized_copy(path, self.size, folder / f"same_{i}.png") for i, path in enumerate(paths)]
        mirrored = flipped_copy(first[0], folder / "mirrored.png")
        height, width = self.size
        sizes = ((width, height), (round(1.25 * height), round(1.1 * width)))
        others = [resized_copy(paths[0], other, folder / f"other_{i}.png") for i, other in enumerate(sizes)]
        self._same, self._others = [*first, mirrored], [*paths[1:], *others]
        self._images = {path: read_image(path) for path in (*self._same, *self._others)}
        self._predict = lambda path: predict_plain(cfg, model, path)
        self._expected: dict[Path, dict[str, np.ndarray]] = {}

    def example(self, count: int) -> torch.Tensor:
        """Images to trace by."""
        return torch.from_numpy(np.stack([self._images[self._same[0]], self._images[self._same[-1]]][:count]))

    def compare(self, run: Callable[[np.ndarray], dict[str, np.ndarray]], free: Sequence[int]) -> Comparison:
        """Compare a file's results: one image at a time, and, as far as it is free, batches and other sizes."""
        batches = [[path] for path in self._same]
        if 0 in free:
            batches += [[self._same[0], self._same[-1], self._same[0]]]
        if 2 in free:
            batches += [[path] for path in self._others]
        expected, given = [], []
        for batch in batches:
            results = run(np.stack([self._images[path] for path in batch]))
            for i, path in enumerate(batch):
                if path not in self._expected:
                    self._expected[path] = self._predict(path)
                expected.append(self._expected[path])
                given.append(one_of_batch(results, i))
        return compare(expected, given)

    @property
    def nothing_found(self) -> bool:
        """Whether the plain model is a detector that found no object in any image."""
        return all("boxes" in found and not len(found["labels"]) for found in self._expected.values())

    def compare_small(
        self, run: Callable[[np.ndarray], dict[str, np.ndarray]], crop: tuple[int, int]
    ) -> Comparison | None:
        """Compare an image that is lower than a window; None where the file fails at it."""
        side = max(min(crop) // 2, 1)
        path = resized_copy(self._same[0], (side, 10 * side), self._same[-1].with_name("small.png"))
        try:
            results = run(read_image(path)[None])
        except Exception:  # what runtimes raise is of many kinds
            return None
        return compare([self._predict(path)], [one_of_batch(results, 0)])
