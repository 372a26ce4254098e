"""mmseg's segmentors with labels from the heads' small logits: no logits of all classes at the image's size.

What can be had:

- ``test_cfg.mode='whole'``: nothing of size ``(B, C, H, W)``, neither at the padded input's size nor at the original
  one. A batch keeps the head's own logits until its labels are there.
- ``mode='slide'``: mmseg adds up all windows at the input's size. Here each window's small logits are kept, and the
  mean is made strip by strip, where they are smaller than the sum all together; where not, the sum is kept, once, and
  windows are added in place.
- A head with a ``predict`` of its own (Mask2Former, MaskFormer, PointRend, SAN) gives logits at the input's size. They
  stay, and what comes behind them is done by strips; windows are added in place.
- Results have no ``seg_logits``. mmseg's test-time augmentation averages their softmax, of all views of an image at
  once, at the original size: inside of a ``SegTTAModel`` results have each view's small logits, and these are resized
  and averaged strip by strip. A segmentor inside of any other ``BaseTTAModel`` is left alone.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from mmengine.model import BaseTTAModel
from mmengine.structures import PixelData
from mmseg.models.decode_heads import DAHead, EncHead, SETRMLAHead, SETRUPHead
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import CascadeEncoderDecoder, EncoderDecoder, SegTTAModel
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from ...dense import Crop, Flip, Resize, ResizedLogits, Windows, averaged_labels, resized_labels
from ...method.class_change import Changed, change, change_back
from ..heads.lean_heads import LeanHead, setr_mla_small, setr_up_small


class LeftAlone(NamedTuple):
    """What still makes logits of all classes at the image's size.

    Attributes:
        name: Of the module, as in ``named_modules()``; empty for the model itself.
        reason: Why.
    """

    name: str
    reason: str


class LeanInference(Changed):
    """A segmentor that predicts labels alone, strip by strip.

    Attributes:
        usual: Whether it predicts as mmseg's own; if not, only its postprocessing is changed.
        small: Whether its head's small logits can be had; if not, ``encode_decode`` gives them at the input's size.
        averaged: Whether results have ``small_logits`` in place of ``pred_sem_seg``, for test-time augmentation.
    """

    usual: bool
    small: bool
    averaged: bool

    def _before_change_back(self) -> None:
        del self.usual, self.small, self.averaged

    def predict(self: Any, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None) -> Any:
        """As the plain segmentor's, with ``pred_sem_seg`` (1, H, W) in each result and without ``seg_logits``.

        Args:
            inputs: (B, 3, H, W).
            data_samples: One for each image, with metas as mmseg's pipelines make them; None for labels at the input's
                size.

        Returns:
            The samples, or new ones.
        """
        mode = self.test_cfg.get("mode")
        if not self.usual or mode not in ("whole", "slide"):
            return super().predict(inputs, data_samples)  # type: ignore[misc]
        size = inputs.shape[2:]
        if data_samples is None:
            metas = [dict(ori_shape=size, img_shape=size, pad_shape=size, padding_size=[0, 0, 0, 0])] * len(inputs)
        else:
            metas = [sample.metainfo for sample in data_samples]
        logits = _windows(self, inputs, metas) if mode == "slide" else _logits(self, inputs, metas)
        return _with_labels(self, logits, data_samples)

    def postprocess_result(
        self: Any, seg_logits: Tensor, data_samples: Sequence[SegDataSample] | None = None
    ) -> Sequence[SegDataSample]:
        """As the plain segmentor's, of logits (B, C, H, W) at the input's size, and without ``seg_logits``."""
        return _with_labels(self, ResizedLogits(seg_logits), data_samples)


class LeanTTA(Changed):
    """Test-time augmentation with labels from all views' small logits, strip by strip."""

    def _before_change_back(self: Any) -> None:
        change_back(self.module)

    def merge_preds(self: Any, data_samples_list: Sequence[Sequence[SegDataSample]]) -> list[SegDataSample]:
        """As the plain model's, of samples with ``small_logits``, which it takes away."""
        if any("small_logits" not in samples[0] for samples in data_samples_list):  # its segmentor was changed back
            return super().merge_preds(data_samples_list)  # type: ignore[misc]
        merged = []
        for samples in data_samples_list:
            label = averaged_labels([sample.pop("small_logits") for sample in samples])
            sample = samples[-1]  # as mmseg does
            sample.set_data(dict(pred_sem_seg=PixelData(data=label)))
            if "gt_sem_seg" in samples[0]:
                sample.set_data(dict(gt_sem_seg=samples[0].gt_sem_seg))
            sample.set_metainfo(dict(img_path=samples[0].img_path))
            merged.append(sample)
        return merged


