"""A plain ViT of timm as a backbone for dense prediction, adapted by APLA."""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from ...method import Report, adapt, find_projections
from .pretrained import read_pretrained
from .windows import check_windows, windowed_intermediates


class APLAViT(nn.Module):
    """A timm ViT that gives feature maps and trains by APLA (arXiv 2503.11335).

    Of an image of H x W pixels it gives maps of ceil(H / p) x ceil(W / p), p being the patch size: the image is
    padded at its right and lower edge with zeros (the mean colour after normalisation) up to a multiple of p, and the
    position embedding is resampled to that grid.

    The timm model is the attribute ``vit`` and its state dict is that of
    ``timm.create_model(model_name, num_classes=0, ...)``, before, during and after training. Blocks behind the last
    output, and norms that no output passes, stay frozen and are not run.

    Pretrained weights are loaded by :meth:`init_weights`, which mmengine calls when training starts; a checkpoint may
    be loaded instead. Running the model without either is an error unless ``pretrained=False``.

    Args:
        model_name: A timm ViT, such as ``'vit_base_patch16_384.augreg_in21k_ft_in1k'``: plain, DeiT, DINOv2, DINOv3,
            with register tokens, EVA.
        out_indices: Blocks whose outputs become feature maps; negative ones count from the end.
        pretrained: True for timm's weights of that name, a path to a ``.safetensors`` or ``.pth`` file with timm's or
            the original DINOv2's keys, or False for random weights.
        img_size: Image size, int or (H, W), that the position embedding is stored for; timm's default if None.
        norm: Apply the model's final norm to each map, as is usual with DINOv2.
        window_size: Side, in tokens, of the windows that blocks attend in, as in ViTDet (arXiv 2203.16527), for large
            images; None for attention over the whole image. Blocks keep their weights either way.
        global_blocks: With ``window_size``, the blocks that attend to the whole image.
        apla: Arguments of :func:`apla_mm.adapt`, such as ``dict(r=64, seed=0)``; None trains all weights.
        frozen: Train nothing of the backbone (head-only). Not together with ``apla``.
        model_kwargs: Further arguments of ``timm.create_model``, such as ``dict(drop_path_rate=0.1)``.
        init_cfg: Taken for mmengine's sake, which sets it to None for inference; must be None.

    Attributes:
        report: What :func:`apla_mm.adapt` did; None without ``apla``.
        embed_dims: Channels of each map.
        patch_size: (height, width) of a patch in pixels.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (-1,),
        pretrained: bool | str | Path = True,
        img_size: int | tuple[int, int] | None = None,
        norm: bool = False,
        window_size: int | None = None,
        global_blocks: Sequence[int] = (),
        apla: Mapping[str, Any] | None = None,
        frozen: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        init_cfg: None = None,
    ) -> None:
        super().__init__()
        if init_cfg is not None:
            raise ValueError("APLAViT takes its weights from `pretrained`; leave `init_cfg` out")
        if frozen and apla is not None:
            raise ValueError("frozen=True trains nothing and apla=... trains W_O: give one of them")
        self.model_name = model_name
        self.pretrained = pretrained
        self.norm = norm
        self._model_kwargs = dict(model_kwargs or {}, num_classes=0)
        if img_size is not None:
            self._model_kwargs["img_size"] = img_size if isinstance(img_size, int) else tuple(img_size)
        self.vit: Any = _create_vit(model_name, **self._model_kwargs)
        self.out_indices = _resolve_indices(out_indices, len(self.vit.blocks))
        if window_size is not None:
            check_windows(len(self.vit.blocks), window_size, global_blocks)
        elif global_blocks:
            raise ValueError("global_blocks are told from blocks with windows: give window_size too")
        self.window_size, self.global_blocks = window_size, frozenset(global_blocks)
        self.patch_size: tuple[int, int] = tuple(self.vit.patch_embed.patch_size)
        self.embed_dims: int = self.vit.embed_dim
        self._has_weights = pretrained is False

        self._freeze_unused()
        self.report: Report | None = None
        if frozen:
            self.vit.requires_grad_(False)
        elif apla is not None:
            self.report = adapt(self.vit, **{"blocks": self._used_blocks(), **apla})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: Normalised images, (B, 3, H, W).

        Returns:
            One map (B, embed_dims, ceil(H / p), ceil(W / p)) for each of ``out_indices``.
        """
        if not self._has_weights:
            raise RuntimeError(
                f"APLAViT has no weights yet (pretrained={self.pretrained!r}): call init_weights(), or load a "
                "checkpoint of the whole backbone; pretrained=False asks for random ones"
            )
        height, width = x.shape[-2:]
        pad_h, pad_w = -height % self.patch_size[0], -width % self.patch_size[1]
        if pad_h or pad_w:
            x = F.pad(x, (0, pad_w, 0, pad_h))
        if self.window_size is not None:
            return tuple(
                windowed_intermediates(self.vit, x, self.out_indices, self.norm, self.window_size, self.global_blocks)
            )
        maps = self.vit.forward_intermediates(
            x, indices=self.out_indices, norm=self.norm, stop_early=True, intermediates_only=True
        )
        return tuple(maps)

    def init_weights(self) -> None:
        """Load the pretrained weights in place.

        Raises:
            FileNotFoundError: ``pretrained`` names a file that is missing.
            ValueError: The file cannot be read, or its keys or shapes do not fit the model.
            RuntimeError: timm's weights could not be had.
        """
        if self.pretrained is False:
            return
        if self.pretrained is True:
            source = f"timm's weights of '{self.model_name}'"
            try:
                state = _create_vit(self.model_name, pretrained=True, **self._model_kwargs).state_dict()
            except Exception as error:
                raise RuntimeError(
                    f"{source} could not be had ({type(error).__name__}: {error}); download them where there is a "
                    "network and give pretrained='<path>', or pretrained=False for random weights"
                ) from error
        else:
            source = f"pretrained='{self.pretrained}'"
            state = _to_timm_keys(read_pretrained(self.pretrained), self.vit)
        _check_fit(state, self.vit, source, self.model_name)
        self.vit.load_state_dict(state)
        self._has_weights = True

    def _used_blocks(self) -> list[int]:
        """Positions of those attentions that an output depends on."""
        last = max(self.out_indices)
        names = [projection.name for projection in find_projections(self.vit)]
        return [i for i, name in enumerate(names) if not name.startswith("blocks.") or int(name.split(".")[1]) <= last]

    def _freeze_unused(self) -> None:
        unused: list[nn.Module] = list(self.vit.blocks[max(self.out_indices) + 1 :])
        unused += [self.vit.norm] if not self.norm else []
        unused += [module for name in ("fc_norm", "head") if (module := getattr(self.vit, name, None)) is not None]
        for module in unused:
            module.requires_grad_(False)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        # children load after this, from the same dict: all keys there is all weights there
        self._has_weights |= all(f"{prefix}vit.{key}" in state_dict for key in self.vit.state_dict())


