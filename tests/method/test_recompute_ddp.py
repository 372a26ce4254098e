"""Two processes that train one model together, with work done again in backward."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from apla_mm.method import adapt, merge
from apla_mm.method.recompute import MODES

CASES = [(mode, static_graph) for mode in MODES for static_graph in (False, True)]
CHANNELS = {"blocks.0.attn.proj": [1, 7, 30], "blocks.1.attn.proj": [0, 4, 5]}


def make_model() -> nn.Module:
    import timm  # after apla_mm, in processes too, where there is no conftest.py

    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=5, drop_path_rate=0.4,
        proj_drop_rate=0.2, attn_drop_rate=0.2,
    )  # fmt: skip


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


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    results: dict[tuple[str, bool], Any] = {}
    for case in CASES:
        try:
            results[case] = train(rank, *case)
        except Exception as error:
            results[case] = repr(error)
    torch.save(results, folder / f"rank{rank}.pth")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[tuple[str, bool], Any]]:
    """What each of the two processes got in each case."""
    folder = tmp_path_factory.mktemp("ddp")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pth") for rank in range(2)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{' static graph' * case[1]}")
def test_both_processes_get_the_weights_of_none(results, case):
    state, other = (result[case] for result in results)
    assert isinstance(state, dict), state
    expected = results[0]["none", False]
    assert state.keys() == other.keys() == expected.keys()
    for key, tensor in state.items():
        assert torch.equal(tensor, other[key]), key
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}{' static graph' * case[1]}")
def test_frozen_weights_do_not_move(results, case):
    before = make_model().state_dict()
    state = results[0][case]
    assert isinstance(state, dict), state
    changed = {}
    for key, tensor in state.items():
        rows = (tensor != before[key]).reshape(len(tensor), -1).any(1).nonzero().flatten().tolist()
        if rows:
            changed[key] = rows
    trained = {f"{name}.{part}": rows for name, rows in CHANNELS.items() for part in ("weight", "bias")}
    assert changed == {**trained, "head.weight": [*range(5)], "head.bias": [*range(5)]}
