"""Labels of logits that are resized to an image's size, without the resized logits; of one view of it or several."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .resized_logits import ResizedLogits, Step, Windows, strips_of, strips_within


@torch.no_grad()
def resized_labels(
    logits: Tensor | ResizedLogits | Windows,
    steps: Sequence[Step] = (),
    *,
    threshold: float | None = None,
    budget: int | None = None,
) -> Tensor:
    """The largest logit's class of each pixel, behind resizing, strip by strip of rows.

    Equal to ``F.interpolate``, slicing, ``flip`` and ``argmax(1)`` one behind the other but for ties, which rounding
    may break differently; computed in float32 at least. Nothing of size ``(B, C, H, W)`` exists at any time. mmseg's
    way from a head's logits to labels is ``[Resize(padded size), Crop(*padding_size), Resize(ori_shape)]``.

    Args:
        logits: (B, C, h, w), any floating dtype; or logits with steps of their own, or a mean over windows.
        steps: What is done to them before, in this order: :class:`Resize`, :class:`Crop`, :class:`Flip`.
        threshold: Of a single channel: a pixel is 1 where its sigmoid is larger, and 0 elsewhere.
        budget: Bytes of a strip; None for what suits the device.

    Returns:
        (B, H, W), int64, H and W as of the last step.

    Raises:
        ValueError: Shapes, dtypes or steps do not fit, or one channel without a threshold, or several with one.
    """
    resized = logits.behind(steps) if isinstance(logits, ResizedLogits) else ResizedLogits(logits, steps)
    batch, channels, height, width = resized.shape
    if (channels == 1) != (threshold is not None):
        raise ValueError(f"threshold={threshold} of {channels} channels: it is for one channel, which needs it")
    labels = torch.empty(batch, height, width, dtype=torch.int64, device=logits.device)
    with torch.autocast(logits.device.type, enabled=False):
        for start, end, strip in strips_of(resized, budget):
            if threshold is not None:
                labels[:, start:end] = strip[:, 0].sigmoid() > threshold
            else:
                labels[:, start:end] = _argmax(strip)
    return labels


@torch.no_grad()
def averaged_labels(views: Sequence[ResizedLogits], *, budget: int | None = None) -> Tensor:
    """The class of each pixel with the largest mean of its softmax over several views, strip by strip of rows.

    Equal to the softmax of all views' resized logits, added in their order, divided and ``argmax(1)`` but for ties.

    Args:
        views: Each gives (B, C, H, W), as many and as large as the others: of test-time augmentation.
        budget: Bytes of a strip; None for what suits the device.

    Returns:
        (B, H, W), int64.

    Raises:
        ValueError: No views, or some that differ in what they give.
    """
    shapes = {view.shape for view in views}
    if len(shapes) != 1:
        raise ValueError(f"views must give one shape, not {sorted(shapes)}")
    first = max(views, key=lambda view: view.widest)
    batch, _, height, width = first.shape
    labels = torch.empty(batch, height, width, dtype=torch.int64, device=first.device)
    with torch.autocast(first.device.type, enabled=False):
        for start, end in strips_within(first, budget):
            index = torch.arange(start, end)
            total: Tensor | None = None
            for view in views:
                share = view.rows(index).softmax(1)
                total = share if total is None else total.add_(share)
            assert total is not None
            labels[:, start:end] = _argmax(total.div_(len(views)))
    return labels


def _argmax(strip: Tensor) -> Tensor:
    """``strip.argmax(1)``, in a fraction of the time that torch needs for it on a CPU."""
    channels = strip.shape[1]
    if strip.device.type != "cpu" or channels > torch.iinfo(torch.int16).max:
        return strip.argmax(1)
    dtype = torch.uint8 if channels <= 255 else torch.int16
    # all bits where it is not the largest, so that the least number left is the first largest one's
    hidden = (strip < strip.amax(1, keepdim=True)).to(dtype).mul_(torch.iinfo(dtype).max)
    number = torch.arange(channels, dtype=dtype)[:, None, None]
    return hidden.bitwise_or_(number).amin(1)
