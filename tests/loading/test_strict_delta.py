"""Deltas under mmengine's loading: into the right model whole, and into another not at all."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mmengine.runner.checkpoint
import pytest
import timm
import torch
from mmengine.model import BaseModel, BaseTTAModel, MMDistributedDataParallel
from mmengine.runner import CheckpointLoader, load_checkpoint, load_state_dict
from mmengine.runner.checkpoint import _load_checkpoint_with_prefix
from torch import Tensor, distributed, nn

import apla_mm
from apla_mm.delta import DeltaError, extract_delta, save_delta
from apla_mm.delta.base_file import BASE_FILE, save_base
from apla_mm.internals import model_being_loaded
from apla_mm.loading.strict_delta import check_fits, must_fit


class Net(BaseModel):
    """A ViT with a norm that has statistics, and a head."""

    def __init__(self, classes: int = 5, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.backbone = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, embed_dim=width, depth=depth, num_heads=2, num_classes=0
        )
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, classes)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = "tensor") -> Any:
        return self.head(self.norm(self.backbone(inputs)))


class TTA(BaseTTAModel):
    def merge_preds(self, data_samples_list: Any) -> Any:
        raise NotImplementedError


class Segmentor(BaseModel):
    """Has the same parts under other names."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Net()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


@pytest.fixture
def trained() -> nn.Module:
    model = Net()
    apla_mm.adapt(model, r=3, trainable=["norm.*", "head.*"])
    return model


@pytest.fixture
def delta_file(trained: nn.Module, tmp_path: Path) -> str:
    """The delta of the trained model, beside its base."""
    base = {n: t.clone() for n, t in trained.state_dict().items() if not n.startswith(("norm.", "head."))}
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    trained.norm.running_mean += 1
    extra = {BASE_FILE: save_base(base, tmp_path).name}
    save_delta(extract_delta(trained, extra=extra), tmp_path / "task.delta.safetensors")
    return str(tmp_path / "task.delta.safetensors")


@pytest.fixture
def process_group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "bare": lambda model: model,
    "DDP": MMDistributedDataParallel,
    "DataParallel": nn.DataParallel,
    "TTA": lambda model: TTA(model),
}


def clone(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("adapt", [None, dict(r=3), dict(r=7, seed=9)], ids=str)
@pytest.mark.parametrize("wrap", WRAPS)
def test_the_right_model_gets_all_of_it(
    trained: nn.Module, delta_file: str, assert_same: Callable[..., None], wrap: str, adapt: dict | None
) -> None:
    model = Net()
    if adapt:
        apla_mm.adapt(model, **adapt)
    checkpoint = load_checkpoint(WRAPS[wrap](model), delta_file, map_location="cpu")
    assert_same(model.state_dict(), trained.state_dict())
    assert_same(checkpoint["state_dict"], trained.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), trained.eval()(x))


def test_a_model_of_fewer_parts_gets_all_that_it_has(
    trained: nn.Module, delta_file: str, assert_same: Callable[..., None]
) -> None:
    model = Net()
    del model.head
    load_checkpoint(model, delta_file)
    assert_same(model.state_dict(), {n: t for n, t in trained.state_dict().items() if not n.startswith("head.")})


def backbone_alone() -> nn.Module:
    model = Net().backbone
    model.test_step = model.forward  # which BaseTTAModel asks for
    return model


def deeper_head() -> nn.Module:
    model = Net()
    model.head2 = nn.Linear(5, 5)
    return model


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "classes": (lambda: Net(classes=7), r"'head.bias \(\(5,\), not \(7,\)\)', 'head.weight .* are of another shape"),
    "width": (lambda: Net(width=16), r"'backbone.blocks.0.attn.proj.bias \(\(32,\), not \(16,\)\)'.* of another shape"),
    "depth": (lambda: Net(depth=3), r"it lacks 'backbone.blocks.2.attn.proj.bias'"),
    "prefix": (Segmentor, r"it lacks 'model.backbone.blocks.*; the model lacks 'backbone.blocks"),
    "no prefix": (backbone_alone, r"it lacks 'blocks.0.attn.proj.bias'.*; the model lacks 'backbone.blocks"),
    "one part more": (deeper_head, "it lacks 'head2.bias', 'head2.weight'. Use the config that it was trained with"),
}


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("other", OTHERS)
def test_another_model_gets_nothing(
    delta_file: str, assert_same: Callable[..., None], other: str, wrap: str, strict: bool
) -> None:
    make, message = OTHERS[other]
    model = make()
    wrapped = WRAPS[wrap](model)
    before = clone(model)
    with pytest.raises(
        DeltaError, match=f"delta '{delta_file}' is not of this model, and nothing was loaded: "
    ) as error:
        load_checkpoint(wrapped, delta_file, strict=strict)
    error.match(message)
    assert_same(model.state_dict(), before)


@pytest.mark.usefixtures("process_group")
def test_wrappers_in_one_another_get_nothing(delta_file: str, assert_same: Callable[..., None]) -> None:
    """Of which mmengine takes off one, and would find no weight by its name."""
    model = Net()
    before = clone(model)
    with pytest.raises(DeltaError, match="it lacks 'module.backbone"):
        load_checkpoint(MMDistributedDataParallel(TTA(model)), delta_file)
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("classes", [5, 7])
def test_names_may_be_changed_on_the_way(
    trained: nn.Module, delta_file: str, assert_same: Callable[..., None], classes: int
) -> None:
    model = Segmentor()
    model.model.head = nn.Linear(32, classes)
    before = clone(model)
    if classes == 5:
        load_checkpoint(model, delta_file, revise_keys=[("^", "model.")])
        assert_same(model.model.state_dict(), trained.state_dict())
    else:
        with pytest.raises(DeltaError, match="'model.head.bias .*are of another shape"):
            load_checkpoint(model, delta_file, revise_keys=[("^", "model.")])
        assert_same(model.state_dict(), before)


