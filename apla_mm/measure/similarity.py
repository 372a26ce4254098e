"""How alike two sets of features are."""

import torch
from torch import Tensor


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Linear centred kernel alignment of the same inputs' features in two models (arXiv 1905.00414, eq. 3).

    It does not change when either is turned, mirrored, moved or scaled as a whole: 1 for features that are equal but
    for that, towards 0 for features that have nothing in common.

    Args:
        first: Features (N, D).
        second: Features (N, E).

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: They are not of the same inputs, or one of them is the same for all.
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(
            f"features of the same inputs are (N, D) and (N, E), and are {tuple(first.shape)} and {tuple(second.shape)}"
        )
    x, y = (f.double() - f.double().mean(0) for f in (first, second))
    norms = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    if norms == 0:
        raise ValueError("features that are the same for all inputs cannot be compared")
    return float(torch.linalg.matrix_norm(x.T @ y) ** 2 / norms)
