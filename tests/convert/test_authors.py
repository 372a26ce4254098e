"""The APLA authors' checkpoints, against an implementation of their scheme of its own."""

import json
import os
import shutil
import sys
import types
from collections import OrderedDict

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from torch import nn

from apla_mm.convert.authors import check_not_resumed
from apla_mm.delta import load_delta
from apla_mm.delta.weights_file import read_weights
from apla_mm.loading.checkpoint_reader import read_checkpoint

DIM, R = 32, 5


class TwoParts(nn.Module):
    """A projection whose channels are computed in the order of a permutation, and put back by its inverse."""

    def __init__(self, linear: nn.Linear, order: torch.Tensor, r: int) -> None:
        super().__init__()
        self.order = order
        parts = {}
        for name, tensor in linear.named_parameters():
            shuffled = torch.stack([tensor.detach()[i] for i in order.tolist()])
            parts[f"proj_{name}1"], parts[f"proj_{name}2"] = shuffled[:r].clone(), shuffled[r:].clone()
        self.trained = nn.ParameterDict({name: value for name, value in parts.items() if name.endswith("1")})
        self.frozen = {name: value for name, value in parts.items() if name.endswith("2")}

    def parts(self) -> dict[str, torch.Tensor]:
        return {**{name: value.detach() for name, value in self.trained.items()}, **self.frozen}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        trained = F.linear(x, self.trained["proj_weight1"], self.trained["proj_bias1"])
        frozen = F.linear(x, self.frozen["proj_weight2"], self.frozen["proj_bias2"])
        inverse = [self.order.tolist().index(channel) for channel in range(len(self.order))]
        return torch.cat([trained, frozen], -1)[..., inverse]


class EasyDict(dict):
    """A dict whose items are attributes too, pickled under the name of the library's class."""

    def __init__(self, **items: object) -> None:
        super().__init__(items)
        self.__dict__.update(items)


EasyDict.__module__, EasyDict.__qualname__ = "easydict", "EasyDict"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, embed_dim=DIM, depth=2, num_heads=2, num_classes=0
        )
        self.fc = nn.Linear(DIM, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.backbone(x))


def state_of(model: Model, buffer: str = "inds") -> OrderedDict[str, torch.Tensor]:
    state = OrderedDict()
    for name, tensor in model.state_dict().items():
        if ".attn.proj." not in name:
            state[name] = tensor.clone()
    for i, block in enumerate(model.backbone.blocks):
        prefix = f"backbone.blocks.{i}.attn."
        state[f"{prefix}{buffer}"] = block.attn.proj.order.clone()
        state.update({prefix + name: tensor.clone() for name, tensor in block.attn.proj.parts().items()})
    return state


