"""Linear CKA: what it does not see, and what it does."""

import pytest
import torch

from apla_mm.measure.similarity import linear_cka


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_turned_moved_and_scaled_features_are_the_same(features: torch.Tensor) -> None:
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    assert linear_cka(features, 3 * features @ turn + 5) == pytest.approx(1, abs=1e-12)
    assert linear_cka(features, features[:, :3]) == pytest.approx(linear_cka(features[:, :3], features))


def test_it_is_the_alignment_of_centred_gram_matrices(features: torch.Tensor) -> None:
    other = features[:, :2] ** 2 + features[:, 2:4]
    centre = torch.eye(200, dtype=torch.float64) - 1 / 200
    k, m = (centre @ f @ f.T @ centre for f in (features, other))
    assert linear_cka(features, other) == pytest.approx(float((k * m).sum() / k.norm() / m.norm()), abs=1e-12)


def test_unrelated_features_have_nothing_in_common(features: torch.Tensor) -> None:
    other = torch.randn(200, 6, generator=torch.Generator().manual_seed(2))
    assert linear_cka(features, other) < 0.1


def test_what_cannot_be_compared_is_an_error(features: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="same inputs"):
        linear_cka(features, features[:10])
    with pytest.raises(ValueError, match="the same for all inputs"):
        linear_cka(features, torch.ones(200, 3))
