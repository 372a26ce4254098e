"""The APLA authors' checkpoints, against an implementation of their scheme of its own."""

import json
import os
import shutil
import sys
import types
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from helpers.comparisons import assert_same, clone
from helpers.nets import tiny_vit
from helpers.processes import run as run_process
from helpers.tools import CONVERTERS
from torch import nn

from apla_mm.convert.authors import check_not_resumed, read_authors
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


def make_model() -> nn.Module:
    return nn.Sequential(OrderedDict(backbone=tiny_vit(num_classes=0), fc=nn.Linear(DIM, 3)))


def state_of(model: nn.Module, buffer: str = "inds") -> OrderedDict[str, torch.Tensor]:
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
    model = make_model()
    base = clone(model.backbone.state_dict())
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
    model, x = make_model(), torch.randn(2, 3, 32, 32)
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


def test_it_becomes_a_delta(run, write, tmp_path, run_tool):
    checkpoint, base = write()
    delta, plain = tmp_path / "delta.safetensors", tmp_path / "plain.safetensors"
    rename = ("--rename", "backbone.=backbone.vit.")
    options = ("--to", "delta", "--base", base, "--base-prefix", "backbone.", *rename)
    run_process(CONVERTERS / "import_apla.py", checkpoint, delta, *options)
    loaded = load_delta(delta)
    for i, block in enumerate(run[0].backbone.blocks):
        wanted = sorted(block.attn.proj.order[:R].tolist())
        assert loaded.channels[f"backbone.vit.blocks.{i}.attn.proj"].tolist() == wanted
    assert loaded.header.r == R and loaded.tensors.keys() == {"fc.weight", "fc.bias"}
    run_tool("merge_delta", delta, plain)
    run_tool("import_apla", checkpoint, tmp_path / "direct.safetensors", *rename)
    merged, direct = (safetensors.torch.load_file(path) for path in (plain, tmp_path / "direct.safetensors"))
    assert_same(merged, direct)
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


def plain_of(model, partial=True):
    """What a plain model must hold that computes what this one computes, by the channels that it computes with."""
    state = {name: t.clone() for name, t in model.state_dict().items() if not (partial and ".attn.proj." in name)}
    for i, block in enumerate(model.backbone.blocks if partial else ()):
        parts = block.attn.proj.parts()
        for kind in ("weight", "bias"):
            rows = [*parts[f"proj_{kind}1"], *parts[f"proj_{kind}2"]]
            in_place = [rows[block.attn.proj.order.tolist().index(channel)] for channel in range(DIM)]
            state[f"backbone.blocks.{i}.attn.proj.{kind}"] = torch.stack(in_place)
    return state


def train(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.randint(3, (4,))).backward()
        optimizer.step()


def second_run(run, restores):
    """A run that loads the first one's checkpoint: its model, what it started from and what it saves.

    Args:
        run: The first.
        restores: Whether loading reaches the channels that the model computes with, as it does on the CPU.
    """
    saved, model = run[2], make_model()
    torch.manual_seed(7)
    for i, block in enumerate(model.backbone.blocks):
        projection = TwoParts(block.attn.proj, torch.randperm(DIM), R)
        block.attn.proj, prefix = projection, f"backbone.blocks.{i}.attn."
        for name, part in projection.parts().items():
            part.copy_(saved[prefix + name])
        if restores:
            projection.order.copy_(saved[f"{prefix}inds"])
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if ".attn.proj." not in name:
                tensor.copy_(saved[name])
    model.backbone.requires_grad_(False)
    for block in model.backbone.blocks:
        block.attn.proj.requires_grad_(True)
    train(model)
    state = state_of(model)
    state.update({name: tensor for name, tensor in saved.items() if name.endswith(".inds")})
    return model, saved, state


def settings(restore_session=False, partial_size=R, inds_path=None, pretrained_path="", **system):
    """The authors' parameters, as far as they matter."""
    params = dict(partial_size=partial_size, **({} if inds_path is None else dict(inds_path=inds_path)))
    return EasyDict(
        training_params=EasyDict(epochs=1, restore_session=restore_session),
        model_params=EasyDict(adaptation=EasyDict(mode="apla", params=EasyDict(**params))),
        transfer_learning_params=EasyDict(pretrained_path=pretrained_path),
        system_params=EasyDict(which_GPUs="0", **{"use_GPU": True, "world_size": 1, **system}),
    )


