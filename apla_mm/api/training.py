"""Training on a folder of data."""

import argparse
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import find_latest_checkpoint

from ..formats import FoundData, find_data
from ..formats.made import Made
from ..loading.base_from_config import delta_path
from ..loading.checkpoint_reader import read_checkpoint
from ..loading.delta_meta import scores_of
from ..methods import read_method
from ..options.command_line import build_runner, load_config
from ..options.known_keys import check_keys, merge_options
from ..options.method import set_method
from ..options.mixed_precision import enable_mixed_precision
from ..options.shared_options import apply_shared_options
from .loading import load
from .predictor import Predictor
from .recipe import recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIGEST = "digest.txt"  # of the data that a run trains on, beside its config


@dataclass(frozen=True)
class Trained:
    """What training left.

    Attributes:
        work_dir: The run's folder, with its logs.
        config: Its config, which ``apla-mm train``, ``test`` and ``compare`` take.
        checkpoint: Of the best validation: a plain checkpoint of the plain model.
        delta: The same as a delta, the little that trained; None where the method writes none.
        scores: Of that validation.
        data: What was found of the data.
    """

    work_dir: Path
    config: Path
    checkpoint: Path
    delta: Path | None
    scores: Mapping[str, float]
    data: FoundData

    def load(self, device: str | None = None) -> Predictor:
        """The trained model, to predict with."""
        return load(self.checkpoint, device=device)

    def plot(self) -> "Figure":
        """The loss of training and the scores of validation, against steps."""
        from .plot import plot_run

        return plot_run(self.work_dir)


