import pickle

import numpy as np
import pytest

from apla_mm.data.labels.label_counts import LabelCounts, MissingClassesError, judge_scoring, judge_training
from apla_mm.data.labels.label_rules import LabelRules
from apla_mm.data.reading import DataError

NAMES = ("sky", "sea", "ship")
RULES = LabelRules(3)


def counts_of(*label_maps: list[int], missed: int = 0, dtype: type = np.uint8) -> LabelCounts:
    counts = LabelCounts()
    for labels in label_maps:
        counts.add(np.array([labels], dtype))
    counts.missed = missed
    return counts


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_pixels_and_images_are_counted(dtype: type) -> None:
    counts = counts_of([0, 0, 1, 255], [1, 1, 1, 1], dtype=dtype)
    assert counts.pixels == {0: 2, 1: 5, 255: 1} and counts.images == {0: 1, 1: 2, 255: 1} and counts.read == 2
    merged = counts.merge([pickle.loads(pickle.dumps(counts)), LabelCounts()])
    assert merged.pixels == {0: 4, 1: 10, 255: 2} and merged.images[1] == 4 and merged.read == 4


def test_table_has_each_class_and_what_is_ignored() -> None:
    assert counts_of([0, 0, 1, 255]).summary(NAMES).splitlines() == [
        "1 label maps; 2 of 3 classes have pixels, ship none",
        "class    label   pixels  images",
        "sky          0  50.00 %       1",
        "sea          1  25.00 %       1",
        "ship         2   0.00 %       0",
        "ignored    255  25.00 %       1",
    ]


def test_table_of_many_classes_is_of_the_rarest() -> None:
    text = counts_of([*range(100), 5]).summary([f"c{i}" for i in range(150)])
    assert "100 of 150 classes have pixels, c100, c101, c102, c103, c104 and 45 more none; the rarest" in text
    assert len(text.splitlines()) == 12


@pytest.mark.parametrize("labels", [[0, 0], [0, 255], [255, 255]])
def test_nothing_to_learn_is_an_error_or_a_warning_where_not_all_was_read(labels: list[int]) -> None:
    with pytest.raises(DataError, match="in all 2 label maps .* there is nothing to learn"):
        list(judge_training(counts_of(labels, labels), RULES, NAMES))
    (text,) = judge_training(counts_of(labels, labels, missed=1), RULES, NAMES)
    assert "nothing to learn" in text


def test_masks_of_0_and_255_are_told_how_to_be_converted() -> None:
    with pytest.raises(DataError, match=r"masks of 0 and 255 .* convert copies of them by python -c"):
        list(judge_training(counts_of([0, 255]), RULES, NAMES))
    reduced = counts_of([0, 255])
    reduced.reduced = True
    with pytest.raises(DataError, match="reduce_zero_label=True takes the label 0 for ignored"):
        list(judge_training(reduced, RULES, NAMES))


def test_missing_class_is_an_error_where_there_are_as_many_images_as_classes() -> None:
    assert not list(judge_training(counts_of([0, 1], [0, 1]), RULES, NAMES))
    with pytest.raises(MissingClassesError, match="in 3 label maps no pixel is of the class ship: expected some of"):
        list(judge_training(counts_of([0, 1], [0, 1], [0, 1]), RULES, NAMES))
    (text,) = judge_training(counts_of([0, 1], [0, 1], [0, 1], missed=7), RULES, NAMES)
    assert "of the class ship" in text and "time_limit=None) reads the other 7" in text
    assert not list(judge_training(counts_of([0, 1], [0, 1], [2, 1]), RULES, NAMES))


def test_class_of_training_that_validation_lacks_is_a_warning() -> None:
    trained = counts_of([0, 1, 2])
    (text,) = judge_scoring(counts_of([0, 1], [0, 1], [0]), RULES, NAMES, trained)
    assert "of the class ship, which training has: its score" in text
    assert not list(judge_scoring(counts_of([0, 1], [0, 1], [0]), RULES, NAMES, counts_of([0, 1])))
    with pytest.raises(DataError, match="nothing to score"):
        list(judge_scoring(counts_of([255]), RULES, NAMES, trained))