@pytest.fixture(scope="module")
def run():
    """A trained model, its checkpoint, and its weights before under timm's names."""
    torch.manual_seed(0)
    model = Model()
    base = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    for block in model.backbone.blocks:
        block.attn.proj = TwoParts(block.attn.proj, torch.randperm(DIM), R)
    model.backbone.requires_grad_(False)
    for block in model.backbone.blocks:
        block.attn.proj.requires_grad_(True)
    before = state_of(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        loss = F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.randint(3, (4,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), before, state_of(model), base


@pytest.fixture
def write(run, tmp_path):
    """Writes a checkpoint as the authors' trainer does, and the base; gives both paths."""

    def write(state=None, start=None, **more):
        _, before, trained, base = run
        module = types.ModuleType("easydict")
        module.EasyDict = EasyDict
        sys.modules["easydict"] = module  # pickle looks it up
        try:
            checkpoint = dict(
                iters=3,
                epoch=1,
                state_dict=trained if state is None else state,
                original_state=before if start is None else start,
                optimizer=dict(state={}, param_groups=[]),
                parameters=EasyDict(training_params=EasyDict(epochs=1, lr=0.5), name="x"),
                best_val_target=0.5,
            )
            checkpoint.update(more)
            torch.save(checkpoint, tmp_path / "authors.pth")
        finally:
            del sys.modules["easydict"]
        safetensors.torch.save_file(base, tmp_path / "vit.safetensors")
        return tmp_path / "authors.pth", tmp_path / "vit.safetensors"

    return write


def check_plain(run, state, prefix="backbone."):
    """A plain model with these weights computes what the trained one does."""
    model, x = Model(), torch.randn(2, 3, 32, 32)
    renamed = {f"backbone.{k.removeprefix(prefix)}" if k.startswith(prefix) else k: v for k, v in state.items()}
    model.load_state_dict(renamed)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), run[0](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", [[], ["--base"], ["--rename", "backbone.=backbone.vit."]])
def test_it_becomes_plain(run, write, tmp_path, run_tool, given):
    checkpoint, base = write()
    arguments = ["--base", base, "--base-prefix", "backbone."] if given == ["--base"] else given
    output = run_tool("import_apla", checkpoint, tmp_path / "plain.pth", *arguments)
    assert "2 projections put together" in output
    assert ("frozen channels are the base's" in output) == (given == ["--base"])
    state = read_checkpoint(tmp_path / "plain.pth")["state_dict"]
    check_plain(run, state, "backbone.vit." if given[:1] == ["--rename"] else "backbone.")


def test_it_becomes_a_delta(run, write, tmp_path, start_tool, run_tool):
    checkpoint, base = write()
    delta, plain = tmp_path / "delta.safetensors", tmp_path / "plain.safetensors"
    rename = ("--rename", "backbone.=backbone.vit.")
    done = start_tool(
        "import_apla", checkpoint, delta, "--to", "delta", "--base", base, "--base-prefix", "backbone.", *rename
    )
    assert done.returncode == 0, done.stderr
    loaded = load_delta(delta)
    for i, block in enumerate(run[0].backbone.blocks):
        wanted = sorted(block.attn.proj.order[:R].tolist())
        assert loaded.channels[f"backbone.vit.blocks.{i}.attn.proj"].tolist() == wanted
    assert loaded.header.r == R and loaded.tensors.keys() == {"fc.weight", "fc.bias"}
    run_tool("merge_delta", delta, plain)
    run_tool("import_apla", checkpoint, tmp_path / "direct.safetensors", *rename)
    merged, direct = (safetensors.torch.load_file(path) for path in (plain, tmp_path / "direct.safetensors"))
    assert merged.keys() == direct.keys() and all(torch.equal(merged[k], direct[k]) for k in direct)
    check_plain(run, merged, "backbone.vit.")


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {name.replace(".inds", ".indices"): tensor for name, tensor in state.items()},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {**state, "backbone.blocks.0.attn.partial_size": torch.tensor(R)},
        lambda state: {name: t.to(torch.int32) if "inds" in name else t for name, t in state.items()},
    ],
    ids=["DINOv2", "DDP", "partial_size", "int32"],
)
def test_other_ways_of_saving(run, write, tmp_path, run_tool, change):
    checkpoint, _ = write(change(run[2]))
    run_tool("import_apla", checkpoint, tmp_path / "plain.pth")
    check_plain(run, read_checkpoint(tmp_path / "plain.pth")["state_dict"])


A = "backbone.blocks.0.attn."


def without(*names):
    return lambda state: {key: tensor for key, tensor in state.items() if key not in names}


