"""What maps a timm model gives, found out by running it without values: stride, sizes, and what they depend on."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TokenGrid:
    """Of the maps of a model whose blocks keep one token for each patch of the image.

    Attributes:
        patch_size: (height, width) in pixels: a map has one value for each.
        img_size: The only (height, width) of images that the model takes; None if it takes all multiples of the patch.
        why: What the model says to other sizes; empty if it takes them.
        channels: Of the maps.
        used: Names of the parameters that the maps depend on.
    """

    patch_size: tuple[int, int]
    img_size: tuple[int, int] | None
    why: str
    channels: int
    used: frozenset[str]


class NoFinalNormError(ValueError):
    """A model has no final norm, and it was asked for."""


def blocks_of_vit(vit: Any) -> Sequence[nn.Module]:
    """The blocks of a timm ViT, or of its encoder.

    Raises:
        ValueError: It has none, or not one map for each.
    """
    blocks = getattr(vit, "blocks", None) or getattr(getattr(vit, "encoder", None), "blocks", None)
    if not (isinstance(blocks, nn.ModuleList | nn.Sequential) and hasattr(vit, "forward_intermediates")):
        raise ValueError(f"it is a {type(vit).__name__}, not a ViT: APLAViT needs a sequence of blocks")
    maps = len(getattr(vit, "feature_info", None) or blocks)
    if maps != len(blocks):
        raise ValueError(f"the maps of a {type(vit).__name__} are those of {maps} stages, not of its blocks")
    return blocks  # type: ignore[return-value]


def token_grid(vit: Any, indices: Sequence[int], norm: bool) -> TokenGrid:
    """Run a model on images of several sizes, on the meta device where it can, and look at its tokens.

    Args:
        vit: A timm model; it stays as it is.
        indices: Blocks whose outputs become maps, ascending.
        norm: Whether the final norm is applied to them.

    Raises:
        NoFinalNormError: It has no final norm.
        ValueError: Its tokens are not one for each patch throughout, or it does not run.
    """
    patch, stored = _stride(vit), _stored_size(vit)
    # Sides that differ, and numbers of tokens that are not those of the stored size: nothing fits by chance. The long
    # side tells a stride from the next one.
    sizes = [size for a, b in ((2, 3), (5, 2), (3, 37)) if (size := (a * patch[0], b * patch[1])) != stored]
    runs: list[_Run] = []
    fixed, why = None, ""
    try:
        runs += [_Run(vit, indices, norm, size) for size in sizes]
    except _DoesNotRun as error:
        if stored is None:
            raise ValueError(f"it does not run on images {error}") from error
        fixed, why = stored, str(error)
        try:
            runs = [_Run(vit, indices, norm, stored)]
        except _DoesNotRun as again:
            raise ValueError(f"it does not run on images {error}, nor {again}") from again
    for run in runs:
        run.check(patch)
    if norm and not isinstance(getattr(vit, "norm", None), nn.Identity):
        plain = _Run(vit, indices, False, runs[0].size)
        if len(list(plain.nodes())) == len(list(runs[0].nodes())):
            raise NoFinalNormError("its maps pass no final norm: leave norm=True out")
    return TokenGrid(patch, fixed, why, runs[0].maps[0].shape[1], runs[0].used())


class _DoesNotRun(Exception):
    pass


class _Run:
    """One run of a model on an image: its maps, with their graph, and the shapes of its blocks' outputs."""

    def __init__(self, vit: Any, indices: Sequence[int], norm: bool, size: tuple[int, int]) -> None:
        self.size = size
        self._prefix = getattr(vit, "num_prefix_tokens", 0)
        try:
            self._model = _without_values(vit)
            self._run(indices, norm)
        except Exception:  # what looks at values does not run on the meta device
            try:
                self._model = copy.deepcopy(vit)
                self._run(indices, norm)
            except Exception as error:
                raise _DoesNotRun(f"of {_x(size)} ({type(error).__name__}: {error})") from error

    def _run(self, indices: Sequence[int], norm: bool) -> None:
        model: Any = self._model.eval().requires_grad_(True)
        self.tokens: list[torch.Size] = []

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            self.tokens.append((output[0] if isinstance(output, tuple | list) else output).shape)

        blocks = blocks_of_vit(model)[: indices[-1] + 1]
        for block in blocks:
            block.register_forward_hook(note)
        weight = next(model.parameters())
        channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
        channels = getattr(model, "in_chans", channels)
        x = torch.zeros(1, channels, *self.size, device=weight.device, dtype=weight.dtype)
        with torch.enable_grad():
            self.maps: list[Tensor] = model.forward_intermediates(
                x, indices=list(indices), norm=norm, stop_early=True, intermediates_only=True
            )
        if len(self.tokens) != len(blocks) or len(self.maps) != len(indices):
            raise ValueError("what it numbers are not its blocks but its stages")

    def check(self, patch: tuple[int, int]) -> None:
        """Raises ValueError if tokens and maps are not one for each patch."""
        grid = (math.ceil(self.size[0] / patch[0]), math.ceil(self.size[1] / patch[1]))
        counts = (grid[0] * grid[1], grid[0] * grid[1] + self._prefix)
        for i, shape in enumerate(self.tokens):
            if not (len(shape) == 3 and shape[1] in counts) and grid not in (shape[1:3], shape[-2:]):
                raise ValueError(
                    f"of an image of {_x(self.size)} its block {i} gives {tuple(shape[1:])}, not one token for each of "
                    f"{_x(grid)} patches of {_x(patch)} pixels: blocks that pool, stages, or an image size that its "
                    "embedding does not divide"
                )
        for one in self.maps:
            if (one.shape[0], *one.shape[2:]) != (1, *grid) or one.shape[1] != self.maps[0].shape[1]:
                raise ValueError(
                    f"of an image of {_x(self.size)} it gives a map of {tuple(one.shape[1:])}, not of {_x(grid)}"
                )

    def used(self) -> frozenset[str]:
        """Names of the parameters that the maps depend on."""
        names = {parameter: name for name, parameter in self._model.named_parameters()}
        leaves = [getattr(node, "variable", None) for node in self.nodes()]
        return frozenset(names[leaf] for leaf in leaves if leaf is not None and leaf in names)

    def nodes(self) -> Iterator[Any]:
        """The nodes of the maps' graph."""
        waiting, seen = [one.grad_fn for one in self.maps], set()
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting += [before for before, _ in node.next_functions]
                yield node