@pytest.mark.parametrize("to", ["plain", "delta"])
@pytest.mark.parametrize(
    "given",
    [
        dict(pretrained_path="apla/first.pth"),
        dict(restore_session=True, use_GPU=False),
        dict(restore_session=True, world_size=0),
    ],
    ids=["pretrained_path", "resumed without GPU", "resumed where there is none"],
)
def test_a_run_that_loaded_its_channels_is_imported(run, write, tmp_path, run_tool, given, to):
    model, start, state = second_run(run, restores=True)
    checkpoint, base = write(state, start, parameters=settings(**given))
    out = tmp_path / "out.safetensors"
    said = run_tool("import_apla", checkpoint, out, "--to", to, "--base", base, "--base-prefix", "backbone.")
    assert "is not known" not in said
    if to == "delta":
        run_tool("merge_delta", out, tmp_path / "merged.safetensors")
        out = tmp_path / "merged.safetensors"
    assert_same(dict(read_weights(out).state), plain_of(model))


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        (dict(restore_session=True), ["says restore_session, on GPUs", "a file of channels (inds_path), name it"]),
        (dict(restore_session=True, world_size=4, inds_path="i.json"), ["given the file 'i.json', name it by --inds"]),
        (dict(restore_session=True, pretrained_path="apla/x.pth"), ["if it began from 'apla/x.pth' and was"]),
        (None, ["does not say otherwise: its restore_session is missing"]),
    ],
)  # fmt: skip
def test_a_run_that_was_resumed_on_gpus_is_refused(run, write, tmp_path, run_tool, given, messages):
    model, start, state = second_run(run, restores=False)
    checkpoint, base = write(state, start, parameters=EasyDict() if given is None else settings(**given))
    with pytest.raises(SystemExit) as stopped:
        run_tool("import_apla", checkpoint, tmp_path / "p.pth", "--base", base, "--base-prefix", "backbone.")
    assert all(message in str(stopped.value) for message in ["it was resumed, and then", *messages])
    # rightly: by what it saved it is another model
    run_tool("import_apla", checkpoint, tmp_path / "p.pth")
    wrong = read_checkpoint(tmp_path / "p.pth")["state_dict"]
    key = "backbone.blocks.0.attn.proj.weight"
    assert not torch.equal(wrong[key], plain_of(model)[key])


def test_settings_tell_that_it_was_not_resumed_where_its_start_is_not_there(run, write):
    for given, known in ((dict(), True), (dict(restore_session=True), False)):
        weights = read_authors(write(original_state=None, parameters=settings(**given))[0])
        assert check_not_resumed(weights, run[3], "backbone.") is known


def test_all_channels_in_two_parts(run, write, tmp_path, run_tool):
    torch.manual_seed(1)
    model = make_model()
    for block in model.backbone.blocks:
        block.attn.proj = TwoParts(block.attn.proj, torch.randperm(DIM), DIM)
    checkpoint, _ = write(state_of(model), parameters=settings(partial_size=DIM))
    run_tool("import_apla", checkpoint, tmp_path / "plain.pth")
    assert_same(dict(read_weights(tmp_path / "plain.pth").state), plain_of(model))


@pytest.fixture
def full(write):
    """A run of which the projections trained in full, for several GPUs: its model, checkpoint and base."""
    torch.manual_seed(0)
    model = make_model()
    base, start = clone(model.backbone.state_dict()), clone(model.state_dict())
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad = "attn.proj" in name
    train(model)

    def files(state=None, **given):
        given = dict(partial_size="full", inds_path="i.json", world_size=2, **given)
        state = clone(model.state_dict()) if state is None else state
        checkpoint, path = write(state, start, parameters=settings(**given))
        safetensors.torch.save_file(base, path)
        return checkpoint, path

    return model, files


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("given", [dict(), dict(restore_session=True)])
def test_projections_that_trained_in_full(full, tmp_path, run_tool, prefix, given):
    model, files = full
    expected = plain_of(model, partial=False)
    checkpoint, base = files({prefix + name: tensor for name, tensor in model.state_dict().items()}, **given)
    plain, delta, merged = (tmp_path / f"{name}.safetensors" for name in ("plain", "delta", "merged"))
    said = run_tool("import_apla", checkpoint, plain, "--base", base, "--base-prefix", "backbone.")
    assert "2 projections, trained in full; what was frozen is the base's" in said
    assert_same(dict(read_weights(plain).state), expected)
    run_tool("import_apla", checkpoint, delta, "--to", "delta", "--base", base, "--base-prefix", "backbone.")
    trained = {f"backbone.blocks.{i}.attn.proj.{kind}" for i in range(2) for kind in ("weight", "bias")}
    assert load_delta(delta).tensors.keys() == trained | {"fc.weight", "fc.bias"} and not load_delta(delta).channels
    run_tool("merge_delta", delta, merged)
    assert_same(dict(read_weights(merged).state), expected)


