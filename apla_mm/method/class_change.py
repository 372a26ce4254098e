"""Modules that compute in another way, and stay where and what they are.

A module is given another class, derived from its own and from one of :class:`Changed`, which has the other forward. Its
tensors, children, hooks and mode stay, and so does whoever holds it: nothing is built anew, and nothing is replaced.
"""

from typing import Any, TypeVar

from torch import nn

_T = TypeVar("_T", bound="Changed")


class Changed(nn.Module):
    """Computes in another way than the plain module that it was."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # derived classes have no name by which they could be found again
        chain: list[type] = []
        cls: Any = type(self)
        while cls in _MADE_OF:
            how, cls = _MADE_OF[cls]
            chain.append(how)
        return _unpickle, (*chain, cls), self.__dict__

    def _before_change_back(self) -> None:
        """Take away what was added to the plain module."""


_MADE_OF: dict[type[nn.Module], tuple[type[Changed], type[nn.Module]]] = {}
_DERIVED: dict[tuple[type[Changed], type[nn.Module]], type[Changed]] = {}


def change(module: nn.Module, how: type[_T]) -> _T:
    """Have a module compute in another way, in place.

    Args:
        module: A plain module.
        how: What has the other forward.

    Returns:
        The same module, which is an instance of its plain class still.
    """
    module.__class__ = _derived(how, type(module))
    assert isinstance(module, how)
    return module


def change_back(module: nn.Module, how: type[Changed] = Changed) -> None:
    """Have a module be what it was. One that was not changed is left alone.

    Args:
        module: The module, which may have been changed several times.
        how: Changes are undone from the last one on, until none of this kind is left.
    """
    while isinstance(module, how):
        module._before_change_back()
        module.__class__ = _MADE_OF[type(module)][1]  # type: ignore[assignment]


def _derived(how: type[Changed], plain: type[nn.Module]) -> type[Changed]:
    if (how, plain) not in _DERIVED:
        # the name stays: OpenMMLab goes by it
        named = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}
        derived: Any = how if plain in how.__bases__ else type(plain.__name__, (how, plain), named)
        _DERIVED[how, plain], _MADE_OF[derived] = derived, (how, plain)
    return _DERIVED[how, plain]


def _unpickle(*chain: Any) -> nn.Module:
    *changes, derived = chain
    for how in reversed(changes):
        derived = _derived(how, derived)
    module: nn.Module = derived.__new__(derived)
    return module
