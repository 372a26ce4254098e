"""Settings of data loaders: workers, samplers, batches of one."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from mmengine.config import Config

from .problems import Problem, find, kind, parts

#: heads that pool a batch to one pixel and normalise it, with the settings of their scales; ASPP has no such setting
_POOLING = {"PSPHead": "pool_scales", "UPerHead": "pool_scales", "APCHead": "pool_scales"}
_POOLING_TO_ONE = {
    *("ASPPHead", "DepthwiseSeparableASPPHead"),
    *("BiSeNetV1", "BiSeNetV2", "ICNet", "FastSCNN"),  # backbones
}


def rules_of(used: Sequence[str]) -> list[Callable[[Config], Iterator[Problem]]]:
    """The rules for these data loaders."""
    training = [partial(batch_norm_of_one_image)] if "train_dataloader" in used else []
    return [*(partial(rule, loader) for loader in used for rule in (workers, sampler)), *training]


def workers(loader: str, cfg: Config) -> Iterator[Problem]:
    """Torch's DataLoader refuses settings of workers where there are none, some of them only when it is iterated."""
    settings = find(cfg, loader, {})
    count = settings.get("num_workers", 0)
    if not isinstance(count, int) or count < 0:
        yield Problem(f"{loader}.num_workers", f"{count!r} is no number of processes", {f"{loader}.num_workers": 0})
        return
    size = settings.get("batch_size", 1)
    if isinstance(size, bool) or not isinstance(size, int | None) or (isinstance(size, int) and size < 1):
        yield Problem(f"{loader}.batch_size", f"{size!r} is no number of images", {f"{loader}.batch_size": 1})
    neutral = dict(persistent_workers=False, prefetch_factor=None, timeout=0, multiprocessing_context=None)
    for key, without in neutral.items():
        if count == 0 and settings.get(key):
            what = f"{settings[key]!r} needs workers, and {loader}.num_workers is 0"
            yield Problem(f"{loader}.{key}", what, {f"{loader}.{key}": without}, f"or {loader}.num_workers=2")
    if count and settings.get("prefetch_factor") == 0:
        yield Problem(f"{loader}.prefetch_factor", "workers fetch at least 1 batch", {f"{loader}.prefetch_factor": 2})


def sampler(loader: str, cfg: Config) -> Iterator[Problem]:
    """A sampler without an end suits training by iterations alone."""
    endless = "Infinite" in kind(find(cfg, f"{loader}.sampler"))
    if not endless or (loader == "train_dataloader" and not by_epoch(cfg)):
        return
    what = "an endless sampler, and each epoch would never end" if "train" in loader else "endless, as the run would be"
    cure = {f"{loader}.sampler.type": "DefaultSampler"}
    yield Problem(f"{loader}.sampler.type", f"{find(cfg, f'{loader}.sampler').get('type')!r} is {what}", cure)


def by_epoch(cfg: Config) -> bool:
    """Whether a config trains by epochs."""
    settings = find(cfg, "train_cfg", {})
    if settings.get("type"):
        return "Epoch" in kind(settings)
    return bool(settings.get("by_epoch", "max_iters" not in settings))


def batch_norm_of_one_image(cfg: Config) -> Iterator[Problem]:
    """Batch norm of one value for each channel has no variance, and torch refuses it in training."""
    # a config that no launcher has seen does not say how many processes will share the statistics of SyncBN
    launcher = cfg.get("launcher")
    processes = int(os.environ.get("WORLD_SIZE", "1")) if launcher not in (None, "none") else 1
    if find(cfg, "train_dataloader.batch_size", 1) != 1:
        return
    for key, part in parts(find(cfg, "model", {}), "model"):
        name = kind(part)
        to_one = name in _POOLING_TO_ONE or (name in _POOLING and 1 in (part.get(_POOLING[name]) or (1, 2, 3, 6)))
        norm = kind(part.get("norm_cfg"))
        alone = norm == "BN" or (norm in ("SyncBN", "MMSyncBN") and processes == 1 and launcher is not None)
        if to_one and alone:
            yield Problem(
                "train_dataloader.batch_size",
                f"1, and {key} ({name}) pools an image to one pixel, whose {norm} needs more than one value",
                {"train_dataloader.batch_size": 2},
                f"or {key}.norm_cfg.type=GN with {key}.norm_cfg.num_groups=32",
            )
