"""Modules that stand in for others, and the way in and out of a model."""

from collections.abc import Callable
from typing import Any

from torch import nn


class StandIn(nn.Module):
    """Takes the place of a plain module and gives it back: tensors, hooks, mode and attributes are the plain one's."""

    _plain_type: type[nn.Module]

    def _take_over(self, plain: nn.Module) -> None:
        nn.Module.__init__(self)
        _move(plain, self)
        self._plain_type = type(plain)

    def to_plain(self) -> Any:
        """The plain module again, of its original class."""
        plain = self._plain_type.__new__(self._plain_type)
        nn.Module.__init__(plain)
        _move(self, plain)
        del plain.__dict__["_plain_type"]
        return plain


def _move(source: nn.Module, target: nn.Module) -> None:
    tables = {name: source.__dict__[name].copy() for name in ("_parameters", "_buffers", "_modules")}
    target.__dict__.update(source.__dict__)
    target.__dict__.update(tables)


def replace_modules(root: nn.Module, replacement: Callable[[nn.Module], nn.Module]) -> None:
    """Replace modules below ``root``, from the top down, wherever they are held.

    Args:
        root: Stays itself.
        replacement: Gives the module to put in a module's place, itself to leave it. It is asked once for each.
    """
    done: dict[nn.Module, nn.Module] = {}

    def visit(module: nn.Module) -> None:
        for name, child in module._modules.items():
            if child is not None:
                if child not in done:
                    done[child] = replacement(child)
                    visit(done[child])
                module._modules[name] = done[child]

    visit(root)
