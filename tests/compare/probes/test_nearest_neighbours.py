"""Votes of nearest neighbours, against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from apla_mm.compare.probes import nearest_neighbours
from apla_mm.compare.probes.nearest_neighbours import nearest_classes


@pytest.mark.parametrize("temperature", [0.07, 1.0, 0.001])
def test_classes_are_those_of_scikit_learn(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_neighbours, "_QUERIES", 100)
    digits = load_digits()
    features, queries = digits.data[:600] + 0.01, digits.data[600:1000] + 0.01
    ks = [1, 5, 20]
    own = nearest_classes(
        torch.tensor(features), torch.tensor(digits.target[:600]), torch.tensor(queries), ks, temperature
    )
    for k, found in zip(ks, own, strict=True):
        theirs = KNeighborsClassifier(
            k,
            metric="cosine",
            weights=lambda distance: np.exp((distance.min(1, keepdims=True) - distance) / temperature),
        )
        expected = theirs.fit(features, digits.target[:600]).predict(queries)
        assert found.tolist() == expected.tolist()
        assert 0.8 < (expected == digits.target[600:1000]).mean() < 1


@pytest.mark.parametrize(
    ("ks", "temperature", "message"),
    [([5], 0.07, "k=5 must be from 1 to the 4"), ([0], 0.07, "k=0"), ([1], 0.0, "temperature=0.0 must be above 0")],
)
def test_too_many_neighbours_are_refused(ks: list[int], temperature: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_classes(torch.eye(4), torch.arange(4), torch.eye(4), ks, temperature)
