from types import SimpleNamespace
from typing import Any

import pytest
from mmseg.evaluation import IoUMetric
from mmseg.models import FCNHead
from torch import nn

from apla_mm.data.labels.label_rules import LabelRules, check_losses, scoring_rules, training_rules
from apla_mm.data.reading import DataError


def model_of(*heads: dict[str, Any]) -> nn.Module:
    names = ["decode_head", *(f"auxiliary_head_{i}_head" for i in range(len(heads) - 1))]
    defaults: dict[str, Any] = dict(in_channels=4, channels=4, num_classes=2, num_convs=0, concat_input=False)
    return nn.ModuleDict({n: FCNHead(**{**defaults, **head}) for n, head in zip(names, heads, strict=True)})


def loss(kind: str = "CrossEntropyLoss", **settings: Any) -> dict[str, Any]:
    return dict(type=f"mmseg.{kind}", **settings)


@pytest.mark.parametrize(
    ("heads", "ignored"),
    [
        ([{}], {255}),
        ([dict(ignore_index=254)], {254}),
        ([dict(ignore_index=254), dict(ignore_index=254)], {254}),
        ([dict(ignore_index=254), {}], set()),
        ([dict(loss_decode=[loss(), loss("DiceLoss")])], {255}),
        ([dict(loss_decode=loss("LovaszLoss", reduction="none"), ignore_index=255)], {255}),
        ([dict(loss_decode=loss("FocalLoss"), ignore_index=254)], {254}),
    ],
)
def test_labels_are_ignored_if_all_heads_and_their_losses_ignore_them(heads: list[dict], ignored: set[int]) -> None:
    rules = training_rules(model_of(*heads), 2)
    assert rules.ignored == ignored
    assert [label for label in range(256) if rules.allow(label)] == sorted({0, 1} | ignored)


def test_one_output_stands_for_two_labels() -> None:
    binary = dict(out_channels=1, threshold=0.5, loss_decode=loss(use_sigmoid=True))
    assert training_rules(model_of(binary), 2).num_classes == 2
    single = dict(num_classes=1, loss_decode=loss(use_sigmoid=True))
    assert training_rules(model_of(single), 1).num_classes == 2


@pytest.mark.parametrize("heads", [[dict(num_classes=1)], [{}, dict(num_classes=1)]])
def test_softmax_over_one_class_is_an_error(heads: list[dict]) -> None:
    with pytest.raises(DataError, match=r"has one output, and its loss is 0 .*background,object.*use_sigmoid=True"):
        check_losses(model_of(*heads))
    check_losses(model_of(*({**head, "loss_decode": loss(use_sigmoid=True)} for head in heads)))


def test_head_of_two_classes_has_a_loss_that_changes() -> None:
    check_losses(model_of({}, dict(loss_decode=loss("DiceLoss"))))


def test_metrics_say_what_validation_may_hold() -> None:
    otherwise = LabelRules(2, frozenset({7}))
    assert scoring_rules([IoUMetric(ignore_index=254)], 2, otherwise).ignored == {254}
    assert scoring_rules([IoUMetric(ignore_index=254), IoUMetric()], 2, otherwise).ignored == set()
    assert scoring_rules([IoUMetric(format_only=True)], 2, otherwise) is otherwise
    assert scoring_rules([SimpleNamespace()], 2, otherwise) is otherwise


def test_class_that_is_ignored_is_a_warning_that_names_both() -> None:
    rules = training_rules(model_of(dict(ignore_index=0)), 2)
    (text,) = rules.warnings(["background", "cat"])
    assert text.startswith("decode_head.ignore_index=0 is the class 'background'")
    assert rules.classes == [1] and "decode_head.ignore_index=0" in rules.cure