def having(**parts):
    return lambda state: {**state, **{A + key: value(state) for key, value in parts.items()}}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (without(A + "inds"), "'inds' are missing, which say where its channels belong"),
        (without(A + "proj_weight2"), "'proj_weight2' are missing"),
        (without(A + "proj_weight1"), "'proj_weight1' are missing"),
        (without(A + "proj_bias1"), "'proj_bias1' are missing"),
        (having(inds=lambda s: s[A + "inds"][:R]), f"'inds' are {R}, and its weights have {R} + {DIM - R} = {DIM}"),
        (having(inds=lambda s: torch.arange(DIM + 1)), f"'inds' are {DIM + 1}"),
        (having(inds=lambda s: torch.arange(DIM) + 1), f"'inds' [{DIM}] are not in [0, {DIM})"),
        (having(inds=lambda s: torch.arange(DIM) - 1), "'inds' [-1] are not in"),
        (having(inds=lambda s: torch.arange(DIM).clamp(max=30)), "not distinct"),
        (having(inds=lambda s: torch.rand(DIM)), "must be ints of shape"),
        (having(indices=lambda s: torch.arange(DIM)), "has 'inds' and 'indices', and they differ"),
        (having(proj_weight2=lambda s: s[A + "proj_weight2"][1:]), "proj_bias2 must have the shape"),
        (having(proj_weight2=lambda s: s[A + "proj_weight2"][:, 1:]), "must have the shapes (r, in) and (out - r, in)"),
        (having(proj_weight2=lambda s: s[A + "proj_weight2"].double()), "different dtypes"),
        (having(**{"proj.weight": lambda s: torch.ones(DIM, DIM)}), "in two parts and whole"),
        (lambda s: {k: v for k, v in s.items() if "proj_" not in k}, "this checkpoint is plain"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(run, write, tmp_path, run_tool, change, error):
    checkpoint, _ = write(change(run[2]))
    with pytest.raises(SystemExit) as stopped:
        run_tool("import_apla", checkpoint, tmp_path / "plain.pth")
    assert error in str(stopped.value) and "authors.pth" in str(stopped.value)
    assert not (tmp_path / "plain.pth").exists()


@pytest.mark.parametrize("to", [["--to", "delta"], []])
def test_stale_indices_are_seen_by_the_base(run, write, tmp_path, run_tool, to):
    stale = dict(run[2])
    stale[A + "inds"] = stale[A + "inds"].flip(0)
    checkpoint, base = write(stale)
    out = tmp_path / "out.safetensors"
    with pytest.raises(SystemExit, match=r"rows .* differ from the base"):
        run_tool("import_apla", checkpoint, out, *to, "--base", base, "--base-prefix", "backbone.")
    assert not out.exists()


@pytest.mark.parametrize("to", ["plain", "delta"])
@pytest.mark.parametrize(
    ("buffer", "start", "known"),
    [("inds", "same", True), ("inds", None, False), ("inds", {0: 1}, False), ("indices", None, True)],
)
def test_whether_it_was_resumed_may_not_be_known(run, write, tmp_path, run_tool, to, buffer, start, known):
    state = {name.replace(".inds", f".{buffer}"): tensor for name, tensor in run[2].items()}
    checkpoint, base = write(state, **({} if start == "same" else dict(original_state=start)))
    out = tmp_path / "out.safetensors"
    said = run_tool("import_apla", checkpoint, out, "--to", to, "--base", base, "--base-prefix", "backbone.")
    assert ("been resumed is not known" in said) == (not known) and ("in wrong places" in said) == (not known)
    if to == "delta":
        assert load_delta(out).header.iteration == 3


def test_a_base_that_has_none_of_the_projections_tells_nothing(run, write):
    weights = read_weights(write()[0])
    assert check_not_resumed(weights, run[3], "backbone.") and not check_not_resumed(weights, {}, "backbone.")


def test_new_names_must_be_distinct(run, write, tmp_path, run_tool):
    checkpoint, _ = write({**run[2], "norm.weight": torch.ones(3)})
    with pytest.raises(SystemExit, match=r"--rename backbone.=: several tensors would be called 'norm.weight'$"):
        run_tool("import_apla", checkpoint, tmp_path / "plain.pth", "--rename", "backbone.=")
    with pytest.raises(SystemExit, match="--rename x.=y.: no name begins so; they look like 'backbone."):
        run_tool("import_apla", checkpoint, tmp_path / "plain.pth", "--rename", "x.=y.")
    assert not (tmp_path / "plain.pth").exists()


def test_nan_is_refused_before_the_base_file_is_written(run, write, tmp_path, run_tool):
    checkpoint, base = write({**run[2], "fc.bias": torch.full((3,), torch.nan)})
    out = tmp_path / "deltas/d.safetensors"
    arguments = (checkpoint, out, "--to", "delta", "--base", base, "--base-prefix", "backbone.")
    with pytest.raises(SystemExit, match="NaN or infinity in 'fc.bias'.*--allow-nonfinite$"):
        run_tool("import_apla", *arguments)
    assert not out.parent.exists()
    run_tool("import_apla", *arguments, "--allow-nonfinite")
    assert load_delta(out, allow_nonfinite=True).tensors["fc.bias"].isnan().all()


def test_a_run_that_was_resumed_is_refused(run, write, tmp_path, run_tool):
    checkpoint, base = write(start=run[2])  # it started from what had been trained
    out = tmp_path / "plain.pth"
    arguments = (checkpoint, out, "--base", base, "--base-prefix", "backbone.")
    with pytest.raises(SystemExit, match="it was resumed, and then the authors' code computes with newly drawn"):
        run_tool("import_apla", *arguments)
    assert not out.exists()


def sorted_rest(state):
    """The checkpoint of a run that was given a file of channels: the others follow in ascending order."""
    lists, changed = {}, dict(state)
    for i in range(2):
        prefix = f"backbone.blocks.{i}.attn."
        order = state[prefix + "inds"]
        rest = order[R:].argsort()
        changed[prefix + "inds"] = torch.cat([order[:R], order[R:][rest]])
        for kind in ("weight", "bias"):
            changed[f"{prefix}proj_{kind}2"] = state[f"{prefix}proj_{kind}2"][rest]
        lists[f"block_{i}"] = order[:R].tolist()
    return changed, lists


def test_a_file_of_channels_stands_in_for_missing_ones(run, write, tmp_path, run_tool):
    state, lists = sorted_rest(run[2])
    inds = tmp_path / "inds.json"
    inds.write_text(json.dumps(lists))
    checkpoint, base = write({k: v for k, v in state.items() if "inds" not in k}, start=state)
    arguments = ("--inds", inds, "--base", base, "--base-prefix", "backbone.")
    run_tool("import_apla", checkpoint, tmp_path / "plain.pth", *arguments)
    check_plain(run, read_checkpoint(tmp_path / "plain.pth")["state_dict"])
    for wrong, error in (
        ({"block_0": lists["block_0"]}, "has no entry"),
        ({**lists, "block_1": lists["block_1"][1:]}, f"4 channels are listed for it, and {R} are stored"),
        ({**lists, "block_1": [0, 0, 1, 2, 3]}, "distinct ints"),
        ({**lists, "block_1": [(i + 1) % DIM for i in lists["block_1"]]}, "differ from the base"),
    ):
        inds.write_text(json.dumps(wrong))
        with pytest.raises(SystemExit, match=error):
            run_tool("import_apla", checkpoint, tmp_path / "p.pth", *arguments)
    inds.write_text(json.dumps({**lists, "block_1": lists["block_1"][::-1]}))
    checkpoint, _ = write(state)
    with pytest.raises(SystemExit, match="'inds' are not those of the file that --inds names"):
        run_tool("import_apla", checkpoint, tmp_path / "p.pth", "--inds", inds)


class Evil:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_nothing_in_it_is_run(run, write, tmp_path, run_tool):
    mark, out = tmp_path / "mark", tmp_path / "plain.pth"
    checkpoint, _ = write(extra=Evil(os.mkdir, str(mark)))
    with pytest.raises(SystemExit, match="authors.pth' cannot be read: it would run 'posix.mkdir'.*do not trust it"):
        run_tool("import_apla", checkpoint, out)
    assert not out.exists() and not mark.exists()
    # a function of a module that torch does not know as harmful is data
    checkpoint, _ = write(extra=Evil(shutil.copytree, str(tmp_path), str(mark)))
    run_tool("import_apla", checkpoint, out)
    check_plain(run, read_checkpoint(out)["state_dict"])
    assert not mark.exists()


def test_what_lies_beside_the_weights_is_read_as_plain_values(run, write, assert_same):
    weights = read_weights(write()[0])
    assert_same(weights.state, run[2])
    assert_same(weights.rest["original_state"], run[1])
    parameters = weights.rest["parameters"]
    assert type(parameters) is OrderedDict and parameters["training_params"] == dict(epochs=1, lr=0.5)
    assert (weights.rest["iters"], parameters["name"], weights.meta) == (3, "x", {})
