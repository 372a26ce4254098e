import torch
from helpers.nets import tiny_vit
from torch import nn

from apla_mm.method import adapt
from apla_mm.tuning.trained.proof import trained_and_frozen_digests


def test_trained_and_frozen_are_told_apart_to_the_row():
    vit = tiny_vit(depth=1, num_classes=0)
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
