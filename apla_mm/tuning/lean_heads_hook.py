"""The hook that has heads compute their losses without logits of the image's size."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..method.wrappers import unwrapped


class LeanHeadsHook(Hook):
    """Has mmseg's decode heads, main and auxiliary ones, train without logits of the image's size.

    One line in the config of any mmseg model::

        custom_hooks = [dict(type='LeanHeadsHook')]

    Losses, gradients, running statistics, checkpoints and inference stay what they are: the classifier stands before
    the last upsampling where both commute, and upsampling and loss are computed together, strip by strip. Heads that
    cannot are left alone, and named in the log with the reason.

    Args:
        recompute: Of the heads, keep what convolutions give, and compute norms, activations and upsampling again in
            backward.
    """

    priority = "VERY_HIGH"

    def __init__(self, recompute: bool = False) -> None:
        self.recompute = recompute

    def before_train(self, runner: Runner) -> None:
        """Change the heads, in place.

        Raises:
            ValueError: The model has no decode head.
        """
        from ..models.heads.lean_heads import make_heads_lean

        heads = make_heads_lean(unwrapped(runner.model), self.recompute)
        if not heads:
            raise ValueError(
                "LeanHeadsHook: the model has no decode head of mmseg's; leave the hook out of custom_hooks"
            )
        alone = {name: reason for name, reason in heads.items() if reason}
        text = f"{len(heads) - len(alone)} of {len(heads)} heads compute their losses from small logits"
        told = "".join(f"; '{name}' is left alone: {reason}" for name, reason in alone.items())
        print_log(text + told, logger="current")
