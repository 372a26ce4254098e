"""Two processes that train one model together, with work done again in backward."""

from typing import Any

import pytest
import torch
from helpers.comparisons import assert_same, changed_rows
from helpers.nets import tiny_vit
from helpers.processes import in_group
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from apla_mm.method import adapt, merge
from apla_mm.method.memory.recompute import MODES

CASES = [(mode, static_graph) for mode in MODES for static_graph in (False, True)]
CHANNELS = {"blocks.0.attn.proj": [1, 7, 30], "blocks.1.attn.proj": [0, 4, 5]}


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return tiny_vit(drop_path_rate=0.4, proj_drop_rate=0.2, attn_drop_rate=0.2)


def train(rank: int, recompute: str, static_graph: bool) -> dict[str, Tensor]:
    """The merged model's weights after three steps, in each of which the two processes see other images."""
    model = make_model()
    adapt(model, channels=CHANNELS, trainable=["head.*"], recompute=recompute)
    wrapped = DistributedDataParallel(model.train(), static_graph=static_graph)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for step in range(3):
        torch.manual_seed(100 * rank + step)  # images, dropout and stochastic depth
        optimizer.zero_grad()
        (wrapped(torch.randn(4, 3, 32, 32)) - 1).square().mean().backward()
        optimizer.step()
    return merge(model).state_dict()


def work(rank: int) -> dict[tuple[str, bool], Any]:
    results: dict[tuple[str, bool], Any] = {}
    for case in CASES:
        try:
            results[case] = train(rank, *case)
        except Exception as error:
            results[case] = repr(error)
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[tuple[str, bool], Any]]:
    """What each of the two processes got in each case."""
    return in_group(work, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{' static graph' * case[1]}")
def test_both_processes_get_the_weights_of_none(results, case):
    state, other = (result[case] for result in results)
    assert isinstance(state, dict), state
    assert_same(state, other)
    assert_same(state, results[0]["none", False])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{' static graph' * case[1]}")
def test_frozen_weights_do_not_move(results, case):
    state = results[0][case]
    assert isinstance(state, dict), state
    trained = {f"{name}.{part}": rows for name, rows in CHANNELS.items() for part in ("weight", "bias")}
    changed = changed_rows(make_model().state_dict(), state)
    assert changed == {**trained, "head.weight": [*range(5)], "head.bias": [*range(5)]}
