"""The hook that stops training whose numbers are no numbers any more."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from ...method.wrappers import unwrapped
from ...text import quoted
from .atomic_checkpoint_hook import last_checkpoint


class FiniteLossHook(Hook):
    """Stops training at a loss that is NaN or infinite, and never lets such weights be saved.

    The error names the iteration, the losses, the images of the batch and of the one before, which may have been the
    cause, and the last checkpoint. mmengine brings the losses to the CPU in every iteration, so that looking at them
    costs nothing; weights are looked at when they are saved.
    """

    def __init__(self) -> None:
        self._before: list[str] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Look at the losses.

        Raises:
            RuntimeError: One is not finite.
        """
        images = _images(data_batch)
        losses = {key: _number(value) for key, value in (outputs or {}).items() if "loss" in key}
        if all(map(math.isfinite, losses.values())):
            self._before = images
            return
        told = ", ".join(f"{key} {value:g}" for key, value in losses.items() if not math.isfinite(value))
        raise RuntimeError(
            f"iteration {runner.iter + 1}: {told}; images: {_shown(images)}; those of the iteration before, whose "
            f"gradient may have been the cause: {_shown(self._before)}; {last_checkpoint(runner)}. clip_grad, or "
            "bfloat16 instead of float16, may help; so may a smaller learning rate or a longer warm-up, in a new run"
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Look at the weights that train.

        Raises:
            RuntimeError: One is not finite.
        """
        for name, parameter in unwrapped(runner.model).named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise RuntimeError(
                    f"iteration {checkpoint['meta']['iter']}: '{name}' holds values that are not finite, and is not "
                    f"saved; images of the last iteration: {_shown(self._before)}; {last_checkpoint(runner)}"
                )


def _number(loss: Any) -> float:
    return loss.detach().sum().item() if isinstance(loss, Tensor) else float(loss)


def _images(batch: Any) -> list[str]:
    samples = batch.get("data_samples") if isinstance(batch, dict) else None
    return [str(sample.img_path) for sample in samples or [] if "img_path" in sample]


def _shown(names: Sequence[str]) -> str:
    return quoted(names, 16) or "unknown"
