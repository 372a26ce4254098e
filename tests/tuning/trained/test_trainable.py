from helpers.nets import tiny_vit
from torch import nn

from apla_mm.method import adapt
from apla_mm.tuning.trained.trainable import TrainableRow, format_trainable, trainable_table


def make_model():
    vit = tiny_vit(num_classes=0)
    return nn.ModuleDict({"backbone": vit, "head": nn.Linear(32, 4)})


def test_table_counts_what_trains_by_module():
    model = make_model()
    total = sum(p.numel() for p in model.parameters())
    adapt(model["backbone"], r=3)
    rows = {row.module: (row.trained, row.total) for row in trainable_table(model, depth=2)}
    assert rows["backbone.blocks"][0] == 2 * 3 * 33
    assert rows["backbone.blocks"][1] == sum(p.numel() for p in make_model()["backbone"].blocks.parameters())
    assert rows["head"] == (132, 132)
    assert rows["total"] == (2 * 3 * 33 + 132, total)
    assert sum(total for name, (_, total) in rows.items() if name != "total") == total
    assert [row.module for row in trainable_table(model, depth=1)] == ["backbone", "head", "total"]


def test_format_table_aligns_columns():
    lines = format_trainable([TrainableRow("backbone", 5, 1000), TrainableRow("total", 5, 0)]).splitlines()
    assert lines[0].split() == ["module", "trained", "total", "share"]
    assert lines[1].split() == ["backbone", "5", "1,000", "0.50%"]
    assert lines[2].split()[-1] == "0.00%"
    assert len({len(line) for line in lines}) == 1
