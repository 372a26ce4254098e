"""The schedule of EoMT's masks, and what it is set on."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from apla_mm.tuning.heads.mask_annealing_hook import MaskAnnealingHook


class Head(nn.Module):
    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.register_buffer("mask_probability", torch.ones(blocks))


def test_masks_go_off_one_block_after_another() -> None:
    hook = MaskAnnealingHook()
    assert hook.probabilities(4, 0.0) == hook.probabilities(4, 1 / 6) == [1.0] * 4
    assert hook.probabilities(4, 0.25) == pytest.approx([0.5**0.9, 1.0, 1.0, 1.0])
    assert hook.probabilities(4, 0.5) == pytest.approx([0.0, 0.0, 1.0, 1.0])
    assert hook.probabilities(4, 5 / 6) == pytest.approx([0.0] * 4, abs=1e-12)
    assert MaskAnnealingHook([0.0, 0.5], [0.4, 1.0], power=1).probabilities(2, 0.2) == [0.5, 1.0]


def test_they_are_set_before_each_iteration_wherever_training_goes_on() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Head())
    runner = SimpleNamespace(model=model, iter=50, max_iters=100)
    hook = MaskAnnealingHook()
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    torch.testing.assert_close(model[1].mask_probability, torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_what_makes_no_sense_is_refused() -> None:
    for starts, ends, message in (
        ([0.1], None, "given together"),
        ([0.1, 0.2], [0.3], "each start before its end"),
        ([0.5], [0.5], "each start before its end"),
        ([0.5], [1.5], "each start before its end"),
    ):
        with pytest.raises(ValueError, match=message):
            MaskAnnealingHook(starts, ends)
    with pytest.raises(ValueError, match="there is none: leave it out"):
        MaskAnnealingHook().before_train(SimpleNamespace(model=nn.Linear(1, 1)))
    with pytest.raises(ValueError, match="the head has 4 blocks, and starts are 1"):
        MaskAnnealingHook([0.1], [0.2]).before_train(SimpleNamespace(model=Head()))
