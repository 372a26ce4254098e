import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn

from apla_mm.tuning.optimizers.parameter_groups import format_groups, groups_by_lr, groups_by_settings


def make_model(*parts: str) -> nn.ModuleDict:
    """Each part has two linear layers, ``part.0`` and ``part.1``, of 6 weights and 2 biases each."""
    return nn.ModuleDict({part: nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2)) for part in parts})


def wrapped(model: nn.Module, *groups: tuple[str, float, float]) -> OptimWrapper:
    """Each group holds the parameters whose names begin with one of the words given."""
    return OptimWrapper(
        torch.optim.AdamW(
            [
                dict(
                    params=[p for name, p in model.named_parameters() if name.startswith(tuple(words.split()))],
                    lr=lr,
                    weight_decay=decay,
                )
                for words, lr, decay in groups
            ]
        )
    )


def test_groups_with_the_same_settings_are_one_and_named_by_their_parts() -> None:
    model = make_model("backbone", "decode_head", "auxiliary_head")
    wrapper = wrapped(
        model,
        ("backbone.0.weight", 1e-4, 0.1),
        ("backbone.0.bias", 1e-4, 0.0),
        ("backbone.1.weight", 1e-4, 0.1),
        ("backbone.1.bias", 1e-4, 0.0),
        ("decode_head", 1e-3, 0.0),
        ("auxiliary_head", 1e-3, 0.0),
    )
    model["decode_head"][1].weight.requires_grad_(False)
    told = [(g.name, g.count, g.lr, g.weight_decay) for g in groups_by_settings(wrapper, model)]
    assert told == [
        ("backbone", 12, 1e-4, 0.1),
        ("backbone no decay", 4, 1e-4, 0.0),
        ("decode_head+auxiliary_head", 26, 1e-3, 0.0),
    ]
    by_lr = groups_by_lr(wrapper, model)
    assert [(g.name, g.count, g.weight_decay) for g in by_lr] == [
        ("backbone", 16, None),
        ("decode_head+auxiliary_head", 26, 0.0),
    ]
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert sorted(name for group in by_lr for name in group.parameters) == sorted(trained)


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        (("backbone.0", "backbone.1", "decode_head neck"), ("backbone.0", "backbone.1", "neck+decode_head")),
        (("backbone.0.bias", "backbone.1 neck"), ("backbone", "backbone+neck")),
        (("backbone.0.bias", "backbone.1"), ("backbone.0.bias", "backbone.1")),
        (("backbone.0 neck.0", "backbone.1 neck.1"), ("backbone+neck 1", "backbone+neck 2")),
        (("backbone neck rpn_head",), ("backbone+neck+rpn_head",)),
        (("backbone neck rpn_head decode_head",), ("backbone+neck+2 others",)),
    ],
)
def test_names_are_distinct(groups: tuple[str, ...], names: tuple[str, ...]) -> None:
    model = make_model("backbone", "neck", "rpn_head", "decode_head")
    wrapper = wrapped(model, *((words, 10.0**-i, 0.1) for i, words in enumerate(groups)))
    assert tuple(group.name for group in groups_by_lr(wrapper, model)) == names
    assert tuple(group.name for group in groups_by_settings(wrapper, model)) == names


def test_learning_rates_are_those_before_and_under_a_schedule_also_after_a_state_was_loaded() -> None:
    model = make_model("backbone", "head")
    wrapper = wrapped(model, ("backbone", 1e-4, 0.1), ("head", 1e-3, 0.1))
    torch.optim.lr_scheduler.ConstantLR(wrapper.optimizer, factor=0.5)
    groups = groups_by_lr(wrapper, model)
    wrapper.load_state_dict(wrapper.state_dict())  # replaces the optimizer's groups
    wrapper.optimizer.param_groups[1]["lr"] = 2e-4
    assert [(g.name, g.lr, g.current_lr) for g in groups] == [("backbone", 1e-4, 5e-5), ("head", 1e-3, 2e-4)]


def test_several_optimizers_and_parameters_that_are_not_the_models() -> None:
    model = make_model("generator", "discriminator")
    loss = nn.Parameter(torch.zeros(5))
    wrapper = OptimWrapperDict(
        generator=wrapped(model, ("generator", 1e-3, 0.0)),
        discriminator=wrapped(model, ("discriminator", 1e-3, 0.0)),
        loss=OptimWrapper(torch.optim.SGD([loss], lr=0.1)),
    )
    told = [(group.name, group.count, group.current_lr) for group in groups_by_lr(wrapper, model)]
    assert told == [("generator", 16, 1e-3), ("discriminator", 16, 1e-3), ("others", 5, 0.1)]


def test_table_has_a_line_for_each_group() -> None:
    model = make_model("backbone", "head")
    wrapper = wrapped(model, ("backbone.0 head.0", 1e-5, 0.05), ("backbone.1 head.1", 1e-5, 0.0), ("x", 1.0, 0.0))
    assert format_groups(groups_by_settings(wrapper, model)).splitlines() == [
        "group                   trained     lr  weight decay",
        "backbone+head                16  1e-05          0.05",
        "backbone+head no decay       16  1e-05             0",
    ]
    assert "mixed" in format_groups(groups_by_lr(wrapper, model))
