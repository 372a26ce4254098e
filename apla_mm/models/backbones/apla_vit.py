"""A plain ViT of timm as a backbone for dense prediction or classification, adapted by APLA."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from ...method import Report, adapt, find_projections
from ...method.channels.late_channels import adapt_before_loading
from ...method.frozen_modules import frozen_modules
from .image_features import VECTORS, check_vectors, image_vectors, norm_of_vectors, width_of_vectors
from .pretrained import Source, read_pretrained
from .query_blocks import check_query_blocks, query_blocks
from .running_parts import blocks_that_run, trainable_that_runs
from .timm_keys import misfit
from .token_grid import NoFinalNormError, blocks_of_vit, token_grid
from .windows import check_windows, check_windows_fit, windowed_intermediates

T = TypeVar("T")


class APLAViT(nn.Module):
    """A timm ViT that gives feature maps, or a vector for each image, and trains by APLA (arXiv 2503.11335).

    Of an image of H x W pixels it gives maps of ceil(H / p) x ceil(W / p), p being the patch size: the image is
    padded at its right and lower edge with zeros (the mean colour after normalisation) up to a multiple of p, and the
    position embedding is resampled to that grid. p is the stride of all that comes before the blocks, as of ViTs with
    convolutions there. That the maps are such is tried when the model is built, and it is an error if they are not:
    with pooling between blocks, say, or several stages.

    Tables of relative positions (BEiT, ``vit_relpos_*``), and CaiT's and ConViT's positions, belong to images of one
    size: that of ``img_size``, which the padded image must have (see :attr:`img_size`). A sliding window of that size
    takes any image.

    The timm model is the attribute ``vit`` and its state dict is that of
    ``timm.create_model(model_name, num_classes=0, ...)``, before, during and after training. Blocks behind the last
    output, and norms that no output passes, stay frozen and are not run.

    Pretrained weights are loaded by :meth:`init_weights`, which mmengine calls when training starts; a checkpoint may
    be loaded instead. Running the model without either is an error unless ``pretrained=False``.

    Args:
        model_name: A timm ViT, such as ``'vit_base_patch16_384.augreg_in21k_ft_in1k'``: plain, DeiT, DINOv2, DINOv3,
            with register tokens, EVA, with convolutions before the blocks (hybrids, ViTamin), SAM, BEiT, NaFlexViT,
            Qwen3's, DeepSeek's, CaiT, XCiT.
        out_indices: Blocks whose outputs become feature maps; negative ones count from the end.
        pretrained: True for timm's weights of that name, False for random weights, or a file: ``.safetensors``, a
            checkpoint of torch with timm's, DINOv2's or CLIP's keys, or ``.npz`` of Google's ViTs. What in it is the
            backbone is found out: dicts around it (``state_dict``, ``teacher``), prefixes (``module.``, ``encoder.``)
            and decoders and heads beside it are taken off. Of weights and their EMA the EMA is taken; where else
            several networks fit, as a student and a teacher, the error lists them, and a dict takes one:
            ``dict(checkpoint='dino.pth', key='teacher', prefix='backbone.')``, both of which may be left out.
        img_size: Image size, int or (H, W), that positions are stored for; timm's default if None.
        output: ``'maps'``, or what a classifier takes, one vector for each image: ``'cls_token'``, ``'mean'`` of the
            patches, or ``'cls_token+mean'``; of several ``out_indices`` one behind the other. The final norm is
            applied, if there is one.
        norm: Apply the model's final norm to each map, as is usual with DINOv2; of SAM the neck.
        window_size: Side, in tokens, of the windows that blocks attend in, as in ViTDet (arXiv 2203.16527), for large
            images; None for attention over the whole image. Blocks keep their weights either way. For timm's
            ``VisionTransformer`` and ``Eva``.
        global_blocks: With ``window_size``, the blocks that attend to the whole image.
        query_blocks: How many of the last blocks are left to a head whose queries join them, such as EoMTHead: in
            place of maps it gets one :class:`~.query_blocks.QueryBlocks`. With it the final norm is used, and
            ``out_indices`` and ``window_size`` must be left out. For timm's ``VisionTransformer`` and ``Eva``.
        apla: Arguments of :func:`apla_mm.adapt`, such as ``dict(r=64, seed=0)``; None trains all weights. Its
            ``blocks`` counts blocks that run, and ``trainable`` means what the outputs depend on. With a
            ``selection``, which may be any of APLAHook's, that hook chooses the channels before training.
        frozen: Train nothing of the backbone (head-only). Not together with ``apla``.
        model_kwargs: Further arguments of ``timm.create_model``, such as ``dict(drop_path_rate=0.1)``.
        init_cfg: Taken for mmengine's sake, which sets it to None for inference; must be None.

    Attributes:
        report: What :func:`apla_mm.adapt` did; None without ``apla``.
        embed_dims: Channels of each map, or of the vectors.
        patch_size: (height, width) in pixels of what becomes one value of a map.
        img_size: The only (height, width) of padded images, for a model that takes one; else None.
    """

    def __init__(
        self,
        model_name: str,
        out_indices: Sequence[int] = (-1,),
        output: str = "maps",
        pretrained: bool | str | Path | Mapping[str, Any] = True,
        img_size: int | tuple[int, int] | None = None,
        norm: bool = False,
        window_size: int | None = None,
        global_blocks: Sequence[int] = (),
        query_blocks: int = 0,
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
        _check_apla(apla or {})
        self.model_name = model_name
        if not isinstance(pretrained, bool):
            Source.of(pretrained)  # refused now, not once the data are read
        self.pretrained = pretrained
        self._model_kwargs = dict(model_kwargs or {}, num_classes=0)
        if img_size is not None:
            self._model_kwargs["img_size"] = img_size if isinstance(img_size, int) else tuple(img_size)
        self.vit: Any = create_vit(model_name, **self._model_kwargs)
        depth = len(blocks_of_vit(self.vit))
        self.out_indices = _resolve_indices(out_indices, depth)
        if query_blocks:
            check_query_blocks(self.vit, query_blocks, depth)
            if self.out_indices != [depth - 1] or window_size is not None:
                raise ValueError(
                    "query_blocks gives no maps, and runs no windows: leave out_indices and window_size out"
                )
            norm = True
        self.query_blocks = query_blocks
        if output not in ("maps", *VECTORS):
            raise ValueError(f"output={output!r} must be one of 'maps', {', '.join(map(repr, VECTORS))}")
        if output != "maps":
            if query_blocks or window_size is not None:
                raise ValueError(f"output='{output}' goes with neither query_blocks nor window_size: leave them out")
            _named(model_name, self.vit, lambda: check_vectors(self.vit, output))
        self.output = output
        if window_size is not None:
            check_windows_fit(self.vit)
            check_windows(depth, window_size, global_blocks)
        elif global_blocks:
            raise ValueError("global_blocks are told from blocks with windows: give window_size too")
        self.window_size, self.global_blocks = window_size, frozenset(global_blocks)
        try:
            norm = norm or output != "maps"
            grid = _named(model_name, self.vit, lambda: token_grid(self.vit, self.out_indices, norm))
        except NoFinalNormError:
            if output == "maps":
                raise
            norm = False  # vectors are what the model would give its classifier: with a norm, if it has one
            grid = token_grid(self.vit, self.out_indices, norm)
        self.norm = norm
        self.patch_size, self.img_size, self.embed_dims = grid.patch_size, grid.img_size, grid.channels
        used = grid.used
        if output != "maps":
            self.embed_dims = width_of_vectors(output, len(self.out_indices), grid.channels)
            last = {id(parameter) for parameter in norm_of_vectors(self.vit, output).parameters()}
            used |= {name for name, parameter in self.vit.named_parameters() if id(parameter) in last}
        self._why_one_size = grid.why
        self._has_weights = pretrained is False
        if getattr(getattr(self.vit, "patch_drop", None), "prob", 0) and output == "maps":
            raise ValueError(
                f"model_kwargs has patch_drop_rate={self.vit.patch_drop.prob}, and where patches are dropped in "
                "training there are no maps: leave it out"
            )

        for name, parameter in self.vit.named_parameters():
            if name not in used:
                parameter.requires_grad_(False)
        self.report: Report | None = None
        self._keeps_frozen = frozen or apla is not None
        if frozen:
            self.vit.requires_grad_(False)
        elif apla is not None:
            chosen = dict(apla)
            found = find_projections(self.vit, apla.get("attentions"))
            chosen["blocks"] = blocks_that_run(found, used, apla.get("blocks", "all"))
            if isinstance(patterns := apla.get("trainable"), list | tuple):
                names = [name for name, _ in self.vit.named_parameters()]
                chosen["trainable"] = trainable_that_runs(patterns, names, used)
            self.report = adapt_before_loading(self.vit, **chosen)

    def train(self, mode: bool = True) -> "APLAViT":
        """As of any module, but that what is frozen by ``apla`` or ``frozen`` runs as in evaluation.

        Statistics of norms stand still there, and nothing is dropped but whole paths, by stochastic depth.
        """
        super().train(mode)
        if self._keeps_frozen:
            for module in frozen_modules(self.vit, drop_path=True):
                module.training = False
        return self

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        """Compute the feature maps or vectors, or, with ``query_blocks``, all before them.

        Args:
            x: Normalised images, (B, 3, H, W).

        Returns:
            One map (B, embed_dims, ceil(H / p), ceil(W / p)) for each of ``out_indices``; or one tensor of vectors
            (B, embed_dims), or one ``QueryBlocks``.

        Raises:
            RuntimeError: There are no weights yet.
            ValueError: The padded images are not of the only size that the model takes.
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
        if self.img_size is not None and tuple(x.shape[-2:]) != self.img_size:
            raise ValueError(
                f"images of {height} x {width}, padded to {x.shape[-2]} x {x.shape[-1]}, are not of the only size that "
                f"'{self.model_name}' takes, {self.img_size[0]} x {self.img_size[1]}: a table of positions belongs to "
                "one size; give img_size=..., or crop, resize or slide to it. It does not run on images "
                f"{self._why_one_size}"
            )
        if self.query_blocks:
            return (query_blocks(self.vit, x, self.query_blocks),)
        if self.output != "maps":
            return (image_vectors(self.vit, x, self.out_indices, self.norm, self.output),)
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
                state = create_vit(self.model_name, pretrained=True, **self._model_kwargs).state_dict()
            except Exception as error:
                raise RuntimeError(
                    f"{source} could not be had ({type(error).__name__}: {error}); download them where there is a "
                    "network and give pretrained='<path>', or pretrained=False for random weights"
                ) from error
        else:
            named = Source.of(self.pretrained)
            source = str(named)
            state = read_pretrained(
                named, self.vit, lambda: create_vit(self.model_name, **self._model_kwargs), self.model_name
            )
        _check_fit(state, self.vit, source, self.model_name)
        self.vit.load_state_dict(state)
        self._has_weights = True

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        # children load after this, from the same dict: all keys there is all weights there
        self._has_weights |= all(f"{prefix}vit.{key}" in state_dict for key in self.vit.state_dict())


