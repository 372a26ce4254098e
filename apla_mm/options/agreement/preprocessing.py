"""Images: how they are normalised, and their sizes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from mmengine.config import Config
from timm.models import get_pretrained_cfg

from .architecture import patch_size
from .problems import Problem, find, kind, pair, parts

_IMAGENET = [123.675, 116.28, 103.53]
_STD = [58.395, 57.12, 57.375]
_STATISTICS = "model.data_preprocessor"
#: what the addresses of published weights have in them -> what images these weights have seen
_PUBLISHED = {
    "pretrain/segmenter/": dict(mean=[127.5] * 3, std=[127.5] * 3),
    "pretrain/swin/": dict(mean=_IMAGENET, std=_STD),
    "SwinTransformer/storage/": dict(mean=_IMAGENET, std=_STD),
    "pretrain/segformer/": dict(mean=_IMAGENET, std=_STD),
}


def normalised_as_pretrained(cfg: Config) -> Iterator[Problem]:
    """A pretrained backbone sees images with the statistics of its pretraining, where they are known."""
    backbone, preprocessor = find(cfg, "model.backbone", {}), find(cfg, _STATISTICS)
    if not isinstance(preprocessor, Mapping):
        return
    mean, std = preprocessor.get("mean"), preprocessor.get("std")
    swaps = "to_rgb" if kind(preprocessor) == "ClsDataPreprocessor" else "bgr_to_rgb"
    if _numbers(mean) and _numbers(std) and 0 < max(mean) <= 1 and max(std) <= 1:
        known = _pretrained_statistics(backbone)
        right = known[1] if known else dict(mean=_scaled(mean), std=_scaled(std))
        cure = {f"{_STATISTICS}.{key}": right[key] for key in ("mean", "std")}
        what = f"mean={_told(mean)}, std={_told(std)} are of images in 0..1, and images are read in 0..255"
        yield Problem(f"{_STATISTICS}.mean", what, cure)
        return
    known = _pretrained_statistics(backbone)
    if known is not None and not any(kind(step) == "Normalize" for _, step in _train_steps(cfg)):
        name, expected = known
        given = dict(mean=list(mean) if _numbers(mean) else None, std=list(std) if _numbers(std) else None)
        wrong = [key for key in ("mean", "std") if not _close(given[key], expected[key])]
        if wrong:
            told = " and ".join(f"{key}={_told(given[key])} where they had {_told(expected[key])}" for key in wrong)
            what = f"the pretrained weights '{name}' saw other images: {told}"
            cure = {f"{_STATISTICS}.{key}": expected[key] for key in ("mean", "std")}
            yield Problem(f"{_STATISTICS}.{wrong[0]}", what, cure, error=False)
        if not preprocessor.get(swaps):
            what = f"images are read as BGR, and the pretrained weights '{name}' saw RGB"
            yield Problem(f"{_STATISTICS}.{swaps}", what, {f"{_STATISTICS}.{swaps}": True}, error=False)
        return
    flipped = bool(preprocessor.get(swaps) or preprocessor.get("rgb_to_bgr"))
    for order, rgb in ((_IMAGENET, True), (_IMAGENET[::-1], False)):
        if _numbers(mean) and _close(list(mean), order) and flipped != rgb:
            told = f"mean={_told(mean)} is in the order of {'RGB' if rgb else 'BGR'}"
            what = f"{flipped}, and {told}, while images are read as BGR"
            yield Problem(f"{_STATISTICS}.{swaps}", what, {f"{_STATISTICS}.{swaps}": rgb}, error=False)


def _pretrained_statistics(backbone: Mapping[str, Any]) -> tuple[str, dict[str, list[float]]] | None:
    """Name, and mean and std in 0..255, of a backbone's pretrained weights; None if that is not known."""
    file = find(backbone, "init_cfg.checkpoint") or find(backbone, "pretrained")
    for name, statistics in _PUBLISHED.items():
        if isinstance(file, str) and name in file:
            return file.rpartition("/")[2], {key: list(values) for key, values in statistics.items()}
    own = {"embed_dim", "depth", "num_heads", "patch_size", "in_chans", "mlp_ratio"}
    if kind(backbone) != "APLAViT" or backbone.get("pretrained", True) is False:
        return None
    if own & set(backbone.get("model_kwargs") or {}):
        return None
    try:
        settings = get_pretrained_cfg(str(backbone.get("model_name")))
    except (RuntimeError, ValueError, KeyError):
        return None
    if settings is None or not (settings.hf_hub_id or settings.url or settings.file):
        return None
    return str(backbone["model_name"]), dict(mean=_scaled(settings.mean), std=_scaled(settings.std))


def _train_steps(cfg: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return parts(find(cfg, "train_dataloader.dataset", {}), "train_dataloader.dataset")


def _numbers(value: Any) -> TypeGuard[Sequence[float]]:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, int | float) for one in value)


def _scaled(values: Any) -> list[float]:
    return [round(255 * value, 3) for value in values]


def _close(given: list[float] | None, expected: list[float]) -> bool:
    if given is None or len(given) not in (1, len(expected)):
        return False
    given = given * len(expected) if len(given) == 1 else given
    return all(abs(one - other) <= 0.5 for one, other in zip(given, expected, strict=True))


def _told(values: Any) -> str:
    return "None" if values is None else f"({', '.join(f'{value:g}' for value in values)})"