def _without_values(vit: nn.Module) -> nn.Module:
    """A copy on the meta device."""
    tensors = [*vit.parameters(), *vit.buffers()]
    meta = {id(t): nn.Parameter(t.to("meta")) if isinstance(t, nn.Parameter) else t.to("meta") for t in tensors}
    return copy.deepcopy(vit, meta)


def _stride(vit: Any) -> tuple[int, int]:
    """Pixels to a token, as the model says: of its whole embedding, not of that one's last layer."""
    embed = getattr(vit, "patch_embed", None) or getattr(vit, "embeds", None)
    if embed is not None and hasattr(embed, "feat_ratio"):
        return _pair(embed.feat_ratio(as_scalar=False))
    info = list(getattr(vit, "feature_info", None) or [])
    reduction = info[-1]["reduction"] if info else getattr(embed, "patch_size", None)
    if reduction is None:
        raise ValueError("it does not say how many pixels a token has")
    return _pair(reduction)


def _stored_size(vit: Any) -> tuple[int, int] | None:
    inner = vit if hasattr(vit, "patch_embed") else getattr(vit, "encoder", vit)
    size = getattr(getattr(inner, "patch_embed", None), "img_size", None)
    if size is None:
        size = (getattr(vit, "pretrained_cfg", None) or {}).get("input_size", (0, 0, 0))[1:]
    return _pair(size) if all(_pair(size)) else None


def _pair(value: Any) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def _x(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