def test_what_does_not_fit_of_projections_in_full(full, write, tmp_path, run_tool):
    model, files = full
    state, out = clone(model.state_dict()), tmp_path / "plain.pth"

    def refused(checkpoint, *arguments):
        with pytest.raises(SystemExit) as stopped:
            run_tool("import_apla", checkpoint, out, *arguments)
        assert not out.exists()
        return str(stopped.value)

    inds = tmp_path / "i.json"
    inds.write_text(json.dumps({"block_0": [1]}))
    assert "trained in full, and nothing reads --inds: leave it out" in refused(files()[0], "--inds", inds)
    moved = {**state, "backbone.blocks.1.mlp.fc1.bias": state["backbone.blocks.1.mlp.fc1.bias"] + 1}
    checkpoint, base = files(moved)
    said = refused(checkpoint, "--base", base, "--base-prefix", "backbone.")
    assert (
        "'backbone.blocks.1.mlp.fc1.bias' differ from the base, and were frozen" in said and "pretrained_path" in said
    )
    none = {name: tensor for name, tensor in state.items() if ".attn.proj." not in name}
    assert "its parameters say partial_size: full, and no 'attn.proj.weight'" in refused(files(none)[0])
    for parameters in (EasyDict(), settings(partial_size=R)):
        said = refused(write(state, state, parameters=parameters)[0])
        assert "this checkpoint is plain. Use it as it is; " in said and "apla-mm extract" in said


def pair(run):
    """A student, its teacher, and both plain."""
    student, teacher = clone(run[2]), clone(run[2])
    for name in teacher:
        if name.endswith(("proj_weight1", "proj_bias1")):
            teacher[name] += 1
    return dict(student=student, teacher=teacher)


@pytest.mark.parametrize("shape", ["dicts", "dicts in it", "prefixes", "DDP", "safetensors"])
def test_a_student_and_a_teacher(run, write, tmp_path, run_tool, shape):
    models = pair(run)
    flat = {f"{model}.{name}": tensor for model, state in models.items() for name, tensor in state.items()}
    checkpoint = tmp_path / "both.pth"
    if shape == "safetensors":
        checkpoint = tmp_path / "both.safetensors"
        safetensors.torch.save_file({**flat, "loss.center": torch.ones(1)}, checkpoint)
    elif shape in ("dicts", "dicts in it"):
        content = dict(models, iteration=3)
        torch.save(dict(model=content) if shape == "dicts in it" else content, checkpoint)
    else:
        prefix = "module." if shape == "DDP" else ""
        checkpoint, _ = write({f"{prefix}{name}": tensor for name, tensor in flat.items()})
    out = tmp_path / "plain.safetensors"
    with pytest.raises(
        SystemExit, match=r"holds a student and a teacher: say which by --part student or --part teacher"
    ):
        run_tool("import_apla", checkpoint, out)
    expected = plain_of(run[0])
    for part, added in (("student", 0), ("teacher", 1)):
        run_tool("import_apla", checkpoint, out, "--part", part, "--force")
        found = dict(read_weights(out).state)
        for i, block in enumerate(run[0].backbone.blocks):
            for kind in ("weight", "bias"):
                name = f"backbone.blocks.{i}.attn.proj.{kind}"
                rows = block.attn.proj.order[:R]
                wanted = expected[name].index_copy(0, rows, expected[name][rows] + added)
                assert torch.equal(found.pop(name), wanted)
        assert_same(found, {name: tensor for name, tensor in expected.items() if ".attn.proj." not in name})


def test_a_part_that_is_not_there(run, write, tmp_path, run_tool):
    out, alone = tmp_path / "plain.safetensors", tmp_path / "alone.pth"
    torch.save(dict(teacher=run[2]), alone)
    run_tool("import_apla", alone, out)
    assert_same(dict(read_weights(out).state), plain_of(run[0]))
    for path, message in (
        (alone, "holds no student, but a teacher"),
        (write()[0], "holds neither a student nor a tea"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_tool("import_apla", path, out, "--part", "student", "--force")
    assert_same(dict(read_weights(out).state), plain_of(run[0]))


@pytest.mark.parametrize("same", [True, False])
def test_the_teachers_backbone_alone_beside_what_both_started_from(run, write, tmp_path, run_tool, same):
    """As it is saved while training without labels."""
    state = {name.removeprefix("backbone."): t for name, t in run[2].items() if name.startswith("backbone.")}
    start = run[1] if same else run[2]
    started = {f"{model}.{name}": tensor for model in ("student", "teacher") for name, tensor in start.items()}
    checkpoint, base = write(state, {**started, "dino_loss.center": torch.ones(1)})
    if same:
        said = run_tool("import_apla", checkpoint, tmp_path / "plain.safetensors", "--base", base)
        assert "is not known" not in said
        expected = {n.removeprefix("backbone."): t for n, t in plain_of(run[0]).items() if n.startswith("backbone.")}
        assert_same(dict(read_weights(tmp_path / "plain.safetensors").state), expected)
        return
    with pytest.raises(SystemExit, match="it was resumed, and then"):
        run_tool("import_apla", checkpoint, tmp_path / "plain.safetensors", "--base", base)


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


def test_what_lies_beside_the_weights_is_read_as_plain_values(run, write):
    weights = read_weights(write()[0])
    assert_same(weights.state, run[2])
    assert_same(weights.rest["original_state"], run[1])
    parameters = weights.rest["parameters"]
    assert type(parameters) is OrderedDict and parameters["training_params"] == dict(epochs=1, lr=0.5)
    assert (weights.rest["iters"], parameters["name"], weights.meta) == (3, "x", {})