def _check_apla(apla: Mapping[str, Any]) -> None:
    _, *known = signature(adapt).parameters
    if unknown := [name for name in apla if name not in known]:
        raise ValueError(
            f"apla has {', '.join(unknown)}, and takes {', '.join(known)}: what APLAHook alone takes, such as "
            "train_norm, is given to it with apla left out, as method=apla:r=64,train_norm=True does"
        )


def _named(model_name: str, vit: nn.Module, look: Callable[[], T]) -> T:
    """What a look at a model gives; its errors name the model."""
    try:
        return look()
    except ValueError as error:
        raise type(error)(f"APLAViT cannot take '{model_name}', a {type(vit).__name__}: {error}") from error


def create_vit(model_name: str, **kwargs: Any) -> Any:
    """Make a ViT of timm without its classifier, for images of any size where it can.

    Args:
        model_name: timm's.
        kwargs: Of its constructor.

    Raises:
        ValueError: timm has no such model, or it takes no such arguments, or its blocks are not known.
    """
    if model_name.split(".")[0] not in timm.list_models():
        raise ValueError(f"timm {timm.__version__} has no model '{model_name}'; timm.list_models('*vit*') lists ViTs")
    try:
        vit = _create_for_any_size(model_name, **kwargs)
    except TypeError as error:
        raise ValueError(f"'{model_name}' cannot be made with {kwargs}: {error}") from error
    try:
        blocks_of_vit(vit)
    except ValueError as error:
        raise ValueError(f"APLAViT cannot take '{model_name}': {error}") from error
    if hasattr(vit, "reset_classifier"):
        with suppress(AssertionError):  # of one that has to pool
            vit.reset_classifier(0, "")  # drops an attention pooling head; no feature map passes it
    return vit


def _create_for_any_size(model_name: str, **kwargs: Any) -> Any:
    try:
        return timm.create_model(model_name, dynamic_img_size=True, **kwargs)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
    return timm.create_model(model_name, **kwargs)  # one that takes any size by itself, or one size


def _resolve_indices(out_indices: Sequence[int], depth: int) -> list[int]:
    resolved = [i + depth if i < 0 else i for i in out_indices]
    if not resolved or sorted(set(resolved)) != resolved or not 0 <= resolved[0] <= resolved[-1] < depth:
        raise ValueError(f"out_indices={tuple(out_indices)} must be ascending and distinct blocks out of {depth}")
    return resolved


def _check_fit(state: Mapping[str, Tensor], vit: nn.Module, source: str, model_name: str) -> None:
    if told := misfit(state, vit.state_dict()):
        raise ValueError(f"{source} does not fit '{model_name}': {told}")
    broken = [key for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{source} holds values that are not finite: {', '.join(broken[:4])}")