def _create_vit(model_name: str, **kwargs: Any) -> Any:
    if model_name.split(".")[0] not in timm.list_models():
        raise ValueError(f"timm {timm.__version__} has no model '{model_name}'; timm.list_models('*vit*') lists ViTs")
    try:
        vit: Any = timm.create_model(model_name, dynamic_img_size=True, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"'{model_name}' cannot be made for images of any size with {kwargs} ({error}): take a timm ViT"
        ) from error
    if not (hasattr(vit, "blocks") and hasattr(vit, "forward_intermediates")):
        raise ValueError(f"'{model_name}' is a {type(vit).__name__}, not a ViT: APLAViT needs a sequence of blocks")
    vit.reset_classifier(0, "")  # drops an attention pooling head; no feature map passes it
    return vit


def _resolve_indices(out_indices: Sequence[int], depth: int) -> list[int]:
    resolved = [i + depth if i < 0 else i for i in out_indices]
    if not resolved or sorted(set(resolved)) != resolved or not 0 <= resolved[0] <= resolved[-1] < depth:
        raise ValueError(f"out_indices={tuple(out_indices)} must be ascending and distinct blocks out of {depth}")
    return resolved


def _to_timm_keys(state: dict[str, Tensor], vit: nn.Module) -> dict[str, Tensor]:
    """Other spellings of the keys (DINOv2's, CLIP's, ...) to timm's, position embedding resampled to the model's."""
    convert = getattr(sys.modules[type(vit).__module__], "checkpoint_filter_fn", None)
    state = dict(state) if convert is None else convert(state, vit)
    heads = ("head.", "head_dist.", "fc_norm.", "attn_pool.", "mask_token")
    own = vit.state_dict()
    return {key: tensor for key, tensor in state.items() if key in own or not key.startswith(heads)}


def _check_fit(state: Mapping[str, Tensor], vit: nn.Module, source: str, model_name: str) -> None:
    own = vit.state_dict()
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if own[key].shape != state[key].shape
    ]
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(shapes),
    }
    if any(problems.values()):
        told = "; ".join(f"{len(keys)} {what}: {', '.join(keys[:4])}" for what, keys in problems.items() if keys)
        raise ValueError(f"{source} does not fit '{model_name}': {told}")
    broken = [key for key, tensor in state.items() if tensor.is_floating_point() and not math.isfinite(tensor.sum())]
    if broken:
        raise ValueError(f"{source} holds values that are not finite: {', '.join(broken[:4])}")
