"""Two processes that shard an adapted model by FSDP, against one that trains it alone."""

from functools import partial
from typing import Any

import pytest
import torch
from helpers.comparisons import assert_same, clone
from helpers.nets import tiny_vit
from helpers.processes import in_group
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import (
    FullStateDictConfig,
    FullyShardedDataParallel,
    MixedPrecision,
    StateDictType,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from apla_mm.method import PartialLinear, adapt, merge
from apla_mm.method.memory.recompute import MODES
from apla_mm.method.memory.sharding import keep_whole

pytestmark = pytest.mark.slow

CASES = [(mode, "blocks") for mode in MODES] + [("none", "whole"), ("block", "whole")]
CHANNELS = {"blocks.0.attn.proj": [1, 7, 30], "blocks.1.attn.proj": [0, 4, 5]}
#: what trains beside the channels: a norm shares a unit with what is frozen
TRAINABLE = ["head.*", "blocks.1.norm1.*"]


def make_model(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    model = tiny_vit(init_values=0.5)
    adapt(model, channels=CHANNELS, trainable=TRAINABLE, **options)
    return model


def images(seed: int, rank: int | None = None) -> Tensor:
    """Eight images, or a rank's four of them."""
    every = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return every if rank is None else every[4 * rank : 4 * rank + 4]


def train(model: nn.Module, parameters: list[nn.Parameter], rank: int | None) -> torch.optim.Optimizer:
    """Five steps, each of the gradients of two batches and after a look without gradients."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    for step in range(5):
        optimizer.zero_grad()
        with torch.no_grad():
            model(images(99))
        for batch in range(2):
            (model(images(2 * step + batch, rank)) - 1).square().mean().backward()
        optimizer.step()
    return optimizer


def trained_alone(recompute: str) -> dict[str, Any]:
    model = make_model(recompute=recompute)
    optimizer = train(model, [p for p in model.parameters() if p.requires_grad], None)
    with torch.no_grad():
        output = model(images(99))
    return dict(output=output, state=merge(model).state_dict(), optimizer=optimizer.state_dict())


def shard(model: nn.Module, units: str = "blocks", **options: Any) -> FullyShardedDataParallel:
    policy = ModuleWrapPolicy({type(model.blocks[0])}) if units == "blocks" else None
    sharded = FullyShardedDataParallel(
        model,
        ignored_states=keep_whole(model),
        use_orig_params=True,
        auto_wrap_policy=policy,
        device_id=torch.device("cpu"),
        **options,
    )
    FullyShardedDataParallel.set_state_dict_type(
        sharded, StateDictType.FULL_STATE_DICT, FullStateDictConfig(rank0_only=False)
    )
    return sharded


def state_of(sharded: nn.Module) -> dict[str, Tensor]:
    sharded.state_dict()  # a second one comes from weights gathered anew
    return clone(sharded.state_dict())


def trained_sharded(rank: int, recompute: str, units: str) -> dict[str, Any]:
    model = make_model(recompute=recompute)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(rank * parameter.requires_grad)  # as if other random numbers had been drawn
    sharded = shard(model, units)
    optimizer = train(sharded, [p for p in model.parameters() if p.requires_grad], rank)
    with torch.no_grad():
        output = sharded(images(99))
    result = dict(
        output=output,
        state=state_of(sharded),
        optimizer=optimizer.state_dict(),
        gradients={name for name, p in sharded.named_parameters() if p.grad is not None},
        held=sum(p.numel() for p in sharded.parameters() if not p.requires_grad),
    )
    with torch.no_grad(), FullyShardedDataParallel.summon_full_params(sharded, writeback=False):
        result["output of whole"] = sharded.module(images(99))
        result["state of whole"] = clone(sharded.module.state_dict())
    for name, seed in (("first", 0), ("other", 1)):
        sharded.load_state_dict(make_model(seed).state_dict())
        with torch.no_grad():
            result[f"output of {name}"] = sharded(images(99))
        result[f"state of {name}"] = state_of(sharded)
    return result


def mixed_precision(rank: int) -> dict[str, Any]:
    """The weights after a step in bfloat16 and after further forwards."""
    model = make_model()
    sharded = shard(model, mixed_precision=MixedPrecision(param_dtype=torch.bfloat16, cast_root_forward_inputs=False))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        sharded(images(0, rank)).float().square().mean().backward()
    optimizer.step()
    states = [state_of(sharded)]
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            sharded(images(1))
        states.append(state_of(sharded))
    return dict(states=states)


def refused(rank: int) -> dict[str, str]:
    """What wrong uses are told."""
    errors = {}
    model = make_model()
    sharded = shard(model)
    for name, call in (
        ("sync", lambda: next(m for m in model.modules() if isinstance(m, PartialLinear)).sync()),
        ("FSDP2", lambda: fully_shard(make_model(), mesh=distributed.init_device_mesh("cpu", (2,)))),
    ):
        try:
            call()
        except RuntimeError as error:
            errors[name] = str(error)
    del sharded
    return errors


def work(rank: int) -> dict[Any, Any]:
    trained: dict[Any, Any] = {case: trained_sharded(rank, *case) for case in CASES}
    return {**trained, "mixed precision": mixed_precision(rank), "refused": refused(rank)}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict[Any, Any]]:
    """What each of the two processes got in each case."""
    return in_group(work, tmp_path_factory.mktemp("fsdp"))


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return trained_alone("none")


assert_alike = partial(assert_same, ordered=True)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_both_processes_get_the_weights_of_one_alone(results, alone, case):
    one, other = (result[case] for result in results)
    assert_alike(one["state"], alone["state"], 1e-6)
    assert_alike(other["state"], one["state"])
    torch.testing.assert_close(one["output"], alone["output"], rtol=0, atol=5e-6)
    moved = (alone["state"]["blocks.0.attn.proj.weight"] - make_model().state_dict()["blocks.0.attn.proj.weight"]).abs()
    assert moved.amax(1).nonzero().flatten().tolist() == CHANNELS["blocks.0.attn.proj"]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_frozen_weights_do_not_move(results, case):
    before, state = make_model().state_dict(), results[1][case]["state"]
    changed = {key for key, tensor in state.items() if not torch.equal(tensor, before[key])}
    assert changed == {
        f"{name}.{part}" for name in (*CHANNELS, "head", "blocks.1.norm1") for part in ("weight", "bias")
    }
    for name, channels in CHANNELS.items():
        others = [i for i in range(32) if i not in channels]
        assert torch.equal(state[f"{name}.weight"][others], before[f"{name}.weight"][others])


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_each_process_holds_half_of_what_is_frozen_and_has_gradients_of_what_trains(results, case):
    model = make_model()
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    held = [result[case]["held"] for result in results]
    assert sum(held) == frozen and max(held) <= frozen / 2 + 64  # FSDP pads units
    names = {name.replace("_fsdp_wrapped_module.", "") for name in results[0][case]["gradients"]}
    assert names == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_optimizers_state_is_that_of_one_process(results, alone, case):
    for result in results:
        state, expected = result[case]["optimizer"], alone["optimizer"]
        assert_alike(state, expected, 1e-6)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_gathered_the_model_is_the_trained_one(results, case):
    for result in results:
        torch.testing.assert_close(result[case]["output of whole"], result[case]["output"], rtol=0, atol=1e-6)
        assert_alike(result[case]["state of whole"], result[case]["state"])


@pytest.mark.parametrize("case", CASES, ids=" ".join)
@pytest.mark.parametrize(("name", "seed"), [("first", 0), ("other", 1)])
def test_weights_that_are_loaded_count(results, case, name, seed):
    plain = make_model(seed)
    merge(plain)
    with torch.no_grad():
        output = plain(images(99))
    for result in results:
        torch.testing.assert_close(result[case][f"output of {name}"], output, rtol=0, atol=1e-6)
        assert_alike(result[case][f"state of {name}"], plain.state_dict())


def test_mixed_precision_of_shards_rounds_nothing(results):
    before = make_model().state_dict()
    for result in results:
        first, *others = result["mixed precision"]["states"]
        for state in others:
            assert_alike(state, first)
        rows = first["blocks.0.attn.proj.weight"][CHANNELS["blocks.0.attn.proj"]]
        assert not torch.equal(rows, rows.bfloat16().float())
        assert not torch.equal(rows, before["blocks.0.attn.proj.weight"][CHANNELS["blocks.0.attn.proj"]])
        assert torch.equal(first["blocks.0.attn.qkv.weight"], before["blocks.0.attn.qkv.weight"])


def test_wrong_uses_are_errors(results):
    for result in results:
        assert "holds a shard" in result["refused"]["sync"] and "summon_full_params" in result["refused"]["sync"]
        assert "fully_shard (FSDP2)" in result["refused"]["FSDP2"]


@pytest.mark.parametrize(("trains", "word"), [(True, "everything"), (False, "nothing")])
def test_model_without_both_kinds_is_an_error(trains, word):
    with pytest.raises(ValueError, match=f"{word} trains"):
        keep_whole(nn.Linear(2, 2).requires_grad_(trains))