def make_inference_lean(model: nn.Module) -> list[LeftAlone]:
    """Have all segmentors of mmseg's in a model predict labels without logits of the image's size, in place.

    ``pred_sem_seg`` stays what it is but for ties, and state dicts and training do; results lose ``seg_logits``.
    :func:`apla_mm.method.class_change.change_back` undoes it.

    Args:
        model: A segmentor, or what holds some.

    Returns:
        What was left alone, in part or wholly, and why: a segmentor, or the head of one that was changed.
    """
    alone: list[LeftAlone] = []
    modules = dict(model.named_modules())
    outer = {name: module for name, module in modules.items() if isinstance(module, BaseTTAModel)}
    for name, segmentor in modules.items():
        if isinstance(segmentor, LeanInference) or not isinstance(segmentor, BaseSegmentor):
            continue
        around = [module for prefix, module in outer.items() if not prefix or name.startswith(f"{prefix}.")]
        if reason := _why_not(segmentor, around):
            alone.append(LeftAlone(name, reason))
            continue
        unusual, large = _why_not_usual(segmentor), _why_not_small(segmentor)
        lean = change(segmentor, LeanInference)
        lean.usual, lean.small = not unusual, not unusual and not large
        lean.averaged = bool(around)
        if around:
            change(around[0], LeanTTA)
        if unusual:
            alone.append(LeftAlone(name, f"{unusual}: logits stay at the input's size"))
        elif large:
            alone.append(LeftAlone(f"{name}.decode_head".lstrip("."), f"{large}: logits stay at the input's size"))
    return alone


def _why_not(segmentor: BaseSegmentor, around: list[BaseTTAModel]) -> str:
    """Why nothing of a segmentor may be changed; empty if something may."""
    kind = type(segmentor).__name__
    if type(segmentor).postprocess_result is not BaseSegmentor.postprocess_result:
        return f"{kind} has a postprocess_result of its own"
    for tta in around:
        if (
            len(around) > 1
            or getattr(type(tta), "merge_preds", None) is not SegTTAModel.merge_preds
            or tta.module is not segmentor
        ):
            return f"{type(tta).__name__} may need its seg_logits"
        if segmentor.out_channels == 1:
            return f"{type(tta).__name__} needs the seg_logits of a single channel"
    return ""


def _why_not_usual(segmentor: Any) -> str:
    """What a segmentor does in another way than mmseg's own; empty if nothing."""
    cls = type(segmentor)
    for method in ("predict", "inference", "whole_inference", "slide_inference"):
        if getattr(cls, method, None) is not getattr(EncoderDecoder, method):
            return f"{cls.__name__} has its own {method}"
    return ""


def _why_not_small(segmentor: Any) -> str:
    """Why logits that are smaller than the input cannot be had; empty if they can."""
    cls = type(segmentor)
    base = CascadeEncoderDecoder if isinstance(segmentor, CascadeEncoderDecoder) else EncoderDecoder
    if getattr(cls, "encode_decode", None) is not base.encode_decode:
        return f"{cls.__name__} has its own encode_decode"
    head = type(_last_head(segmentor))
    if getattr(head, "predict_by_feat", None) is BaseDecodeHead.predict_by_feat and head.predict in _PREDICTS:
        return ""
    return f"{head.__name__} predicts in its own way"


def _last_head(segmentor: Any) -> Any:
    heads = segmentor.decode_head
    return heads[-1] if isinstance(heads, nn.ModuleList) else heads


def _logits(segmentor: Any, inputs: Tensor, metas: list[dict[str, Any]]) -> ResizedLogits:
    """What ``encode_decode`` gives, and not yet resized where that can be."""
    if not segmentor.small:
        return ResizedLogits(segmentor.encode_decode(inputs, metas))
    features = [segmentor.extract_feat(inputs)]
    head = _last_head(segmentor)
    if isinstance(segmentor, CascadeEncoderDecoder):
        out = segmentor.decode_head[0].forward(*features)
        for i in range(1, segmentor.num_stages - 1):
            out = segmentor.decode_head[i].forward(*features, out)
        features.append(out)
    logits, upsampling = _before_upsampling(head)(*features)
    steps: list[Resize] = []
    if upsampling is not None:
        # an empty batch tells the size
        steps.append(Resize(tuple(upsampling(logits[:0]).shape[2:]), bool(upsampling.align_corners)))
    elif isinstance(logits, tuple):
        logits = logits[0]  # the others are for EncHead's and DAHead's losses
    empty = logits.new_zeros(0, 1, *(steps[0].size if steps else logits.shape[2:]))
    steps.append(Resize(tuple(head.predict_by_feat(empty, metas).shape[2:]), head.align_corners))
    return ResizedLogits(logits, steps)