def train(
    data: str | Path,
    task: str = "seg",
    *,
    backbone: str | None = None,
    r: int | float | str = 64,
    method: str | Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    pretrained: bool | str | Path = True,
    image_size: int | None = None,
    steps: int = 1000,
    batch_size: int | None = None,
    workers: int = 2,
    amp: bool = False,
    seed: int = 0,
    work_dir: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> Trained:
    """Adapt a ViT to a folder of data.

    The format of the data is found, and what was found is logged before training begins. The config that comes of it is
    written into ``work_dir``, and is trained as ``apla-mm train`` trains it.

    Args:
        data: The folder; see :func:`apla_mm.formats.find_data` for what may lie there.
        task: ``'seg'``, a class for each pixel, or ``'det'``, boxes, and masks where the data have them.
        backbone: timm's name of a ViT; None for the task's own.
        r: Output channels of each attention's projection that train: ``'full'``, a number, or a fraction.
        method: Another way to train than APLA, or APLA with further arguments: ``'full'``, ``'head'``, ``'lora:r=8'``
            and so on, as ``--cfg-options method=...`` takes it. In place of ``r``.
        classes: Their names, where the files have none, or a part of them is wanted.
        pretrained: True for timm's weights, a file of weights, or False for random ones.
        image_size: Side of the images in pixels.
        steps: Of training.
        batch_size: None for the config's own, and at most as many as there are images.
        workers: Processes that read images.
        amp: Mixed precision: bfloat16 where the device has it.
        seed: Of all that is drawn.
        work_dir: A new folder, or one of a run that was cut off with the same arguments, which then goes on; None for
            ``work_dirs/TASK_FOLDER``.
        options: Settings of the config by dotted key, as of ``--cfg-options``.

    Returns:
        Where the checkpoint, its delta and the scores are.

    Raises:
        ValueError: An argument is of the wrong kind, or does not fit the model.
        DataError: The data are not in order, or of no format that is known.
        FileExistsError: ``work_dir`` holds a run with other settings, or of data that have changed since. Nothing of
            it is replaced.
    """
    folder = Path(work_dir or Path("work_dirs") / f"{task}_{Path(data).absolute().name}").absolute()
    chosen = read_method(f"apla:r={r}" if method is None else method)
    cfg = recipe(task, backbone, image_size)
    with _aside(folder) as aside:
        made = Made(folder / "data", aside)
        found = find_data(data, task, made, classes=classes)
        for note in found.notes:
            print_log(f"data: {note}", logger="current")
        _set_data(cfg, found, batch_size, workers)
        apply_shared_options(cfg, dict(classes=list(found.classes), max_iters=steps))
        if task == "det" and "segm" not in found.evaluator()["metric"]:
            apply_shared_options(cfg, dict(with_mask=False))
        cfg.model.backbone.pretrained = str(pretrained) if isinstance(pretrained, Path) else pretrained
        set_method(cfg, chosen)
        if chosen["type"] == "apla":
            cfg.custom_hooks = [*cfg.custom_hooks, dict(type="DeltaHook")]
        if amp:
            enable_mixed_precision(cfg)
        check_keys(cfg, options or (), shared=())
        merge_options(cfg, options or {})
        cfg.randomness, cfg.work_dir = dict(seed=seed), str(folder)
        path = _written(cfg, made, found)
    return _run(path, folder, found)


@contextmanager
def _aside(folder: Path) -> Iterator[str]:
    """A folder in a run's, for files that are not to replace those of a run before it is known to be the same."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=".data_", dir=folder) as aside:
            yield aside
    finally:
        if is_new and not any(folder.iterdir()):
            folder.rmdir()


def _set_data(cfg: Config, found: FoundData, batch_size: int | None, workers: int) -> None:
    for loader, split in (("train_dataloader", "train"), ("val_dataloader", "val"), ("test_dataloader", "val")):
        settings = cfg[loader]
        settings.dataset = dict(**found.dataset(split), pipeline=settings.dataset.pipeline)
        settings.update(num_workers=workers, persistent_workers=workers > 0)
        if split == "val":
            settings.dataset.test_mode = True
    if batch_size is not None:
        cfg.train_dataloader.batch_size = batch_size
    cfg.val_evaluator = cfg.test_evaluator = found.evaluator()


def _written(cfg: Config, made: Made, found: FoundData) -> Path:
    """The config's file, with the data's digest beside it; those of a run that was cut off must say the same."""
    path, text = made.into / "config.py", cfg.pretty_text  # mmengine writes one of the name into the run's folder
    digest = made.digest(found.dataset(split)["ann_file"] for split in ("train", "val"))
    if not path.exists():
        made.write(_DIGEST, digest.encode())
        made.write(path.name, text.encode())
        made.keep()
        return path
    before = made.into / _DIGEST
    if not before.exists() or before.read_text() != digest:
        raise FileExistsError(
            f"'{path.parent.parent}' holds a run, and the data (which images, annotations, splits or class names) have "
            "changed since that run: name another work_dir to train on them, or put the data back to go on"
        )
    if path.read_text() != text:
        raise FileExistsError(
            f"'{path.parent.parent}' holds a run with other settings: name another work_dir, or remove it"
        )
    return path


def _run(path: Path, folder: Path, found: FoundData) -> Trained:
    """What ``apla-mm train`` does with a config."""
    arguments: dict[str, Any] = dict(config=str(path), cfg_options={}, work_dir=None, launcher="none", local_rank=0)
    cfg = load_config(argparse.Namespace(**arguments))
    cfg.visualizer.name = f"apla_mm_{uuid.uuid4().hex}"  # mmengine keeps one of each name in a process, with its folder
    cfg.resume = find_latest_checkpoint(str(folder)) is not None
    runner = build_runner(cfg, ("train_dataloader", "val_dataloader"))
    runner.train()
    best = runner.message_hub.get_info("best_ckpt", None)
    checkpoint = Path(best or find_latest_checkpoint(str(folder)))
    delta = delta_path(checkpoint)
    scores = scores_of(read_checkpoint(str(checkpoint)))
    return Trained(folder, path, checkpoint, delta if delta.exists() else None, scores, found)
