"""EoMT: a plain ViT as a segmenter, with queries in its last blocks (arXiv 2503.19108).

Registered as ``EoMTHead`` in mmdet (instances, panoptic) and in mmseg (classes of pixels). Matching, losses and
predictions are those of the library's Mask2Former heads; the backbone is ``APLAViT`` with ``query_blocks``. A config
names this module in ``custom_imports``, since it loads mmdet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.registry import MODELS, TASK_UTILS
from mmengine.model import BaseModule
from mmseg.models.decode_heads.mask2former_head import Mask2FormerHead as SegMask2FormerHead
from mmseg.registry import MODELS as SEG_MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..backbones.query_blocks import QueryBlocks


class UpscaleBlock(nn.Sequential):
    """Doubles the size of a map (B, C, h, w).

    Args:
        channels: Of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
            nn.GELU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False),
            LayerNorm2d(channels),
        )


class _EoMT:
    """What both heads have in common; comes before a Mask2Former head among the bases.

    Each query gives the logits of a class and, by its product with the upscaled map, those of a mask. In training a
    prediction is made before each of the last blocks and behind them. While a block's masks are on, a query attends
    there to the patches of its own mask alone; ``MaskAnnealingHook`` takes
    them off one block after another, so that inference is the plain ViT.

    Attributes:
        mask_probability: float32 (num_blocks,), for which share of the queries each block's masks are on. Where no
            gradient is made nothing is drawn: masks are on from a half on.
    """

    mask_probability: Tensor

    def _make(
        self,
        embed_dims: int,
        num_classes: int,
        num_queries: int,
        num_blocks: int,
        num_upscales: int,
        no_object_weight: float,
        losses: Mapping[str, Mapping[str, Any]],
        train_cfg: Mapping[str, Any] | None,
        test_cfg: Mapping[str, Any] | None,
    ) -> None:
        self.num_classes, self.num_queries = num_classes, num_queries
        self.query = nn.Embedding(num_queries, embed_dims)
        self.cls_embed = nn.Linear(embed_dims, num_classes + 1)
        layers: list[nn.Module] = []
        for _ in range(3):
            layers += [nn.Linear(embed_dims, embed_dims), nn.GELU()]
        self.mask_embed = nn.Sequential(*layers[:-1])
        self.upscale = nn.Sequential(*(UpscaleBlock(embed_dims) for _ in range(num_upscales)))
        self.register_buffer("mask_probability", torch.ones(num_blocks))  # type: ignore[attr-defined]
        self.train_cfg, self.test_cfg = train_cfg, test_cfg
        if train_cfg:
            self.assigner = TASK_UTILS.build(train_cfg["assigner"])
            self.sampler = TASK_UTILS.build(train_cfg["sampler"], default_args=dict(context=self))
            self.num_points = train_cfg.get("num_points", 12544)
            self.oversample_ratio = train_cfg.get("oversample_ratio", 3.0)
            self.importance_sample_ratio = train_cfg.get("importance_sample_ratio", 0.75)
        self.class_weight = [1.0] * num_classes + [no_object_weight]
        self.loss_cls = MODELS.build({**losses["loss_cls"], "class_weight": self.class_weight})
        self.loss_mask, self.loss_dice = (MODELS.build(losses[name]) for name in ("loss_mask", "loss_dice"))

    def init_weights(self) -> None:
        """Nothing: what torch begins with is EoMT's."""

    def forward(self, x: Sequence[QueryBlocks], batch_data_samples: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Run the last blocks with the queries.

        Args:
            x: What ``APLAViT`` with ``query_blocks`` gives.
            batch_data_samples: Not looked at.

        Returns:
            Logits of classes (B, Q, classes + 1) and masks (B, Q, H, W) of each prediction, the final one last.
            Without training, and where no masks are on, that is the only one.

        Raises:
            TypeError: The backbone gives maps.
            ValueError: It leaves another number of blocks.
        """
        blocks = x[0]
        if not isinstance(blocks, QueryBlocks):
            raise TypeError("EoMTHead needs the backbone's last blocks: APLAViT with query_blocks=4")
        probabilities = self.mask_probability.tolist()
        if len(probabilities) != len(blocks.blocks):
            raise ValueError(
                f"EoMTHead has num_blocks={len(probabilities)} and the backbone query_blocks={len(blocks.blocks)}: "
                "they must be the same"
            )
        joined = blocks.join(self.query.weight)
        predictions = []
        for i, probability in enumerate(probabilities):
            seen = None
            if self.training or probability >= 0.5:  # type: ignore[attr-defined]
                predictions.append(self._predict(blocks, joined))
                seen = self._seen(predictions[-1][1], blocks.grid, probability)
            joined = blocks.run(i, joined, seen)
        predictions.append(self._predict(blocks, joined))
        classes, masks = zip(*predictions, strict=True)
        return list(classes), list(masks)

    def _predict(self, blocks: QueryBlocks, joined: Tensor) -> tuple[Tensor, Tensor]:
        queries, tokens = blocks.split(joined)
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(queries), self.upscale(tokens))
        return self.cls_embed(queries), masks

    def _seen(self, masks: Tensor, grid: tuple[int, int], probability: float) -> Tensor | None:
        """Which patches each query attends to, bool (B, Q, h * w); None for all."""
        if probability <= 0:
            return None
        seen = F.interpolate(masks.detach(), size=grid, mode="bilinear").flatten(2) > 0
        if probability < 1 and self.training:  # type: ignore[attr-defined]
            seen = seen | (torch.rand(seen.shape[:2], device=seen.device) > probability)[..., None]
        return seen


@MODELS.register_module()
class EoMTHead(_EoMT, Mask2FormerHead):
    """EoMT for instances and panoptic segmentation, as ``panoptic_head`` of mmdet's ``Mask2Former``.

    Args:
        embed_dims: Channels of the backbone.
        num_things_classes: Classes of things.
        num_stuff_classes: Classes of stuff.
        num_queries: How many objects can be found in an image.
        num_blocks: The backbone's ``query_blocks``.
        num_upscales: How often the map is doubled: 2 for patches of 16 pixels, 1 for 14.
        no_object_weight: Of queries without an object, in the loss of classes.
        loss_cls: Of classes.
        loss_mask: Of masks, at sampled points.
        loss_dice: The same.
        train_cfg: As of mmdet's ``Mask2FormerHead``.
        test_cfg: The same.
        init_cfg: None.
    """

    def __init__(
        self,
        embed_dims: int,
        num_things_classes: int = 80,
        num_stuff_classes: int = 53,
        num_queries: int = 200,
        num_blocks: int = 4,
        num_upscales: int = 2,
        no_object_weight: float = 0.1,
        *,
        loss_cls: Mapping[str, Any],
        loss_mask: Mapping[str, Any],
        loss_dice: Mapping[str, Any],
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        BaseModule.__init__(self, init_cfg)
        self.num_things_classes, self.num_stuff_classes = num_things_classes, num_stuff_classes
        losses = dict(loss_cls=loss_cls, loss_mask=loss_mask, loss_dice=loss_dice)
        count = num_things_classes + num_stuff_classes
        self._make(
            embed_dims, count, num_queries, num_blocks, num_upscales, no_object_weight, losses, train_cfg, test_cfg
        )


@SEG_MODELS.register_module(name="EoMTHead")
class EoMTSegHead(_EoMT, SegMask2FormerHead):
    """EoMT for the classes of pixels, as ``decode_head`` of mmseg's ``EncoderDecoder``.

    Args:
        embed_dims: Channels of the backbone.
        num_classes: How many classes there are.
        num_queries: How many regions can be found in an image.
        num_blocks: The backbone's ``query_blocks``.
        num_upscales: How often the map is doubled: 2 for patches of 16 pixels, 1 for 14.
        align_corners: Taken for mmseg's sake; must be False.
        ignore_index: The label of pixels that do not count.
        no_object_weight: Of queries without a region, in the loss of classes.
        loss_cls: Of classes.
        loss_mask: Of masks, at sampled points.
        loss_dice: The same.
        train_cfg: As of mmseg's ``Mask2FormerHead``.
        test_cfg: The same.
        init_cfg: None.
    """

    def __init__(
        self,
        embed_dims: int,
        num_classes: int,
        num_queries: int = 100,
        num_blocks: int = 4,
        num_upscales: int = 2,
        no_object_weight: float = 0.1,
        *,
        loss_cls: Mapping[str, Any],
        loss_mask: Mapping[str, Any],
        loss_dice: Mapping[str, Any],
        align_corners: bool = False,
        ignore_index: int = 255,
        train_cfg: Mapping[str, Any] | None = None,
        test_cfg: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        if align_corners:
            raise ValueError("EoMT's masks are resized with align_corners=False")
        BaseModule.__init__(self, init_cfg)
        self.align_corners, self.ignore_index, self.out_channels = align_corners, ignore_index, num_classes
        losses = dict(loss_cls=loss_cls, loss_mask=loss_mask, loss_dice=loss_dice)
        self._make(
            embed_dims,
            num_classes,
            num_queries,
            num_blocks,
            num_upscales,
            no_object_weight,
            losses,
            train_cfg,
            test_cfg,
        )

    def predict(self, x: Sequence[QueryBlocks], batch_img_metas: Sequence[dict[str, Any]], test_cfg: Any) -> Tensor:
        """Logits of classes at the images' padded size, or at the window's: (B, classes, H, W)."""
        if isinstance(batch_img_metas[0]["img_shape"], torch.Size):  # a window's, beside the whole image's pad_shape
            batch_img_metas = [{k: v for k, v in meta.items() if k != "pad_shape"} for meta in batch_img_metas]
        logits: Tensor = super().predict(x, batch_img_metas, test_cfg)
        return logits