def _before_upsampling(head: Any) -> Callable[..., Any]:
    """Gives logits, and the upsampling that they still need to be the head's, if there is one."""
    if isinstance(head, LeanHead):
        return head._small
    if type(head) in _UPSAMPLED_LAST:
        return partial(_UPSAMPLED_LAST[type(head)], head)
    return lambda *features: (head.forward(*features), None)


def _windows(segmentor: Any, inputs: Tensor, metas: list[dict[str, Any]]) -> ResizedLogits:
    """The mean that ``slide_inference`` gives, of the windows that it has."""
    batch, _, height, width = inputs.shape
    crop_size, stride = segmentor.test_cfg.crop_size, segmentor.test_cfg.stride
    places = _places(height, width, crop_size, stride)
    count = inputs.new_zeros(1, 1, height, width)
    for top, left, bottom, right in places:
        count[:, :, top:bottom, left:right] += 1
    if not count.all():
        raise ValueError(
            f"windows of crop_size={tuple(crop_size)}, stride={tuple(stride)} leave out pixels of an image of "
            f"{(height, width)}: set test_cfg.stride to at most crop_size"
        )
    parts: list[tuple[ResizedLogits, int, int]] = []
    total: Tensor | None = None
    for top, left, bottom, right in places:
        crop = inputs[:, :, top:bottom, left:right]
        metas[0]["img_shape"] = crop.shape[2:]
        part = _logits(segmentor, crop, metas)
        kept = part.logits.shape[2] * part.logits.shape[3] * len(places)
        if not parts and total is None and kept > height * width:
            total = inputs.new_zeros(batch, part.shape[1], height, width)
        if total is None:
            parts.append((part, top, left))
        else:
            part.add_to(total[:, :, top:bottom, left:right])
    if total is None:
        return ResizedLogits(Windows(parts, (height, width)))
    return ResizedLogits(total.div_(count))


def _places(height: int, width: int, crop: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Top, left, bottom and right of each of mmseg's windows, in its order."""
    (height_crop, width_crop), (height_stride, width_stride) = crop, stride
    places = []
    for row in range(max(height - height_crop + height_stride - 1, 0) // height_stride + 1):
        for column in range(max(width - width_crop + width_stride - 1, 0) // width_stride + 1):
            bottom = min(row * height_stride + height_crop, height)
            right = min(column * width_stride + width_crop, width)
            places.append((max(bottom - height_crop, 0), max(right - width_crop, 0), bottom, right))
    return places


def _with_labels(
    segmentor: Any, logits: ResizedLogits, samples: Sequence[SegDataSample] | None
) -> Sequence[SegDataSample]:
    """Put each image's labels, at its original size, into its sample."""
    given = samples is not None
    if samples is None:
        samples = [SegDataSample() for _ in range(logits.shape[0])]
    single = logits.shape[1] == 1
    for i, sample in enumerate(samples):
        image = logits.image(i)
        if given:
            image = image.behind(_steps_to_original(sample.metainfo, segmentor.align_corners))
        if segmentor.averaged:
            sample.set_data(dict(small_logits=image))
            continue
        label = resized_labels(image, threshold=_last_head(segmentor).threshold if single else None)
        # mmseg's labels of a single channel have the logits' dtype
        sample.set_data(dict(pred_sem_seg=PixelData(data=label.to(logits.logits.dtype) if single else label)))
    return samples


def _steps_to_original(meta: dict[str, Any], align_corners: bool) -> list[Crop | Flip | Resize]:
    """What mmseg does to an image's logits at the input's size, in its order."""
    padding = meta["img_padding_size"] if "img_padding_size" in meta else meta.get("padding_size", [0] * 4)
    steps: list[Crop | Flip | Resize] = [Crop(*(int(side) for side in padding))]
    if meta.get("flip"):
        steps.append(Flip(str(meta.get("flip_direction"))))
    height, width = meta["ori_shape"]
    return [*steps, Resize((int(height), int(width)), align_corners)]


#: what gives the small logits to ``predict_by_feat`` as they are
_PREDICTS = (BaseDecodeHead.predict, BaseCascadeDecodeHead.predict, EncHead.predict, DAHead.predict)

#: plain heads whose classifier and last upsampling commute
_UPSAMPLED_LAST: dict[type[nn.Module], Any] = {SETRUPHead: setr_up_small, SETRMLAHead: setr_mla_small}
