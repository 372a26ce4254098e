from helpers.nets import tiny_vit
from torch import nn

from apla_mm.method import adapt, merge
from apla_mm.method.channels.trained import channels_digest, channels_of


def test_channels_by_projection_and_their_digest():
    def make(**arguments):
        vit = tiny_vit(num_classes=0)
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
