"""Methods that train parameters of the backbone's own, whole ones, and add none."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..method import find_projections
from ..method.memory.recompute import set_recompute
from ..text import quoted
from .kinds import bias_names, norm_names
from .tuning_method import Merged, check_plain


@dataclass(frozen=True)
class _Recomputing(Merged):
    """A method beside which blocks may compute again.

    Args:
        recompute: What they compute again in backward; see :func:`~apla_mm.method.memory.recompute.set_recompute`.
    """

    recompute: str = "none"


@dataclass(frozen=True)
class Full(_Recomputing):
    """Full fine-tuning: all trains that the backbone has not frozen itself."""

    def prepare(self, backbone: nn.Module) -> None:
        """Leave the backbone as it is, but for what it computes again."""
        check_plain(backbone)
        set_recompute(backbone, self.recompute)


@dataclass(frozen=True)
class Head(Merged):
    """Nothing of the backbone trains: the heads do."""

    def prepare(self, backbone: nn.Module) -> None:
        """Freeze the backbone."""
        check_plain(backbone)
        backbone.requires_grad_(False)


@dataclass(frozen=True)
class Norm(_Recomputing):
    """The norms' weights and biases train."""

    def prepare(self, backbone: nn.Module) -> None:
        """Freeze all but the norms.

        Raises:
            ValueError: There are none, or the backbone has frozen them itself.
        """
        _train_alone(backbone, norm_names(backbone), "norm", "norms", self.recompute)


@dataclass(frozen=True)
class BitFit(_Recomputing):
    """BitFit (arXiv 2106.10199): biases train, the norms' included."""

    def prepare(self, backbone: nn.Module) -> None:
        """Freeze all but the biases.

        Raises:
            ValueError: There are none, or the backbone has frozen them itself.
        """
        _train_alone(backbone, bias_names(backbone), "bitfit", "biases", self.recompute)


@dataclass(frozen=True)
class WO(_Recomputing):
    """W_O trains in full, by ``requires_grad``, and no module is replaced: what APLA's authors do in segmentors.

    ``apla`` with ``r='full'`` trains the same, with attention that is fused.
    """

    def prepare(self, backbone: nn.Module) -> None:
        """Freeze all but the projections.

        Raises:
            ValueError: There are none, or the backbone has frozen them itself, or has an unknown attention.
        """
        projections = {id(p) for found in find_projections(backbone) for p in found.linear.parameters()}
        names = [name for name, parameter in backbone.named_parameters() if id(parameter) in projections]
        _train_alone(backbone, names, "wo", "projections", self.recompute)


def _train_alone(backbone: nn.Module, names: Sequence[str], method: str, what: str, recompute: str) -> None:
    """Freeze all but some parameters. Those that are frozen stay so, as long as others are left."""
    check_plain(backbone)
    parameters = dict(backbone.named_parameters())
    if not names:
        raise ValueError(f"{method}: {type(backbone).__name__} has no {what}, and nothing of it would train")
    left = [name for name in names if parameters[name].requires_grad]
    if not left:
        raise ValueError(
            f"{method}: {type(backbone).__name__} has frozen all of its {what} itself, {quoted(names, 3)}: build it "
            "without frozen parameters"
        )
    set_recompute(backbone, recompute)  # the last that may refuse
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in left)
