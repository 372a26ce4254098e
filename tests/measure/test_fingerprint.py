import timm
import torch
from torch import nn

from apla_mm.measure.fingerprint import channels_digest, channels_of, tensor_digest, trained_and_frozen_digests
from apla_mm.method import adapt, merge


def test_digest_is_of_the_bytes():
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert tensor_digest(a) == tensor_digest(a.clone()) == tensor_digest(a.T.contiguous().T)
    others = [a.T, a.double(), a.reshape(-1), a + 1e-7 * a, torch.tensor([[0.0, 2.0], [3.0, 4.0]]), -a]
    assert len({tensor_digest(t) for t in [a, *others]}) == len(others) + 1
    assert tensor_digest(torch.tensor(0.0)) != tensor_digest(torch.tensor(-0.0))
    assert tensor_digest(torch.tensor(float("nan"))) == tensor_digest(torch.tensor(float("nan")))
    tensor_digest(torch.ones(3, dtype=torch.bfloat16))
    tensor_digest(torch.empty(0))


def test_trained_and_frozen_are_told_apart_to_the_row():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=1, num_heads=2, num_classes=0)
    model = nn.ModuleDict({"backbone": vit, "norm": nn.BatchNorm1d(4), "frozen_norm": nn.BatchNorm1d(4)})
    report = adapt(vit, r=3)
    model["frozen_norm"].requires_grad_(False)
    proj = vit.blocks[0].attn.proj

    def change(edit):
        before = trained_and_frozen_digests(model)
        with torch.no_grad():
            edit()
        after = trained_and_frozen_digests(model)
        return [{k for k in b if b[k] != a[k]} for b, a in zip(before, after, strict=True)]

    chosen = report.projections[0].channels
    other = next(c for c in range(32) if c not in chosen)
    name = "backbone.blocks.0.attn.proj"
    assert change(lambda: proj.trained.weight[0].add_(1)) == [{f"{name}.trained.weight"}, set()]
    assert change(lambda: proj.weight[chosen[0]].add_(1)) == [{f"{name}.trained.weight"}, set()]
    assert change(lambda: proj.weight[other].add_(1)) == [set(), {f"{name}.weight (frozen channels)"}]
    assert change(lambda: vit.pos_embed[0, 0, 0].add_(1)) == [set(), {"backbone.pos_embed"}]
    assert change(lambda: model["norm"].running_mean.add_(1)) == [set(), set()]
    assert change(lambda: model["frozen_norm"].running_mean.add_(1)) == [set(), {"frozen_norm.running_mean"}]
    assert change(lambda: model["norm"].weight.add_(1)) == [{"norm.weight"}, set()]


def test_channels_by_projection_and_their_digest():
    def make(**arguments):
        vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=0)
        model = nn.ModuleDict({"backbone": vit, "head": nn.Linear(2, 2)})
        return model, adapt(vit, **arguments)

    model, report = make(r=3)
    assert channels_of(model) == {f"backbone.{p.name}": list(p.channels) for p in report.projections}
    listed = {p.name: p.channels[::-1] for p in reversed(report.projections)}
    assert channels_digest(make(channels=listed)[0]) == channels_digest(model)
    last = report.projections[1]
    swapped = {**listed, last.name: [next(c for c in range(32) if c not in last.channels), *last.channels[1:]]}
    others = [dict(r=3, seed=1), dict(r=4), dict(r=3, blocks=1), dict(r="full"), dict(channels=swapped)]
    digests = [channels_digest(make(**arguments)[0]) for arguments in others]
    assert len({*digests, channels_digest(model)}) == len(others) + 1

    parts = [make(r=3)[0], make(r=4)[0]]
    pairs = [nn.ModuleDict(dict(zip(names, parts, strict=True))) for names in (("a", "b"), ("b", "a"))]
    turned = nn.ModuleDict({"b": parts[1], "a": parts[0]})
    assert channels_digest(pairs[0]) == channels_digest(turned) != channels_digest(pairs[1])

    assert channels_of(make(r="full")[0]) == {}
    merge(model)
    assert channels_of(model) == {}