def test_one_part_of_it_by_its_prefix(trained: nn.Module, delta_file: str, assert_same: Callable[..., None]) -> None:
    """As ``init_cfg`` of type Pretrained loads."""
    model = Net(classes=7)
    load_state_dict(model.backbone, _load_checkpoint_with_prefix("backbone.", delta_file), strict=True)
    assert_same(model.backbone.state_dict(), trained.backbone.state_dict())


@pytest.mark.parametrize("classes", [5, 7])
def test_copies_are_as_strict(
    trained: nn.Module, delta_file: str, assert_same: Callable[..., None], classes: int
) -> None:
    """EMAHook loads one."""
    state = copy.deepcopy(CheckpointLoader.load_checkpoint(delta_file)["state_dict"])
    model = Net(classes)
    before = clone(model)
    if classes == 5:
        load_state_dict(model, state)
        assert_same(model.state_dict(), trained.state_dict())
    else:
        with pytest.raises(DeltaError, match=f"delta '{delta_file}' is not of this model"):
            load_state_dict(model, state)
        assert_same(model.state_dict(), before)


def test_what_is_saved_of_it_is_a_plain_checkpoint(
    delta_file: str, tmp_path: Path, assert_same: Callable[..., None]
) -> None:
    checkpoint = CheckpointLoader.load_checkpoint(delta_file)
    torch.save(checkpoint, tmp_path / "c.pth")
    read = torch.load(tmp_path / "c.pth", weights_only=True)
    assert_same(read["state_dict"], checkpoint["state_dict"])
    assert type(read["state_dict"]._metadata) is OrderedDict
    assert read["state_dict"]._metadata == checkpoint["state_dict"]._metadata
    model = Net(classes=7)
    load_checkpoint(model, str(tmp_path / "c.pth"))  # as far as it fits
    assert torch.equal(model.norm.running_mean, read["state_dict"]["norm.running_mean"])


def state_and_plain(delta_file: str) -> tuple[Any, Any]:
    """A delta's state dict, and the same as a module would give it."""
    state = CheckpointLoader.load_checkpoint(delta_file)["state_dict"]
    plain = OrderedDict(state)
    plain._metadata = OrderedDict(state._metadata)  # type: ignore[attr-defined]
    return state, plain


@pytest.mark.parametrize("make", [Net, lambda: Net(depth=3), deeper_head, Segmentor, lambda: Net().backbone])
@pytest.mark.parametrize("strict", [False, True])
def test_torch_loads_it_as_any_other(
    delta_file: str, assert_same: Callable[..., None], make: Callable[[], nn.Module], strict: bool
) -> None:
    model = make()
    other = copy.deepcopy(model)
    results = []
    for one, state in zip((model, other), state_and_plain(delta_file), strict=True):
        try:
            results.append(one.load_state_dict(state, strict=strict))
        except RuntimeError as error:
            results.append(str(error))
    assert results[0] == results[1]
    assert_same(model.state_dict(), other.state_dict())


def test_torch_refuses_other_shapes_as_ever(delta_file: str, assert_same: Callable[..., None]) -> None:
    model = Net(classes=7)
    other = copy.deepcopy(model)
    for one, state in zip((model, other), state_and_plain(delta_file), strict=True):
        with pytest.raises(RuntimeError, match="size mismatch for head.weight"):
            one.load_state_dict(state, strict=False)
    assert_same(model.state_dict(), other.state_dict())


def test_plain_state_dicts_are_loaded_as_far_as_they_fit(trained: nn.Module, delta_file: str) -> None:
    _, plain = state_and_plain(delta_file)
    model = Net(classes=7)
    load_state_dict(model, plain)
    assert torch.equal(model.norm.running_mean, trained.norm.running_mean)
    assert len(model.head.weight) == 7


def test_must_fit_keeps_what_is_there(trained: nn.Module) -> None:
    state = trained.state_dict()
    versions = dict(state._metadata)
    assert must_fit(state, "x") is state and dict(state._metadata) == versions
    assert state._metadata.get("norm") == versions["norm"] and state._metadata.get("none", 3) == 3
    assert state._metadata.get("") == versions[""]  # outside of mmengine


def test_check_fits(trained: nn.Module) -> None:
    state = clone(trained)
    check_fits(trained, {**state, "more": torch.ones(1)}, "x")
    del state["norm.bias"]
    with pytest.raises(
        DeltaError, match="delta 'x' is not of this model, and nothing was loaded: it lacks 'norm.bias'"
    ):
        check_fits(trained, state, "x")


def test_a_mmengine_that_loads_in_another_way_is_refused(trained: nn.Module) -> None:
    state = must_fit(trained.state_dict(), "x")
    made: dict[str, Any] = {}
    code = "def load(metadata, net, weights): return metadata.get('', {})"
    exec(code, vars(mmengine.runner.checkpoint), made)
    with pytest.raises(
        RuntimeError, match="loads state dicts in another way than apla_mm knows: a delta is not loaded"
    ):
        made["load"](state._metadata, trained, state)
    assert model_being_loaded(None) is None
