"""The hook that has heads compute their losses without what nobody needs at full size."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...method.wrappers import unwrapped


class LeanHeadsHook(Hook):
    """Has mmseg's decode heads and mmdet's heads train with less memory.

    One line in the config of any model of mmseg or mmdet::

        custom_hooks = [dict(type='LeanHeadsHook')]

    Losses, gradients, running statistics, checkpoints and inference stay what they are. Of decode heads, main and
    auxiliary ones, the classifier stands before the last upsampling where both commute, and upsampling and loss are
    computed together, strip by strip. Heads that cannot are left alone, and named in the log with the reason. Of
    detectors, and of Mask2Former, label masks are bytes until they are sampled, and attention is fused.

    Args:
        recompute: Of heads and necks, keep what convolutions give and the inputs of transformer layers, and compute
            the rest again in backward.
    """

    priority = "VERY_HIGH"

    def __init__(self, recompute: bool = False) -> None:
        self.recompute = recompute

    def before_train(self, runner: Runner) -> None:
        """Change the heads, in place.

        Raises:
            ValueError: The model has no head of mmseg's or mmdet's.
        """
        from ...models.heads.lean_model import make_model_lean

        lean = make_model_lean(unwrapped(runner.model), self.recompute)
        if not lean.heads and not lean.has_detector:
            raise ValueError(
                "LeanHeadsHook: the model has no decode head of mmseg's and no part of mmdet's; leave the hook out of "
                "custom_hooks"
            )
        texts = []
        if lean.heads:
            alone = {name: reason for name, reason in lean.heads.items() if reason}
            text = f"{len(lean.heads) - len(alone)} of {len(lean.heads)} heads compute their losses from small logits"
            texts = [text, *(f"'{name}' is left alone: {reason}" for name, reason in alone.items())]
        if lean.has_detector:
            texts.append(f"{len(lean.parts)} parts of mmdet's keep less")
        print_log("; ".join(texts), logger="current")