def sizes_fit_patches(cfg: Config) -> Iterator[Problem]:
    """Sizes of images are multiples of the patch; else a ViT pads each image, and its maps are a little too wide."""
    patch = patch_size(find(cfg, "model.backbone", {}))
    if patch is None:
        return
    # a test by windows pads them alone; what batches are padded to comes before, and cannot be cut
    sliding = "model.test_cfg.crop_size" if find(cfg, "model.test_cfg.mode") == "slide" else ""
    keys = [f"{_STATISTICS}.size", f"{_STATISTICS}.test_cfg.size", sliding, "model.backbone.img_size"]
    divisors = [f"{_STATISTICS}.{key}" for key in ("size_divisor", "test_cfg.size_divisor", "pad_size_divisor")]
    for key in filter(None, keys):
        size = pair(find(cfg, key))
        if size is not None and any(side % p for side, p in zip(size, patch, strict=True)):
            fits = [-(-side // p) * p for side, p in zip(size, patch, strict=True)]
            cure = {"crop_size": fits[0] if fits[0] == fits[1] else fits, key: tuple(fits)}
            yield Problem(
                key, f"{size} is no multiple of {_patch(patch)}", cure, "which sets it everywhere", error=False
            )
    for key in divisors:
        divisor = find(cfg, key)
        if isinstance(divisor, int) and divisor > 1 and any(divisor % p for p in patch):
            above = -(-divisor // patch[0]) * patch[0]
            mended = patch[0] if divisor <= 2 * patch[0] and "pad_size" not in key else above
            crops = [pair(step.get("crop_size")) for _, step in _train_steps(cfg) if kind(step) == "RandomCrop"]
            if "pad_size" in key and crops and crops[0] and _fits_patches(cfg, crops[0]) and divisor > patch[0] * 2:
                mended = max(crops[0])  # less would double what crops are padded to
            what = f"{divisor} is no multiple of {_patch(patch)}"
            yield Problem(key, what, {key: mended}, error=False)


def _patch(patch: tuple[int, int]) -> str:
    told = f"{patch[0]}" if patch[0] == patch[1] else f"{patch}"
    return f"the backbone's patches of {told}: it pads every image, and its maps do not lie upon it exactly"


def crops_fit_batches(cfg: Config) -> Iterator[Problem]:
    """What images are cropped to is what batches are padded to."""
    size = pair(find(cfg, f"{_STATISTICS}.size"))
    if size is None or cfg.get("default_scope") == "mmdet":
        return
    for key, step in _train_steps(cfg):
        crop = pair(step.get("crop_size")) if kind(step) == "RandomCrop" else None
        if crop is None or crop == size:
            continue
        cure = {f"{_STATISTICS}.size": crop}
        if not _fits_patches(cfg, crop) and _fits_patches(cfg, size):
            cure = {f"{key}.crop_size": size}
        what = f"{size}, and {key}.crop_size is {crop}: "
        if crop[0] > size[0] or crop[1] > size[1]:
            yield Problem(f"{_STATISTICS}.size", what + "images of other sizes would not make a batch", cure)
        else:
            lost = 100 * (1 - crop[0] * crop[1] / (size[0] * size[1]))
            yield Problem(f"{_STATISTICS}.size", what + f"{lost:.0f} % of a batch is padding", cure, error=False)


def _fits_patches(cfg: Config, size: tuple[int, int]) -> bool:
    patch = patch_size(find(cfg, "model.backbone", {}))
    return patch is None or not any(side % p for side, p in zip(size, patch, strict=True))


def padding_is_small(cfg: Config) -> Iterator[Problem]:
    """What images are cropped to is not padded to something much larger."""
    key = f"{_STATISTICS}.pad_size_divisor"
    divisor = find(cfg, key)
    if not isinstance(divisor, int) or divisor < 2:
        return
    for where, step in _train_steps(cfg):
        crop = pair(step.get("crop_size")) if kind(step) == "RandomCrop" else None
        if crop is None or step.get("crop_type", "absolute") != "absolute":
            continue
        padded = -(-crop[0] // divisor) * -(-crop[1] // divisor) * divisor**2
        if padded > 1.5 * crop[0] * crop[1]:
            lost = 100 * (1 - crop[0] * crop[1] / padded)
            what = f"{divisor}, and {where}.crop_size is {crop}: {lost:.0f} % of a batch is padding"
            whole = -(-max(crop) // divisor) * divisor
            cure = {key: max(crop)} if _fits_patches(cfg, crop) else {f"{where}.crop_size": (whole, whole)}
            yield Problem(key, what, cure, "or crops of another size", error=False)


def windows_cover_images(cfg: Config) -> Iterator[Problem]:
    """Windows that slide over images in testing have a size, and leave nothing out."""
    settings = find(cfg, "model.test_cfg")
    if not isinstance(settings, Mapping) or "mode" not in settings or not find(cfg, "model.decode_head"):
        return
    mode, crop, stride = settings["mode"], pair(settings.get("crop_size")), pair(settings.get("stride"))
    key = "model.test_cfg"
    if mode not in ("slide", "whole", "slide_flip"):
        yield Problem(f"{key}.mode", f"{mode!r} is none of 'slide', 'whole'", {f"{key}.mode": "whole"})
    elif mode == "slide" and (crop is None or stride is None):
        side = crop or pair(find(cfg, f"{_STATISTICS}.size")) or (512, 512)
        cure = {f"{key}.crop_size": side, f"{key}.stride": tuple(one * 2 // 3 for one in side)}
        yield Problem(f"{key}.mode", "'slide' needs crop_size and stride", cure)
    elif (
        mode == "slide"
        and crop
        and stride
        and (min(stride) < 1 or any(s > c for s, c in zip(stride, crop, strict=True)))
    ):
        what = f"{stride}, and {key}.crop_size is {crop}: the windows would leave a part of images out"
        yield Problem(f"{key}.stride", what, {f"{key}.stride": tuple(max(1, side * 2 // 3) for side in crop)})


RULES = [normalised_as_pretrained, sizes_fit_patches, windows_cover_images]
TRAINING_RULES = [crops_fit_batches, padding_is_small]
