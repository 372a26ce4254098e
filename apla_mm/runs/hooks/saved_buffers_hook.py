"""The hook that lets all processes validate the model that is saved."""

from mmengine.dist import broadcast, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner


class SavedBuffersHook(Hook):
    """Gives all processes the first one's buffers before a validation.

    Statistics of norms that are not synchronized, BN's, differ from process to process, and checkpoints hold the first
    one's. With these the score is that of the checkpoint, and the same whether the run was resumed or not, which the
    mean of all, as mmengine's SyncBuffersHook takes it, is not.
    """

    priority = "LOWEST"  # after EMAHook has put the EMA in their place

    def before_val_epoch(self, runner: Runner) -> None:
        """Send the buffers."""
        if get_world_size() > 1:
            for buffer in runner.model.buffers():
                broadcast(buffer)
