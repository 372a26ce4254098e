"""The hook that has segmentors predict labels without logits of the image's size."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...method.wrappers import unwrapped


class LeanInferenceHook(Hook):
    """Has mmseg's segmentors validate and test without logits of the image's size.

    One line in the config of any mmseg model::

        custom_hooks = [dict(type='LeanInferenceHook')]

    Labels are the plain ones, of whole images, of sliding windows and with test-time augmentation; of equal logits
    the first class is taken. Predictions have no ``seg_logits``: leave the hook out for a metric that reads them.
    Models that cannot are left alone, and named in the log with the reason.
    """

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self._told = False

    def before_val(self, runner: Runner) -> None:
        """Change the segmentor, in place."""
        from ...models.segmentors.lean_inference import make_inference_lean

        alone = make_inference_lean(unwrapped(runner.model))
        if alone and not self._told:
            told = "; ".join(f"'{one.name}' is left alone: {one.reason}" for one in alone)
            print_log(f"labels from small logits: {told}", logger="current")
        self._told = True

    before_test = before_val
