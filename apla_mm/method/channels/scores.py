"""How much each output channel of a projection matters, by its weights or by what training would do to them.

=============  =======================================  =============================================================
``selection``  score of channel c, with row W[c]         says
=============  =======================================  =============================================================
``magnitude``  ``|| W[c] ||``                            how strong the row is, in the weights as they were loaded
``gradient``   ``|| mean_b g_b[c] ||``                   how fast the loss falls by it: g_b is the gradient of batch b
``fisher``     ``sum_j mean_b g_b[c, j]^2``              the empirical Fisher information of the row's weights
=============  =======================================  =============================================================

The Fisher information (as Kirkpatrick et al., arXiv 1612.00796, weigh parameters by it) is a mean over samples of
squared gradients. Here it is one over batches, whose gradients are what training has: it tells rows apart in the same
way, and costs one backward a batch.

The row alone counts, not the channel's bias: that is on another scale, and some projections have none.
"""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..class_change import change_back
from ..memory.frozen_dtype import release_frozen
from ..partial_linear import PartialLinear

Backward = Callable[[nn.Module, Any], object]


def row_norms(linear: nn.Linear) -> Tensor:
    """L2 norms of a projection's rows.

    Args:
        linear: The projection, adapted or not.

    Returns:
        (out,), at least float32.
    """
    if isinstance(linear, PartialLinear):
        linear.sync()
    return _widened(linear.weight.detach()).norm(dim=1)


def scoring_copy(model: nn.Module) -> nn.Module:
    """A copy to compute gradients with: what they leave behind, in norms' statistics too, is not in the model.

    Args:
        model: A model, adapted or not, without a wrapper. It needs room for its weights a second time.

    Returns:
        A copy in which projections are plain linear layers, as of a model that is adapted with ``r='full'``.

    Raises:
        ValueError: The model cannot be copied.
    """
    try:
        copy = deepcopy(model)
    except Exception as error:  # of whatever a module holds
        raise ValueError(
            f"scores by gradients are computed by a copy of the model, which cannot be made ({type(error).__name__}: "
            f"{error}): use selection='magnitude', or give channels=..."
        ) from error
    release_frozen(copy)
    for module in list(copy.modules()):
        change_back(module, PartialLinear)
    return copy


def gradient_statistics(
    copy: nn.Module, names: Sequence[str], how: str, batches: Iterable[Any], backward: Backward
) -> dict[str, Tensor]:
    """What :func:`scores_of` makes scores of, from gradients of the whole projections; several can be averaged.

    Args:
        copy: Of :func:`scoring_copy`, in the mode to score in. Of its parameters these projections' weights require a
            gradient from then on.
        names: Names of the projections.
        how: ``'gradient'`` or ``'fisher'``.
        batches: Batches of training data, at least one.
        backward: Computes the loss of the model and a batch, and runs its backward.

    Returns:
        By name the mean gradient (out, in), or of its square, summed over the row, (out,).

    Raises:
        ValueError: There is no batch, a projection gets no gradient, or one that is not finite.
    """
    copy.requires_grad_(False)
    weights: dict[str, Tensor] = {name: copy.get_parameter(f"{name}.weight").requires_grad_(True) for name in names}
    sums: dict[str, Tensor] = {}
    count = 0
    for count, batch in enumerate(batches, 1):
        copy.zero_grad(set_to_none=True)
        backward(copy, batch)
        for name, weight in weights.items():
            gradient = _checked(weight.grad, name, how, count)
            term = gradient if how == "gradient" else gradient.square().sum(1)
            sums[name] = sums[name] + term if name in sums else term
    if not count:
        raise ValueError(f"selection='{how}' is by gradients of batches, and there is no batch: give at least one")
    return {name: total / count for name, total in sums.items()}


def scores_of(how: str, statistic: Tensor) -> Tensor:
    """Scores of the channels of one projection.

    Args:
        how: As the statistic was made.
        statistic: Of :func:`gradient_statistics`; for ``'magnitude'`` of :func:`row_norms`.

    Returns:
        (out,); the largest matter most.
    """
    return statistic.norm(dim=1) if how == "gradient" else statistic


def _checked(gradient: Tensor | None, name: str, how: str, number: int) -> Tensor:
    if gradient is None:
        raise ValueError(
            f"selection='{how}': the loss of batch {number} gives '{name}' no gradient, and its channels cannot be "
            "told apart: leave it out by blocks=[...], or see that its output is used"
        )
    if not gradient.isfinite().all():
        raise ValueError(
            f"selection='{how}': batch {number} gives '{name}' a gradient that is not finite; look at the data and the "
            "weights, or use bfloat16 in place of float16"
        )
    return _widened(gradient)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
